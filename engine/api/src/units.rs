//! Sizes and durations as people write them.
//!
//! Invariants:
//! * Units of size are binary: `K`, `Ki` and `KiB` are all 1024 bytes. `KB` is refused, because half of its
//!   readers take it for 1000.
//! * What [`ByteSize::exact`] prints, `parse` reads back to the same number.

use std::{fmt, str::FromStr, time::Duration};

const STEPS: [(&str, u32); 6] = [("E", 60), ("P", 50), ("T", 40), ("G", 30), ("M", 20), ("K", 10)];

/// Text that is not a size or a duration; says what would be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UnitError(String);

impl fmt::Display for UnitError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for UnitError {}

/// A number of bytes.
///
/// Its `Display` rounds for the eye (`1.5 GiB`); [`ByteSize::exact`] does not.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ByteSize(pub u64);

impl ByteSize {
    /// The largest unit in which the number is whole: `10G`, `1536M`, `513`.
    pub fn exact(self) -> String {
        match STEPS.iter().find(|(_, shift)| self.0 != 0 && self.0.trailing_zeros() >= *shift) {
            Some((unit, shift)) => format!("{}{unit}", self.0 >> shift),
            None => self.0.to_string(),
        }
    }
}

impl FromStr for ByteSize {
    type Err = UnitError;

    fn from_str(text: &str) -> Result<Self, UnitError> {
        let bad = |why: &str| UnitError(format!("'{text}' is not a size: {why}"));
        let trimmed = text.trim();
        let (number, unit) = split_number(trimmed);
        if number.is_empty() {
            return Err(bad("it should be a number with a unit, such as 512M, 10G or 1.5TiB"));
        }
        let shift = match unit.to_ascii_lowercase().as_str() {
            "" | "b" => 0,
            "k" | "ki" | "kib" => 10,
            "m" | "mi" | "mib" => 20,
            "g" | "gi" | "gib" => 30,
            "t" | "ti" | "tib" => 40,
            "p" | "pi" | "pib" => 50,
            "e" | "ei" | "eib" => 60,
            "kb" | "mb" | "gb" | "tb" | "pb" | "eb" => {
                let letter = &unit[..1].to_ascii_uppercase();
                return Err(bad(&format!(
                    "'{unit}' may mean powers of 1000 or of 1024; write {letter}iB for 1024"
                )));
            }
            _ => return Err(bad(&format!("the unit '{unit}' is none of K, M, G, T, P, E (powers of 1024)"))),
        };
        decimal(number, 1 << shift).map(ByteSize).map_err(bad)
    }
}

impl fmt::Display for ByteSize {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Some((unit, shift)) = STEPS.iter().rev().rfind(|(_, shift)| self.0 >> shift != 0) else {
            return f.pad(&format!("{} B", self.0));
        };
        // Tenths, rounded to the nearest; 1023.97 KiB is 1024.0 KiB rather than a wrong unit.
        let tenths = (u128::from(self.0) * 10 + (1 << (shift - 1))) >> shift;
        let (whole, tenth) = (tenths / 10, tenths % 10);
        f.pad(&if tenth == 0 { format!("{whole} {unit}iB") } else { format!("{whole}.{tenth} {unit}iB") })
    }
}

/// A duration as text: `250ms`, `30s`, `5m`, `2h`.
pub fn parse_duration(text: &str) -> Result<Duration, UnitError> {
    let bad = |why: &str| UnitError(format!("'{text}' is not a duration: {why}"));
    let (number, unit) = split_number(text.trim());
    if number.is_empty() {
        return Err(bad("it should be a number with a unit, such as 250ms, 30s or 5m"));
    }
    let micros = match unit {
        "us" => 1,
        "ms" => 1_000,
        "s" => 1_000_000,
        "m" | "min" => 60_000_000,
        "h" => 3_600_000_000,
        "" => return Err(bad("it has no unit; write s for seconds")),
        _ => return Err(bad(&format!("the unit '{unit}' is none of us, ms, s, m, h"))),
    };
    decimal(number, micros).map(Duration::from_micros).map_err(bad)
}

/// Splits `12.5GiB` into `12.5` and `GiB`; one space between is fine.
fn split_number(text: &str) -> (&str, &str) {
    let end = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    (&text[..end], text[end..].trim_start())
}

/// `number` times `unit`, where `number` may have a fraction as long as the product is whole.
fn decimal(number: &str, unit: u64) -> Result<u64, &'static str> {
    const TOO_LARGE: &str = "it is larger than anything that can be addressed";
    let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
    if whole.is_empty() || fraction.contains('.') || fraction.len() > 18 || number.ends_with('.') {
        return Err("the number is malformed");
    }
    let whole: u64 = whole.parse().map_err(|_| TOO_LARGE)?;
    let mut total = u128::from(whole) * u128::from(unit);
    if !fraction.is_empty() {
        let scale = 10u128.pow(u32::try_from(fraction.len()).map_err(|_| TOO_LARGE)?);
        let part = fraction.parse::<u128>().map_err(|_| "the number is malformed")? * u128::from(unit);
        if part % scale != 0 {
            return Err("the fraction does not come to a whole number");
        }
        total += part / scale;
    }
    u64::try_from(total).map_err(|_| TOO_LARGE)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn size(text: &str) -> Result<u64, String> {
        text.parse::<ByteSize>().map(|size| size.0).map_err(|error| error.to_string())
    }

    #[test]
    fn every_spelling_of_a_unit_is_binary() {
        for text in ["2G", "2g", "2Gi", "2GiB", "2 GiB", " 2gib ", "2048M", "2147483648", "2147483648B"] {
            assert_eq!(size(text), Ok(2 << 30), "{text}");
        }
        assert_eq!(size("1.5T"), Ok(3 << 39));
    }

    #[test]
    fn a_wrong_unit_says_what_would_be_right() {
        let message = size("10GB").unwrap_err();
        assert!(message.contains("write GiB"), "{message}");
        let message = size("10X").unwrap_err();
        assert!(message.contains("'X' is none of K, M, G"), "{message}");
        for text in ["", "G", "-1", "1..5G", ".5G", "5.", "1.0001K", "16E", "99999999999999999999"] {
            assert!(size(text).is_err(), "{text}");
        }
    }

    #[test]
    fn people_see_one_decimal() {
        for (bytes, text) in [
            (0, "0 B"),
            (1023, "1023 B"),
            (1 << 30, "1 GiB"),
            (3 << 29, "1.5 GiB"),
            ((1 << 40) + 1, "1 TiB"),
            (u64::MAX, "16 EiB"),
        ] {
            assert_eq!(ByteSize(bytes).to_string(), text);
        }
    }

    #[test]
    fn durations_want_a_unit() {
        assert_eq!(parse_duration("1.5s"), Ok(Duration::from_millis(1500)));
        assert_eq!(parse_duration("2h"), Ok(Duration::from_secs(7200)));
        assert!(parse_duration("30").unwrap_err().to_string().contains("no unit"));
        assert!(parse_duration("30sec").is_err());
    }

    proptest! {
        #[test]
        fn exact_text_reads_back(bytes: u64) {
            prop_assert_eq!(size(&ByteSize(bytes).exact()), Ok(bytes));
        }

        #[test]
        fn rounded_text_is_within_a_twentieth(bytes in 1u64..=u64::MAX / 2) {
            let back = size(&ByteSize(bytes).to_string());
            // A tenth of a unit is not always a whole number of bytes; those texts are for the eye alone.
            if let Ok(back) = back {
                prop_assert!(back.abs_diff(bytes) <= bytes / 20 + 1, "{} became {}", bytes, back);
            }
        }

        #[test]
        fn no_text_panics(text in "\\PC*") {
            let _ = text.parse::<ByteSize>();
            let _ = parse_duration(&text);
        }
    }
}
