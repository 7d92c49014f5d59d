//! The key `cpus` as a manifest writes it: `"auto"`, `"auto:2"`, `"0,2-3"` or `[0, 2, 3]`.

use std::fmt;
use std::ops::Range;

use fido_core::topology::list;
use serde::de::{Deserialize, Deserializer, Error, SeqAccess, Visitor};
use toml::Spanned;

use super::Cpus;

pub(super) const FORM: &str = "\"auto\", \"auto:COUNT\", or processors as in \"0,2-3\" or [0, 2, 3]";

/// What stands there, not judged yet.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum RawCpus {
    Text(String),
    Numbers(Vec<Spanned<u32>>),
}

impl RawCpus {
    /// What it means, or what is wrong with it.
    pub(super) fn read(&self) -> Result<Cpus, String> {
        let text = match self {
            // Said nothing: as if the key were missing.
            Self::Numbers(numbers) if numbers.is_empty() => return Ok(Cpus::All),
            Self::Numbers(numbers) => return Ok(Cpus::List(numbers.iter().map(|cpu| *cpu.get_ref()).collect())),
            Self::Text(text) => text.trim(),
        };
        match text.strip_prefix("auto") {
            Some("") => return Ok(Cpus::Auto(1)),
            Some(rest) => {
                let count = rest.strip_prefix(':').and_then(|count| count.parse().ok());
                let shown = || text.chars().take(40).flat_map(char::escape_debug).collect::<String>();
                return count.map(Cpus::Auto).ok_or_else(|| format!("`{}`", shown()));
            }
            None => {}
        }
        list::parse(text).map(Cpus::List).map_err(|error| error.to_string())
    }

    /// Where an item stands, if they stand one by one.
    pub(super) fn item(&self, at: Option<usize>) -> Option<Range<usize>> {
        let Self::Numbers(numbers) = self else { return None };
        Some(numbers.get(at?)?.span())
    }
}

impl<'de> Deserialize<'de> for RawCpus {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Form;
        impl<'de> Visitor<'de> for Form {
            type Value = RawCpus;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(FORM)
            }
            fn visit_str<E: Error>(self, text: &str) -> Result<RawCpus, E> {
                Ok(RawCpus::Text(text.to_owned()))
            }
            fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<RawCpus, A::Error> {
                let mut numbers = Vec::new();
                while let Some(number) = items.next_element()? {
                    numbers.push(number);
                }
                Ok(RawCpus::Numbers(numbers))
            }
        }
        deserializer.deserialize_any(Form)
    }
}
