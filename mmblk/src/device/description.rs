//! The form of a device's description.
//!
//! ```text
//! device  =  kind ":" text { "," key "=" value }
//!         |  kind "(" [ key "=" value { "," key "=" value } ";" ] device { ";" device } ")"
//! ```
//!
//! The first is a device that stands for itself: `file:/srv/disk.img,block=512`. The second is made of others: a layer
//! around one, as in `trace(memory:64MiB)`, or an array of several. Kinds and keys are letters, digits and hyphens. Texts
//! and values are anything but `,` `;` `(` `)` and `\`, which a `\` before them makes plain. Spaces around a part do not
//! count. What kinds there are, and what their options mean, is not known here.

use std::fmt;

/// The longest description, in bytes.
pub const MAX_TEXT_BYTES: usize = 4096;
/// How deep devices may be made of devices.
pub const MAX_NESTING: usize = 16;
/// Of how many others one may be made.
pub const MAX_MEMBERS: usize = 64;

/// A description, taken apart.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Description {
    /// What kind of device it is.
    pub kind: String,
    /// What follows the colon; empty for what is made of others.
    pub text: String,
    /// The options in their order.
    pub options: Vec<(String, String)>,
    /// The devices that it is made of.
    pub members: Vec<Self>,
}

/// A text that is no description.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("the device's description, at character {at}: {reason}")]
pub struct DescriptionError {
    /// Which character is wrong, counted from 1.
    pub at: usize,
    /// What is wrong with it.
    pub reason: String,
}

impl Description {
    /// Takes a text apart.
    ///
    /// # Errors
    /// [`DescriptionError`] with the place.
    pub fn parse(text: &str) -> Result<Self, DescriptionError> {
        if text.len() > MAX_TEXT_BYTES {
            let reason = format!("{} bytes; the limit is {MAX_TEXT_BYTES}", text.len());
            return Err(DescriptionError { at: 1, reason });
        }
        let mut parser = Parser { text: text.chars().collect(), at: 0 };
        let description = parser.device(0)?;
        match parser.peek() {
            None => Ok(description),
            Some(found) => Err(parser.error(format!("{found:?} behind the end of the device"))),
        }
    }
}

struct Parser {
    text: Vec<char>,
    at: usize,
}

impl Parser {
    fn peek(&self) -> Option<char> {
        self.text.get(self.at).copied()
    }

    fn error(&self, reason: impl Into<String>) -> DescriptionError {
        DescriptionError { at: self.at + 1, reason: reason.into() }
    }

    fn skip_spaces(&mut self) {
        while self.peek().is_some_and(char::is_whitespace) {
            self.at += 1;
        }
    }

    /// Takes the next character if it is that one.
    fn takes(&mut self, wanted: char) -> bool {
        let found = self.peek() == Some(wanted);
        self.at += usize::from(found);
        found
    }

    fn name(&mut self, what: &str) -> Result<String, DescriptionError> {
        self.skip_spaces();
        let rest = self.text.get(self.at..).unwrap_or_default();
        let name: String = rest.iter().take_while(|c| c.is_ascii_alphanumeric() || **c == '-').collect();
        if name.is_empty() {
            let found = self.peek().map_or("the end".into(), |found| format!("{found:?}"));
            return Err(self.error(format!("{what} should stand here, not {found}")));
        }
        self.at += name.len();
        self.skip_spaces();
        Ok(name)
    }

    /// A text or value, up to what ends it.
    fn value(&mut self) -> Result<String, DescriptionError> {
        self.skip_spaces();
        let mut value = String::new();
        // Where the part ends that trailing spaces do not count in.
        let mut kept = 0;
        while let Some(found) = self.peek() {
            let is_plain = match found {
                ',' | ';' | ')' => break,
                '(' => return Err(self.error("a parenthesis within a text; put \\ before it")),
                '\\' => {
                    self.at += 1;
                    true
                }
                found => !found.is_whitespace(),
            };
            let Some(found) = self.peek() else { return Err(self.error("nothing follows the last \\")) };
            value.push(found);
            self.at += 1;
            if is_plain {
                kept = value.len();
            }
        }
        value.truncate(kept);
        Ok(value)
    }

    fn device(&mut self, depth: usize) -> Result<Description, DescriptionError> {
        if depth > MAX_NESTING {
            return Err(self.error(format!("devices within devices, deeper than {MAX_NESTING}")));
        }
        let kind = self.name("a kind of device")?;
        let mut device = Description { kind, text: String::new(), options: Vec::new(), members: Vec::new() };
        if self.takes(':') {
            device.text = self.value()?;
            while self.takes(',') {
                let option = self.option()?;
                self.add(&mut device, option)?;
            }
        } else if self.takes('(') {
            self.made_of(&mut device, depth)?;
        } else {
            return Err(self.error(format!("':' or '(' should follow {:?}", device.kind)));
        }
        Ok(device)
    }

    /// What stands between parentheses.
    fn made_of(&mut self, device: &mut Description, depth: usize) -> Result<(), DescriptionError> {
        if self.is_option() {
            loop {
                let option = self.option()?;
                self.add(device, option)?;
                if !self.takes(',') {
                    break;
                }
            }
            if !self.takes(';') {
                return Err(self.error("';' should stand here, and behind it what the device is made of"));
            }
        }
        loop {
            if device.members.len() == MAX_MEMBERS {
                return Err(self.error(format!("a device made of more than {MAX_MEMBERS}")));
            }
            device.members.push(self.device(depth + 1)?);
            self.skip_spaces();
            if self.takes(')') {
                self.skip_spaces();
                return Ok(());
            }
            if !self.takes(';') {
                return Err(self.error("';' or ')' should stand here"));
            }
        }
    }

    /// Whether an option comes next, and not a device.
    fn is_option(&mut self) -> bool {
        let at = self.at;
        let is_option = self.name("").is_ok() && self.peek() == Some('=');
        self.at = at;
        is_option
    }

    fn option(&mut self) -> Result<(String, String), DescriptionError> {
        let key = self.name("an option")?;
        if !self.takes('=') {
            return Err(self.error(format!("'=' should follow {key:?}")));
        }
        Ok((key, self.value()?))
    }

    fn add(&self, device: &mut Description, option: (String, String)) -> Result<(), DescriptionError> {
        if device.options.iter().any(|(key, _)| *key == option.0) {
            return Err(self.error(format!("{:?} for the second time", option.0)));
        }
        device.options.push(option);
        Ok(())
    }
}

/// The description in its own form: parsing it again gives the same.
impl fmt::Display for Description {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let options: Vec<_> = self.options.iter().map(|(key, value)| format!("{key}={}", Escaped(value))).collect();
        if self.members.is_empty() {
            write!(f, "{}:{}", self.kind, Escaped(&self.text))?;
            return options.iter().try_for_each(|option| write!(f, ",{option}"));
        }
        write!(f, "{}({}", self.kind, options.join(","))?;
        for (index, member) in self.members.iter().enumerate() {
            let separator = if index > 0 || !options.is_empty() { "; " } else { "" };
            write!(f, "{separator}{member}")?;
        }
        f.write_str(")")
    }
}

/// A text with `\` where it needs one.
struct Escaped<'a>(&'a str);

impl fmt::Display for Escaped<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.chars().try_for_each(|c| match c {
            ',' | ';' | '(' | ')' | '\\' => write!(f, "\\{c}"),
            c if c.is_whitespace() => write!(f, "\\{c}"),
            c => write!(f, "{c}"),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn parse(text: &str) -> Description {
        Description::parse(text).unwrap_or_else(|error| panic!("{text:?}: {error}"))
    }

    #[test]
    fn a_device_that_stands_for_itself() {
        let device = parse(r" file : /srv/a\,b\ \(x\).img , block=512,create = 1 GiB ");
        assert_eq!(device.kind, "file");
        assert_eq!(device.text, "/srv/a,b (x).img");
        let options = [("block".to_owned(), "512".to_owned()), ("create".into(), "1 GiB".into())];
        assert_eq!(device.options, options);
        let nbd = parse("nbd:unix:/run/x.sock,export=a=b");
        assert_eq!((&*nbd.text, &*nbd.options[0].1), ("unix:/run/x.sock", "a=b"));
    }

    #[test]
    fn devices_made_of_others() {
        let device = parse("raid5( chunk=64KiB ; file:a,block=512; delay(memory:1MiB) ;null:1GiB)");
        assert_eq!(device.options, [("chunk".to_owned(), "64KiB".to_owned())]);
        let kinds: Vec<_> = device.members.iter().map(|member| &*member.kind).collect();
        assert_eq!(kinds, ["file", "delay", "null"]);
        assert_eq!(device.members[1].members[0].text, "1MiB");
        assert_eq!(parse(&device.to_string()), device);
    }

    #[test]
    fn what_is_wrong_is_named_with_its_place() {
        let error = |text: &str| Description::parse(text).unwrap_err();
        for (text, at, part) in [
            ("", 1, "kind of device"),
            ("file", 5, "':' or '('"),
            ("file:a,b", 9, "'='"),
            ("file:a,b=1,b=2", 15, "second time"),
            ("file:a)", 7, "behind the end"),
            ("file:a(b", 7, "parenthesis"),
            ("file:a\\", 8, "nothing follows"),
            ("trace()", 7, "kind of device"),
            ("trace(a=1)", 10, "';'"),
            ("trace(file:a", 13, "';' or ')'"),
            ("trace(file:a;", 14, "kind of device"),
        ] {
            let error = error(text);
            assert!(error.at == at && error.reason.contains(part), "{text:?}: {error}");
        }
    }

    #[test]
    fn at_the_limits_and_one_past_them() {
        let nested = |depth| format!("{}null:1{}", "a(".repeat(depth), ")".repeat(depth));
        assert!(Description::parse(&nested(MAX_NESTING)).is_ok());
        assert!(Description::parse(&nested(MAX_NESTING + 1)).is_err());
        let members = |count| format!("a({})", vec!["null:1"; count].join(";"));
        assert!(Description::parse(&members(MAX_MEMBERS)).is_ok());
        assert!(Description::parse(&members(MAX_MEMBERS + 1)).is_err());
        let long = |len: usize| format!("file:{}", "a".repeat(len - 5));
        assert!(Description::parse(&long(MAX_TEXT_BYTES)).is_ok());
        assert!(Description::parse(&long(MAX_TEXT_BYTES + 1)).is_err());
    }

    proptest! {
        #[test]
        fn anything_is_parsed_or_refused(text in "[a-c:,;=()\\\\ é]{0,40}") {
            // It is refused, or says the same when it is written again.
            if let Ok(description) = Description::parse(&text) {
                let again = description.to_string();
                prop_assert_eq!(Description::parse(&again), Ok(description), "{:?} as {:?}", text, again);
            }
        }
    }
}
