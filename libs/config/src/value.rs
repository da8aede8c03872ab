use std::{fmt, str::FromStr, time::Duration};

/// A type that a setting can have.
pub trait Value: Sized {
    /// A valid value, to complete the sentence "expected ...".
    const EXPECTED: &'static str;
    /// Whether the text of the value must never be shown.
    const SECRET: bool = false;

    /// Parses the value.
    ///
    /// # Errors
    /// Why the text is wrong, without quoting it.
    fn parse(text: &str) -> Result<Self, String>;
}

impl Value for String {
    const EXPECTED: &'static str = "text";

    fn parse(text: &str) -> Result<Self, String> {
        Ok(text.to_owned())
    }
}

impl Value for u16 {
    const EXPECTED: &'static str = "a port number from 0 (any free port) to 65535";

    fn parse(text: &str) -> Result<Self, String> {
        from_str(text)
    }
}

/// The longest time span, in milliseconds: ten years. Deadlines far above it have no representation in gRPC, nor the times to which
/// leases and deadlines lead in PostgreSQL, so that each call or statement with one would fail.
const MAX_MILLISECONDS: u64 = 10 * 8_760 * 3_600_000;

/// A time span: `250ms`, `5s`, `2m` or `1h`; a bare number counts milliseconds.
impl Value for Duration {
    const EXPECTED: &'static str = "a time span such as 250ms, 5s, 2m or 1h, greater than zero";

    fn parse(text: &str) -> Result<Self, String> {
        let digits = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
        let (number, unit) = text.split_at(digits);
        let number: u64 = from_str(number)?;
        let milliseconds = match unit {
            "" | "ms" => 1,
            "s" => 1_000,
            "m" => 60_000,
            "h" => 3_600_000,
            _ => return Err("its unit is not ms, s, m or h".to_owned()),
        };
        match number.checked_mul(milliseconds) {
            Some(0) => Err("it is zero".to_owned()),
            Some(total) if total <= MAX_MILLISECONDS => Ok(Self::from_millis(total)),
            _ => Err("it is more than ten years (87600h)".to_owned()),
        }
    }
}

/// A whole number from `MIN` to `MAX`, both included.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bounded<const MIN: u32, const MAX: u32>(u32);

impl<const MIN: u32, const MAX: u32> Bounded<MIN, MAX> {
    /// The number.
    pub fn get(self) -> u32 {
        self.0
    }

    /// The number as a `usize`.
    pub fn size(self) -> usize {
        self.0 as usize
    }
}

impl<const MIN: u32, const MAX: u32> Value for Bounded<MIN, MAX> {
    const EXPECTED: &'static str = "a whole number";

    fn parse(text: &str) -> Result<Self, String> {
        match from_str(text)? {
            number if number < MIN => Err(format!("it is less than {MIN}")),
            number if number > MAX => Err(format!("it is more than {MAX}")),
            number => Ok(Self(number)),
        }
    }
}

pub(crate) fn from_str<T: FromStr<Err: fmt::Display>>(text: &str) -> Result<T, String> {
    text.parse().map_err(|error: T::Err| error.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn time_spans_have_units() {
        assert_eq!(Duration::parse("250"), Ok(Duration::from_millis(250)));
        assert_eq!(Duration::parse("250ms"), Ok(Duration::from_millis(250)));
        assert_eq!(Duration::parse("2m"), Ok(Duration::from_secs(120)));
        assert_eq!(Duration::parse("87600h"), Ok(Duration::from_secs(10 * 365 * 24 * 3600)));
        for wrong in ["", "ms", "5 s", "-1s", "0s", "3d", "87601h", "100000000h", "18446744073709551615h"] {
            assert!(Duration::parse(wrong).is_err(), "{wrong:?}");
        }
    }

    #[test]
    fn bounds_are_included() {
        type Few = Bounded<1, 3>;
        assert_eq!(Few::parse("1").map(Few::get), Ok(1));
        assert_eq!(Few::parse("3").map(Few::get), Ok(3));
        assert_eq!(Few::parse("0"), Err("it is less than 1".to_owned()));
        assert_eq!(Few::parse("4"), Err("it is more than 3".to_owned()));
        assert!(Few::parse("two").is_err());
    }
}
