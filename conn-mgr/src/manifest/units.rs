//! Sizes and time spans as a manifest writes them: `"64MiB"`, `4096`, `"10ms"`.

use std::fmt;
use std::time::Duration;

use serde::de::{Deserialize, Deserializer, Error, Visitor};

use super::MAX_DURATION;

/// A number of bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Size(pub(super) u64);

/// A time span.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Span(pub(super) Duration);

const SIZE_FORM: &str = "bytes as an integer, or a string such as \"512KiB\", \"64MiB\" or \"2GiB\"";
const SPAN_FORM: &str = "a string such as \"10ms\", \"30s\" or \"5min\", at most 24 hours";

/// Digits and the unit behind them.
fn split(text: &str) -> Option<(u64, &str)> {
    let text = text.trim();
    let digits = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (number, unit) = text.split_at(digits);
    Some((number.parse().ok()?, unit.trim()))
}

fn parse_size(text: &str) -> Option<u64> {
    let (number, unit) = split(text)?;
    let shift = match unit {
        "" | "B" => 0,
        "KiB" => 10,
        "MiB" => 20,
        "GiB" => 30,
        _ => return None,
    };
    number.checked_mul(1 << shift)
}

fn parse_span(text: &str) -> Option<Duration> {
    let (number, unit) = split(text)?;
    let millis = match unit {
        "ms" => 1,
        "s" => 1000,
        "min" => 60_000,
        "h" => 3_600_000,
        _ => return None,
    };
    let span = Duration::from_millis(number.checked_mul(millis)?);
    (span <= MAX_DURATION).then_some(span)
}

impl<'de> Deserialize<'de> for Size {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Form;
        impl Visitor<'_> for Form {
            type Value = Size;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(SIZE_FORM)
            }
            fn visit_i64<E: Error>(self, value: i64) -> Result<Size, E> {
                u64::try_from(value).map(Size).map_err(|_| E::custom(format!("`{value}` bytes, expected {SIZE_FORM}")))
            }
            fn visit_str<E: Error>(self, text: &str) -> Result<Size, E> {
                let error = || E::custom(format!("`{}` is not a size, expected {SIZE_FORM}", text.escape_debug()));
                parse_size(text).map(Size).ok_or_else(error)
            }
        }
        deserializer.deserialize_any(Form)
    }
}

impl<'de> Deserialize<'de> for Span {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Form;
        impl Visitor<'_> for Form {
            type Value = Span;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(SPAN_FORM)
            }
            fn visit_str<E: Error>(self, text: &str) -> Result<Span, E> {
                let error = || E::custom(format!("`{}` is not a time span, expected {SPAN_FORM}", text.escape_debug()));
                parse_span(text).map(Span).ok_or_else(error)
            }
        }
        deserializer.deserialize_any(Form)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn sizes_and_spans() {
        assert_eq!(parse_size("64MiB"), Some(64 << 20));
        assert_eq!(parse_size("1 KiB"), Some(1024));
        assert_eq!(parse_size("17"), Some(17));
        assert_eq!(parse_size("17179869183GiB"), Some(17_179_869_183 << 30));
        for bad in ["", "MiB", "17179869184GiB", "1MB", "-1KiB", "1.5MiB", "99999999999999999999", "1 Ki B"] {
            assert_eq!(parse_size(bad), None, "{bad}");
        }
        assert_eq!(parse_span("10ms"), Some(Duration::from_millis(10)));
        assert_eq!(parse_span("24h"), Some(MAX_DURATION));
        for bad in ["25h", "86400001ms", "10", "s", "18446744073709551615h"] {
            assert_eq!(parse_span(bad), None, "{bad}");
        }
    }

    proptest! {
        #[test]
        fn any_text_is_judged(text: String) {
            let _ = (parse_size(&text), parse_span(&text));
        }
    }
}
