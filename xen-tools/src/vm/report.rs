//! What a guest reports: lines on its second serial port, read while they are written.

use std::fs::File;
use std::io::{self, Read};
use std::path::Path;

/// One line.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Line {
    /// The script's `say`.
    Say(String),
    /// How it ended.
    End(String),
}

/// The report of one guest.
pub(super) struct Report {
    file: File,
    /// A line that is not complete yet.
    rest: Vec<u8>,
}

impl Report {
    pub(super) fn open(path: &Path) -> io::Result<Self> {
        Ok(Self { file: File::open(path)?, rest: Vec::new() })
    }

    /// The lines that have been completed since the last call. Others than those of [`Line`] are passed over.
    pub(super) fn lines(&mut self) -> Vec<Line> {
        // What has been read before an error is there; the rest comes the next time.
        let _ = self.file.read_to_end(&mut self.rest);
        let Some(end) = self.rest.iter().rposition(|byte| *byte == b'\n') else { return Vec::new() };
        let lines: Vec<u8> = self.rest.drain(..=end).collect();
        String::from_utf8_lossy(&lines).lines().filter_map(parse).collect()
    }
}

fn parse(line: &str) -> Option<Line> {
    let line = line.trim_end();
    let say = line.strip_prefix("say").map(|words| Line::Say(words.trim().to_owned()));
    say.or_else(|| line.strip_prefix("end ").map(|how| Line::End(how.to_owned())))
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    #[test]
    fn lines_come_when_they_are_complete() {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        let mut report = Report::open(file.path()).unwrap();
        assert_eq!(report.lines(), []);
        file.write_all(b"say up\r\nnoise\nsay tw").unwrap();
        assert_eq!(report.lines(), [Line::Say("up".to_owned())]);
        file.write_all(b"o words\nend status 1\n").unwrap();
        assert_eq!(report.lines(), [Line::Say("two words".to_owned()), Line::End("status 1".to_owned())]);
    }
}
