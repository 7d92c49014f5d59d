//! Options of a description, read as what they have to be.

use std::fmt::Display;
use std::str::FromStr;
use std::time::Duration;

use super::OpenError;
use super::description::Description;
use crate::layer::delay::Spread;

/// The options of one device; each is taken once, and what is left over at the end is wrong.
#[derive(Debug)]
pub struct Options<'a> {
    device: &'a Description,
    left: Vec<&'a (String, String)>,
}

impl<'a> Options<'a> {
    /// All options of a device.
    pub fn of(device: &'a Description) -> Self {
        Self { device, left: device.options.iter().collect() }
    }

    /// The error that something about the device is wrong.
    pub fn error(&self, what: impl Into<String>, reason: impl Display) -> OpenError {
        OpenError::Option { kind: self.device.kind.clone(), what: what.into(), reason: reason.to_string() }
    }

    /// An option as it stands there.
    pub fn text(&mut self, key: &str) -> Option<&'a str> {
        let at = self.left.iter().position(|(found, _)| found == key)?;
        Some(&self.left.remove(at).1)
    }

    /// An option that `parse` reads.
    ///
    /// # Errors
    /// [`OpenError::Option`] with what `parse` says.
    pub fn read<T>(
        &mut self,
        key: &str,
        parse: impl FnOnce(&str) -> Result<T, String>,
    ) -> Result<Option<T>, OpenError> {
        let Some(text) = self.text(key) else { return Ok(None) };
        parse(text).map(Some).map_err(|reason| self.error(format!("{key}={text}"), reason))
    }

    /// A whole number.
    ///
    /// # Errors
    /// [`OpenError::Option`].
    pub fn number<T: FromStr<Err: Display>>(&mut self, key: &str) -> Result<Option<T>, OpenError> {
        self.read(key, |text| text.parse().map_err(|error: T::Err| error.to_string()))
    }

    /// A number of bytes, see [`size`].
    ///
    /// # Errors
    /// [`OpenError::Option`].
    pub fn size(&mut self, key: &str) -> Result<Option<u64>, OpenError> {
        self.read(key, size)
    }

    /// `yes` or `no`; what is not there is `no`.
    ///
    /// # Errors
    /// [`OpenError::Option`].
    pub fn flag(&mut self, key: &str) -> Result<bool, OpenError> {
        let flag = self.read(key, |text| match text {
            "yes" => Ok(true),
            "no" => Ok(false),
            _ => Err("it must be yes or no".into()),
        })?;
        Ok(flag.unwrap_or(false))
    }

    /// The size that stands behind the colon.
    ///
    /// # Errors
    /// [`OpenError::Option`].
    pub fn size_text(&self) -> Result<u64, OpenError> {
        size(&self.device.text).map_err(|reason| self.error(format!("{:?}", self.device.text), reason))
    }

    /// Every option has been taken.
    ///
    /// # Errors
    /// [`OpenError::Option`] for the first that has not.
    pub fn done(self) -> Result<(), OpenError> {
        match self.left.first() {
            None => Ok(()),
            Some((key, _)) => Err(self.error(key, "there is no such option")),
        }
    }
}

/// Takes a number and its unit apart.
fn split(text: &str) -> (&str, &str) {
    let end = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (number, unit) = text.split_at(end);
    (number, unit.trim())
}

/// A number of bytes: `4096`, `64KiB`, `1GiB`.
///
/// # Errors
/// What is wrong.
pub fn size(text: &str) -> Result<u64, String> {
    let (number, unit) = split(text);
    let shift = match unit {
        "" | "B" => 0,
        "KiB" => 10,
        "MiB" => 20,
        "GiB" => 30,
        "TiB" => 40,
        _ => return Err("it must be a number of bytes, or one with KiB, MiB, GiB or TiB".into()),
    };
    let number: u64 = number.parse().map_err(|_| "it must begin with a whole number".to_owned())?;
    number.checked_mul(1 << shift).ok_or_else(|| "it is larger than any device".into())
}

/// A time: `50us`, `10ms`, `2s`.
///
/// # Errors
/// What is wrong.
pub fn time(text: &str) -> Result<Duration, String> {
    /// The longest time: a day.
    const MOST: Duration = Duration::from_secs(24 * 60 * 60);
    let (number, unit) = split(text);
    let micros: u64 = match unit {
        "us" => 1,
        "ms" => 1000,
        "s" => 1_000_000,
        _ => return Err("it must be a number with us, ms or s".into()),
    };
    let number: u64 = number.parse().map_err(|_| "it must begin with a whole number".to_owned())?;
    let time = number.checked_mul(micros).map(Duration::from_micros).filter(|time| *time <= MOST);
    time.ok_or_else(|| "it is longer than a day".into())
}

/// A time, or two between which it varies: `1ms`, `1ms..5ms`.
///
/// # Errors
/// What is wrong.
pub fn spread(text: &str) -> Result<Spread, String> {
    let Some((least, most)) = text.split_once("..") else { return time(text).map(Spread::of) };
    let (least, most) = (time(least.trim())?, time(most.trim())?);
    if most < least {
        return Err("the first time must not be longer than the second".into());
    }
    Ok(Spread { least, most })
}

/// A chance, in millionths: `1%`, `0.05%`.
///
/// # Errors
/// What is wrong.
pub fn chance(text: &str) -> Result<u32, String> {
    let wrong = || "it must be 0% to 100%, with at most four decimals".to_owned();
    let percent = text.strip_suffix('%').ok_or_else(wrong)?;
    let (whole, part) = percent.split_once('.').unwrap_or((percent, "0"));
    let digits = |text: &str| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    if !digits(whole) || !digits(part) || part.len() > 4 {
        return Err(wrong());
    }
    let whole: u32 = whole.parse().map_err(|_| wrong())?;
    let part: u32 = format!("{part:0<4}").parse().map_err(|_| wrong())?;
    let millionths = whole.checked_mul(10_000).and_then(|whole| whole.checked_add(part));
    millionths.filter(|millionths| *millionths <= 1_000_000).ok_or_else(wrong)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_with_units() {
        assert_eq!(size("4096"), Ok(4096));
        assert_eq!(size("3 MiB"), Ok(3 << 20));
        assert_eq!(size("16777215TiB"), Ok(16_777_215 << 40));
        for wrong in ["", "KiB", "1.5GiB", "-1", "1kB", "16777216TiB", "99999999999999999999"] {
            assert!(size(wrong).is_err(), "{wrong:?}");
        }
        assert_eq!(time("50us"), Ok(Duration::from_micros(50)));
        assert_eq!(time("86400s"), Ok(Duration::from_secs(86400)));
        for wrong in ["", "1", "ms", "86401s", "99999999999999999999s", "18446744073709551615s"] {
            assert!(time(wrong).is_err(), "{wrong:?}");
        }
        let ms = Duration::from_millis;
        assert_eq!(spread("1ms..5ms"), Ok(Spread { least: ms(1), most: ms(5) }));
        assert_eq!(spread("2ms"), Ok(Spread::of(ms(2))));
        assert!(spread("5ms..1ms").is_err() && spread("..").is_err());
    }

    #[test]
    fn chances() {
        for (text, millionths) in
            [("0%", 0), ("100%", 1_000_000), ("1%", 10_000), ("0.05%", 500), ("12.3456%", 123_456)]
        {
            assert_eq!(chance(text), Ok(millionths));
        }
        for wrong in ["", "%", "1", "100.0001%", "1.%", ".5%", "0.00001%", "-1%", "+1%", "4294967296%"] {
            assert!(chance(wrong).is_err(), "{wrong:?}");
        }
    }
}
