//! What can be wrong with a manifest, and how it is shown: where, the line itself, what was found, what was expected.

use std::fmt;
use std::io;
use std::ops::Range;

/// Columns of a source line that a frame shows; longer lines are cut around the place.
const FRAME_COLUMNS: usize = 120;

/// Why there is no manifest.
#[derive(Debug, thiserror::Error)]
pub enum ManifestError {
    /// The file cannot be read.
    #[error("cannot read the manifest {file}: {source}")]
    Read {
        /// The file.
        file: String,
        /// The operating system's reason.
        source: io::Error,
    },
    /// The file is no manifest, by its size alone.
    #[error("the manifest {file} has {bytes} bytes; the limit is {limit}", limit = super::MAX_TEXT_BYTES)]
    TooLong {
        /// The file.
        file: String,
        /// Its size.
        bytes: u64,
    },
    /// Something in it is wrong.
    #[error("{0}")]
    Wrong(Box<Wrong>),
}

/// Something wrong at a place of a text. Its `Display` is the whole report with a frame of the source line.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Wrong {
    /// The file's name.
    pub file: String,
    /// The line, from 1.
    pub line: usize,
    /// The column in characters, from 1.
    pub column: usize,
    /// What was found.
    pub what: String,
    /// What was expected; may be empty.
    pub expected: String,
    source_line: String,
    width: usize,
}

impl Wrong {
    /// Finds the place of the bytes `span` in `text`.
    pub(super) fn at(text: &str, file: &str, span: Range<usize>, what: String, expected: String) -> Box<Self> {
        let start = floor(text, span.start);
        let end = floor(text, span.end.max(start));
        let line_start = text[..start].rfind('\n').map_or(0, |at| at + 1);
        let line_end = text[start..].find('\n').map_or(text.len(), |at| start + at);
        Box::new(Self {
            file: file.to_owned(),
            line: text[..start].matches('\n').count() + 1,
            column: text[line_start..start].chars().count() + 1,
            what,
            expected,
            source_line: text[line_start..line_end].to_owned(),
            width: text[start..end.min(line_end)].chars().count().max(1),
        })
    }
}

/// The last character boundary at or before `at`.
fn floor(text: &str, at: usize) -> usize {
    let mut at = at.min(text.len());
    while !text.is_char_boundary(at) {
        at -= 1;
    }
    at
}

impl fmt::Display for Wrong {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let skipped = (self.column - 1).saturating_sub(FRAME_COLUMNS / 2);
        let shown: String = self.source_line.chars().skip(skipped).take(FRAME_COLUMNS).map(printable).collect();
        let indent = self.column - 1 - skipped;
        let width = self.width.min(FRAME_COLUMNS - indent.min(FRAME_COLUMNS - 1));
        let margin = " ".repeat(self.line.to_string().len());
        writeln!(f, "{}", self.what)?;
        writeln!(f, "{margin}--> {}:{}:{}", self.file, self.line, self.column)?;
        writeln!(f, "{margin} |")?;
        writeln!(f, "{} | {}", self.line, shown.trim_end())?;
        write!(f, "{margin} | {}{}", " ".repeat(indent), "^".repeat(width))?;
        if !self.expected.is_empty() {
            write!(f, "\n{margin} = expected {}", self.expected)?;
        }
        Ok(())
    }
}

/// A manifest may hold anything; a terminal should not be told to obey it.
fn printable(c: char) -> char {
    match c {
        '\t' => ' ',
        c if c.is_control() => '\u{fffd}',
        c => c,
    }
}

/// Which part of a manifest is meant.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Place {
    /// The appliance's name.
    Appliance,
    /// The fence deadline.
    FenceDeadline,
    /// A domain's name.
    Domain(usize),
    /// A key of a domain, or an item of the list there.
    DomainKey(usize, &'static str, Option<usize>),
    /// A whole link.
    Link(usize),
    /// A key of a link, or an item of the list there.
    LinkKey(usize, &'static str, Option<usize>),
}

/// Something wrong in a manifest, wherever it came from.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub struct Fault {
    /// Which part.
    pub place: Place,
    /// What was found.
    pub what: String,
    /// What was expected.
    pub expected: String,
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.place {
            Place::Appliance => write!(f, "the appliance's name")?,
            Place::FenceDeadline => write!(f, "the fence deadline")?,
            Place::Domain(index) => write!(f, "domain {}", index + 1)?,
            Place::DomainKey(index, key, _) => write!(f, "domain {}, `{key}`", index + 1)?,
            Place::Link(index) => write!(f, "link {}", index + 1)?,
            Place::LinkKey(index, key, _) => write!(f, "link {}, `{key}`", index + 1)?,
        }
        write!(f, ": {}; expected {}", self.what, self.expected)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_frame_points_at_the_place() {
        let text = "a = 1\nbäd = [\"x\", \"yy\"]\n";
        let at = text.find("\"yy\"").unwrap();
        let wrong = Wrong::at(text, "m.toml", at..at + 4, "no `yy`".into(), "one of: x".into());
        assert_eq!((wrong.line, wrong.column), (2, 13));
        let shown = wrong.to_string();
        let lines: Vec<_> = shown.lines().collect();
        assert_eq!(lines[1], " --> m.toml:2:13");
        assert_eq!(lines[3], "2 | bäd = [\"x\", \"yy\"]");
        assert_eq!(lines[4], "  |             ^^^^");
        assert_eq!(lines[5], "  = expected one of: x");
    }

    #[test]
    fn wild_spans_and_wild_lines_are_shown_somehow() {
        let long = format!("{}\u{1b}[31m{}", "x".repeat(10_000), "é".repeat(10_000));
        for (start, end) in [(0, 0), (10_001, 10_009), (29_999, 30_000), (usize::MAX, usize::MAX), (20_000, 3)] {
            let wrong = Wrong::at(&long, "long", start..end, "w".into(), String::new());
            assert!(wrong.to_string().chars().count() < 1000);
            assert!(!wrong.to_string().contains('\u{1b}'));
        }
        assert_eq!(Wrong::at("", "empty", 0..0, "w".into(), String::new()).column, 1);
    }
}
