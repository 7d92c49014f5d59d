//! Processor lists as the kernel and people write them: `0,2-3`.

use std::fmt::Write;

/// The highest processor number that is understood: what the kernel's fixed-size affinity sets can name.
pub const MAX_CPU: u32 = 1023;

/// The longest part of a wrong list that an error repeats, in characters.
const SHOWN: usize = 40;

/// What is wrong with a list.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ListError {
    /// Something else where a number should be.
    #[error("`{0}` is not a processor number")]
    NotANumber(String),
    /// A range whose end is before its beginning.
    #[error("the range {first}-{last} goes backwards")]
    Backwards {
        /// Where it begins.
        first: u32,
        /// Where it ends.
        last: u32,
    },
    /// A number beyond [`MAX_CPU`].
    #[error("processor {0} is beyond {MAX_CPU}")]
    TooLarge(String),
    /// A number that comes again.
    #[error("processor {0} twice")]
    Twice(u32),
}

/// The processors that a list names, in rising order. A blank list names none.
///
/// # Errors
/// [`ListError`] with the part that is wrong.
pub fn parse(text: &str) -> Result<Vec<u32>, ListError> {
    let text = text.trim();
    let mut named = [false; MAX_CPU as usize + 1];
    if !text.is_empty() {
        for part in text.split(',') {
            let (first, last) = match part.split_once('-') {
                Some((first, last)) => (number(first)?, number(last)?),
                None => (number(part)?, number(part)?),
            };
            if last < first {
                return Err(ListError::Backwards { first, last });
            }
            for cpu in first..=last {
                if std::mem::replace(&mut named[cpu as usize], true) {
                    return Err(ListError::Twice(cpu));
                }
            }
        }
    }
    Ok((0..=MAX_CPU).filter(|&cpu| named[cpu as usize]).collect())
}

fn number(text: &str) -> Result<u32, ListError> {
    let text = text.trim();
    let shown = || text.chars().take(SHOWN).flat_map(char::escape_debug).collect();
    if text.is_empty() || !text.bytes().all(|byte| byte.is_ascii_digit()) {
        return Err(ListError::NotANumber(shown()));
    }
    text.parse().ok().filter(|&cpu| cpu <= MAX_CPU).ok_or_else(|| ListError::TooLarge(shown()))
}

/// A list of processors, which must be in rising order, as the kernel writes it; `-` for none.
pub fn format(cpus: &[u32]) -> String {
    let mut text = String::new();
    let mut at = 0;
    while let Some(&first) = cpus.get(at) {
        // Wider than the numbers, so that the one expected after the largest exists.
        let expected = u64::from(first)..;
        let run = cpus[at..].iter().zip(expected).take_while(|(cpu, expected)| u64::from(**cpu) == *expected).count();
        let comma = if text.is_empty() { "" } else { "," };
        // Writing to a string does not fail.
        let _ = match run {
            1 => write!(text, "{comma}{first}"),
            _ => write!(text, "{comma}{first}-{}", cpus[at + run - 1]),
        };
        at += run;
    }
    if text.is_empty() { "-".into() } else { text }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test that cannot go on panics")]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn lists_are_read_and_written() {
        for (text, cpus, again) in [
            ("0", vec![0], "0"),
            ("0-3\n", vec![0, 1, 2, 3], "0-3"),
            ("8,0-1, 3", vec![0, 1, 3, 8], "0-1,3,8"),
            ("1023", vec![1023], "1023"),
            ("5-5", vec![5], "5"),
            (" \n", vec![], "-"),
        ] {
            assert_eq!(parse(text).unwrap(), cpus, "{text:?}");
            assert_eq!(format(&cpus), again);
        }
    }

    #[test]
    fn the_largest_numbers_are_written() {
        assert_eq!(format(&[u32::MAX]), "4294967295");
        assert_eq!(format(&[7, u32::MAX - 1, u32::MAX]), "7,4294967294-4294967295");
    }

    #[test]
    fn what_is_wrong_is_named() {
        assert_eq!(parse("0,x"), Err(ListError::NotANumber("x".into())));
        assert_eq!(parse("0,"), Err(ListError::NotANumber(String::new())));
        assert_eq!(parse("-1"), Err(ListError::NotANumber(String::new())));
        assert_eq!(parse("+1"), Err(ListError::NotANumber("+1".into())));
        assert_eq!(parse("3-1"), Err(ListError::Backwards { first: 3, last: 1 }));
        assert_eq!(parse("1024"), Err(ListError::TooLarge("1024".into())));
        assert_eq!(parse("0-99999999999"), Err(ListError::TooLarge("99999999999".into())));
        assert_eq!(parse("0-3,2"), Err(ListError::Twice(2)));
        let long = parse(&"\u{1b}".repeat(10_000)).unwrap_err().to_string();
        assert!(long.len() < 400 && !long.contains('\u{1b}'), "{long}");
    }

    proptest! {
        #[test]
        fn any_text_is_judged(text: String) {
            let _ = parse(&text);
        }

        #[test]
        fn what_is_written_is_read(cpus in proptest::collection::btree_set(0..=MAX_CPU, 1..40)) {
            let cpus: Vec<u32> = cpus.into_iter().collect();
            prop_assert_eq!(parse(&format(&cpus)).unwrap(), cpus);
        }
    }
}
