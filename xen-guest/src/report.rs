//! How results come out of the testbed's emulated machine: frames on its second serial port.
//!
//! A frame is a line `#fido KIND NAME LENGTH CHECKSUM` and that many bytes. A serial port needs no driver that could
//! fail together with what is tested; the length and the checksum tell a whole frame from a torn one.

use std::io::{self, Write};

const MARK: &str = "#fido";

/// The longest name of a frame, in bytes.
pub const NAME_MAX: usize = 100;

/// The most bytes in one frame.
pub const BODY_MAX: usize = 16 << 20;

/// The longest line before a body: mark, kind, name, length, checksum, the blanks between and the line's end.
const HEAD_MAX: usize = MARK.len() + 6 + NAME_MAX + 8 + 8 + 5;

/// What a frame is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A line for whoever waits: what is being done.
    Note,
    /// A file for the folder of logs.
    File,
    /// A scenario has passed. The body says what it found.
    Passed,
    /// A scenario has failed. The body says why.
    Failed,
    /// Nothing comes after it.
    End,
}

impl Kind {
    const ALL: [(Self, &str); 5] = [
        (Self::Note, "note"),
        (Self::File, "file"),
        (Self::Passed, "passed"),
        (Self::Failed, "failed"),
        (Self::End, "end"),
    ];

    fn word(self) -> &'static str {
        Self::ALL.iter().find(|(kind, _)| *kind == self).map_or("end", |(_, word)| word)
    }
}

/// One message.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Frame {
    /// What it is.
    pub kind: Kind,
    /// The scenario or file that it is about: letters, digits, `.`, `_` and `-`.
    pub name: String,
    /// What it says.
    pub body: Vec<u8>,
}

/// What is wrong with the bytes that came.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum FrameError {
    /// A line that does not begin a frame.
    #[error("the report contains `{0}` where a frame should begin")]
    NoFrame(String),
    /// A body that was not transmitted as it was sent.
    #[error("the frame `{0}` of the report was damaged on its way")]
    Damaged(String),
}

/// A name that a frame can have, made from any text.
#[must_use]
pub fn plain_name(text: &str) -> String {
    let plain = |c: char| if c.is_ascii_alphanumeric() || "._-".contains(c) { c } else { '-' };
    let name: String = text.chars().map(plain).take(NAME_MAX).collect();
    if name.chars().all(|c| c == '.') { "-".to_owned() } else { name }
}

/// Writes a frame. A body longer than [`BODY_MAX`] loses its beginning.
///
/// # Errors
/// The writer's.
pub fn write(to: &mut impl Write, kind: Kind, name: &str, body: &[u8]) -> io::Result<()> {
    let body = &body[body.len().saturating_sub(BODY_MAX)..];
    let name = plain_name(name);
    writeln!(to, "{MARK} {} {name} {} {:08x}", kind.word(), body.len(), checksum(body))?;
    to.write_all(body)?;
    to.flush()
}

/// FNV-1a (Fowler, Noll and Vo), 32 bits: against damage, not against anybody.
fn checksum(bytes: &[u8]) -> u32 {
    bytes.iter().fold(0x811c_9dc5, |hash, byte| (hash ^ u32::from(*byte)).wrapping_mul(0x0100_0193))
}

/// Puts frames together from bytes as they arrive.
#[derive(Debug, Default)]
pub struct Reader {
    bytes: Vec<u8>,
}

impl Reader {
    /// Takes bytes that have arrived.
    pub fn push(&mut self, bytes: &[u8]) {
        self.bytes.extend_from_slice(bytes);
    }

    /// The next frame, or `None` if it has not arrived in full.
    ///
    /// # Errors
    /// Bytes that are no frame. There is no next frame after an error.
    pub fn next_frame(&mut self) -> Result<Option<Frame>, FrameError> {
        let Some(end) = self.bytes.iter().take(HEAD_MAX).position(|byte| *byte == b'\n') else {
            let hopeless = self.bytes.len() >= HEAD_MAX;
            return if hopeless { Err(no_frame(&self.bytes)) } else { Ok(None) };
        };
        let line = String::from_utf8_lossy(&self.bytes[..end]).into_owned();
        let (kind, name, length, sum) = head(&line).ok_or_else(|| no_frame(line.as_bytes()))?;
        let begin = end + 1;
        if self.bytes.len() < begin + length {
            return Ok(None);
        }
        let body = self.bytes[begin..begin + length].to_vec();
        if checksum(&body) != sum {
            return Err(FrameError::Damaged(name));
        }
        self.bytes.drain(..begin + length);
        Ok(Some(Frame { kind, name, body }))
    }
}

fn head(line: &str) -> Option<(Kind, String, usize, u32)> {
    let mut words = line.split(' ');
    if words.next() != Some(MARK) {
        return None;
    }
    let kind = words.next()?;
    let (kind, _) = Kind::ALL.into_iter().find(|(_, word)| *word == kind)?;
    let name = words.next().filter(|name| !name.is_empty() && plain_name(name) == *name)?;
    let length = words.next()?.parse().ok().filter(|length| *length <= BODY_MAX)?;
    let sum = u32::from_str_radix(words.next()?, 16).ok()?;
    words.next().is_none().then(|| (kind, name.to_owned(), length, sum))
}

fn no_frame(bytes: &[u8]) -> FrameError {
    let text = String::from_utf8_lossy(&bytes[..bytes.len().min(HEAD_MAX)]);
    FrameError::NoFrame(text.chars().flat_map(char::escape_default).take(80).collect())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn written(frames: &[Frame]) -> Vec<u8> {
        let mut bytes = Vec::new();
        for Frame { kind, name, body } in frames {
            write(&mut bytes, *kind, name, body).unwrap();
        }
        bytes
    }

    fn frame(kind: Kind, name: &str, body: &[u8]) -> Frame {
        Frame { kind, name: name.to_owned(), body: body.to_vec() }
    }

    #[test]
    fn frames_arrive_as_they_were_sent_however_they_are_cut() {
        let frames = [
            frame(Kind::Note, "boot", b"two guests\n#fido end x 0 0\n"),
            frame(Kind::File, "xl.log", &[0, 255, b'\n', 13]),
            frame(Kind::Failed, "boot", b""),
            frame(Kind::End, "-", b""),
        ];
        let bytes = written(&frames);
        for size in [1, 2, 7, bytes.len()] {
            let mut reader = Reader::default();
            let mut came = Vec::new();
            for piece in bytes.chunks(size) {
                reader.push(piece);
                while let Some(frame) = reader.next_frame().unwrap() {
                    came.push(frame);
                }
            }
            assert_eq!(came, frames);
        }
    }

    #[test]
    fn the_longest_name_fits_and_one_more_character_is_cut() {
        let long = "n".repeat(NAME_MAX);
        let mut reader = Reader::default();
        let huge = vec![b'x'; BODY_MAX];
        reader.push(&written(&[frame(Kind::Passed, &long, &huge), frame(Kind::Failed, &format!("{long}m"), b"")]));
        assert_eq!(reader.next_frame(), Ok(Some(frame(Kind::Passed, &long, &huge))));
        assert_eq!(reader.next_frame(), Ok(Some(frame(Kind::Failed, &long, b""))));
        let mut longer = huge;
        longer[0] = b'a';
        longer.push(b'z');
        reader.push(&written(&[frame(Kind::File, "x", &longer)]));
        let body = reader.next_frame().unwrap().unwrap().body;
        assert_eq!((body.len(), body.first(), body.last()), (BODY_MAX, Some(&b'x'), Some(&b'z')));
    }

    #[test]
    fn what_is_no_frame_is_an_error_and_not_waited_for() {
        let refused = |bytes: &[u8]| {
            let mut reader = Reader::default();
            reader.push(bytes);
            reader.next_frame().unwrap_err()
        };
        assert!(matches!(refused(b"(XEN) hello\n"), FrameError::NoFrame(text) if text == "(XEN) hello"));
        assert!(matches!(refused(&[b'x'; HEAD_MAX]), FrameError::NoFrame(_)));
        assert!(matches!(refused(b"#fido file ../x 0 811c9dc5\n"), FrameError::NoFrame(_)));
        assert!(matches!(refused(b"#fido file .. 0 811c9dc5\n"), FrameError::NoFrame(_)));
        assert!(matches!(refused(b"#fido what x 0 811c9dc5\n"), FrameError::NoFrame(_)));
        let line = format!("#fido file x {} 00000000\n", BODY_MAX + 1);
        assert!(matches!(refused(line.as_bytes()), FrameError::NoFrame(_)));
        assert!(matches!(refused(b"#fido file x 1 00000000\ny"), FrameError::Damaged(name) if name == "x"));
    }

    #[test]
    fn names_are_made_harmless() {
        assert_eq!(plain_name("guest a/b.log"), "guest-a-b.log");
        assert_eq!(plain_name(".."), "-");
        assert_eq!(plain_name(""), "-");
    }

    proptest! {
        #[test]
        fn no_bytes_make_the_reader_panic(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
            let mut reader = Reader::default();
            reader.push(b"#fido ");
            reader.push(&bytes);
            while let Ok(Some(_)) = reader.next_frame() {}
        }
    }
}
