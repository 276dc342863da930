//! Durations as the configuration writes them: `300ms`, `1.5h`, `2h45m`, `0`.
//!
//! The notation is that of Go's `time.Duration` (contract, terms); reading and printing must agree with it to the
//! nanosecond, because files written by one proxy are read by the other.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// A span of time in nanoseconds. Negative ones can be written; the checks refuse them with a reason.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct GoDuration(i64);

/// Units from the largest to the smallest, in nanoseconds. Micro may be spelled with either Greek letter or a `u`.
const UNITS: [(&str, i64); 8] = [
    ("h", 3_600_000_000_000),
    ("ms", 1_000_000),
    ("m", 60_000_000_000),
    ("ns", 1),
    ("us", 1_000),
    ("µs", 1_000),
    ("μs", 1_000),
    ("s", 1_000_000_000),
];

// === impl GoDuration ===

impl GoDuration {
    /// No time at all: what an unset field holds.
    pub const ZERO: Self = Self(0);

    /// A whole number of seconds.
    pub const fn from_secs(seconds: i64) -> Self {
        Self(seconds * 1_000_000_000)
    }

    /// A number of nanoseconds.
    pub const fn from_nanos(nanoseconds: i64) -> Self {
        Self(nanoseconds)
    }

    /// The same span as the standard library's type; a negative one counts as none.
    pub fn to_std(self) -> Duration {
        Duration::from_nanos(u64::try_from(self.0).unwrap_or(0))
    }
}

impl FromStr for GoDuration {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let invalid = || format!("invalid duration {text:?}: write it like 300ms, 30s or 1h30m");
        let (negative, unsigned) = match text.as_bytes().first() {
            Some(b'-') => (true, &text[1..]),
            Some(b'+') => (false, &text[1..]),
            _ => (false, text),
        };
        if unsigned == "0" {
            return Ok(Self::ZERO);
        }
        if unsigned.is_empty() {
            return Err(invalid());
        }
        let mut total: i128 = 0;
        let mut rest = unsigned;
        while !rest.is_empty() {
            let (amount, after) = split_where(rest, |c| !c.is_ascii_digit() && c != '.');
            let (unit, after) = split_where(after, |c| c.is_ascii_digit() || c == '.');
            let (_, nanoseconds) = UNITS.iter().find(|(name, _)| *name == unit).ok_or_else(invalid)?;
            total = scale(amount, *nanoseconds).and_then(|part| total.checked_add(part)).ok_or_else(invalid)?;
            rest = after;
        }
        let signed = if negative { -total } else { total };
        i64::try_from(signed).map(Self).map_err(|_| invalid())
    }
}

impl fmt::Display for GoDuration {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let nanoseconds = self.0.unsigned_abs();
        let sign = if self.0 < 0 { "-" } else { "" };
        match nanoseconds {
            0 => f.write_str("0s"),
            1..1_000 => write!(f, "{sign}{nanoseconds}ns"),
            1_000..1_000_000 => write!(f, "{sign}{}µs", Decimal(nanoseconds, 3)),
            1_000_000..1_000_000_000 => write!(f, "{sign}{}ms", Decimal(nanoseconds, 6)),
            _ => {
                let minutes = nanoseconds / 60_000_000_000;
                f.write_str(sign)?;
                if minutes >= 60 {
                    write!(f, "{}h", minutes / 60)?;
                }
                if minutes >= 1 {
                    write!(f, "{}m", minutes % 60)?;
                }
                write!(f, "{}s", Decimal(nanoseconds % 60_000_000_000, 9))
            }
        }
    }
}

impl Serialize for GoDuration {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for GoDuration {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}

/// A number with its decimal point moved to the left by so many places, without trailing zeros.
struct Decimal(u64, u32);

impl fmt::Display for Decimal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let scale = 10u64.pow(self.1);
        write!(f, "{}", self.0 / scale)?;
        match self.0 % scale {
            0 => Ok(()),
            fraction => {
                let digits = format!("{fraction:0width$}", width = self.1 as usize);
                write!(f, ".{}", digits.trim_end_matches('0'))
            }
        }
    }
}

fn split_where(text: &str, end: impl Fn(char) -> bool) -> (&str, &str) {
    text.split_at(text.find(end).unwrap_or(text.len()))
}

/// `amount` times `unit`, where the amount may have a fraction; what is finer than a nanosecond is cut off.
fn scale(amount: &str, unit: i64) -> Option<i128> {
    let (whole, fraction) = amount.split_once('.').unwrap_or((amount, ""));
    if (whole.is_empty() && fraction.is_empty()) || fraction.contains('.') {
        return None;
    }
    let whole: i128 = if whole.is_empty() { 0 } else { whole.parse().ok()? };
    let whole = whole.checked_mul(i128::from(unit))?;
    let (digits, place) = fraction
        .bytes()
        .take(18)
        .fold((0, 1), |(digits, place), digit| (digits * 10 + i128::from(digit - b'0'), place * 10));
    Some(whole + digits * i128::from(unit) / place)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_are_read_and_printed_as_go_does() {
        for (text, printed) in [
            ("0", "0s"),
            ("0s", "0s"),
            ("-0", "0s"),
            ("1ns", "1ns"),
            ("1500ns", "1.5µs"),
            ("1.5us", "1.5µs"),
            ("2µs", "2µs"),
            ("2μs", "2µs"),
            ("300ms", "300ms"),
            ("1.25ms", "1.25ms"),
            ("30s", "30s"),
            ("90s", "1m30s"),
            ("1m", "1m0s"),
            ("1h", "1h0m0s"),
            ("24h", "24h0m0s"),
            ("1.5h", "1h30m0s"),
            ("2h45m", "2h45m0s"),
            ("1h0.5s", "1h0m0.5s"),
            (".5s", "500ms"),
            ("5.s", "5s"),
            ("+5s", "5s"),
            ("-1h30m", "-1h30m0s"),
            ("0.000000001s", "1ns"),
            ("0.0000000019s", "1ns"),
            ("1h1m1s1ms1us1ns", "1h1m1.001001001s"),
            ("9223372036854775807ns", "2562047h47m16.854775807s"),
        ] {
            let duration: GoDuration = text.parse().unwrap_or_else(|e| panic!("{text}: {e}"));
            assert_eq!(duration.to_string(), printed, "{text}");
            assert_eq!(printed.parse(), Ok(duration), "{printed} read back");
        }
    }

    #[test]
    fn what_is_no_duration_is_refused() {
        for text in
            ["", "5", "-", "+", "s", "1.2.3s", ".s", "1 s", "1d", "1h5", "99999999999h", "ten", "9223372036854775808ns"]
        {
            let error = text.parse::<GoDuration>().expect_err(text);
            assert!(error.contains("invalid duration"), "{text}: {error}");
        }
    }
}
