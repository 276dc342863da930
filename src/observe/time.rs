//! The time, as a value that is handed in, and its text form.
//!
//! Must not be asked by those who judge: they take a [`Clock`], so that tests need not wait.

use std::rc::Rc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

/// A moment on both clocks of the machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Moment {
    /// The date, for people. It jumps when the node learns the time, on a machine without a battery by years.
    pub date: SystemTime,
    /// For measuring how long something took.
    pub steady: Instant,
}

/// Tells the time.
pub type Clock = Rc<dyn Fn() -> Moment>;

/// The machine's clock.
pub fn clock() -> Clock {
    Rc::new(Moment::now)
}

/// Year, month, day, hour, minute, second in UTC, and nanoseconds, of a date from 1970 on; earlier ones count as 1970.
pub fn civil(date: SystemTime) -> ([u64; 6], u32) {
    let since = date.duration_since(UNIX_EPOCH).unwrap_or(Duration::ZERO);
    let seconds = since.as_secs();
    // Years are counted from the first of March, so that the leap day is the last of its year; day 719,468 after the
    // first of March of year 0 is the first of January 1970. 146,097 days make 400 years.
    let day = seconds / 86_400 + 719_468;
    let (era, day) = (day / 146_097, day % 146_097);
    let year = (day - day / 1_460 + day / 36_524 - day / 146_096) / 365;
    let day = day - (365 * year + year / 4 - year / 100);
    let month = (5 * day + 2) / 153;
    let day_of_month = day - (153 * month + 2) / 5 + 1;
    let (month, next) = if month < 10 { (month + 3, 0) } else { (month - 9, 1) };
    let time = [seconds / 3600 % 24, seconds / 60 % 60, seconds % 60];
    ([era * 400 + year + next, month, day_of_month, time[0], time[1], time[2]], since.subsec_nanos())
}

/// RFC 3339 in UTC, with as many digits of the second as are not zero, as the Go library writes it.
pub fn rfc3339(date: SystemTime) -> String {
    let ([year, month, day, hour, minute, second], nanos) = civil(date);
    let fraction = if nanos == 0 { String::new() } else { format!(".{nanos:09}") };
    let fraction = fraction.trim_end_matches('0');
    format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}{fraction}Z")
}

/// Seconds since the epoch.
pub fn epoch_seconds(date: SystemTime) -> f64 {
    date.duration_since(UNIX_EPOCH).unwrap_or(Duration::ZERO).as_secs_f64()
}

// === impl Moment ===

impl Moment {
    /// Now.
    pub fn now() -> Self {
        Self { date: SystemTime::now(), steady: Instant::now() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dates_are_written_in_utc() {
        for (seconds, nanos, expected) in [
            (0, 0, "1970-01-01T00:00:00Z"),
            (951_782_400, 0, "2000-02-29T00:00:00Z"),
            (951_868_800, 0, "2000-03-01T00:00:00Z"),
            (1_709_164_799, 0, "2024-02-28T23:59:59Z"),
            (1_735_689_599, 999_999_999, "2024-12-31T23:59:59.999999999Z"),
            (1_763_687_002, 120_000_000, "2025-11-21T01:03:22.12Z"),
            (4_107_542_400, 1_000, "2100-03-01T00:00:00.000001Z"),
        ] {
            assert_eq!(rfc3339(UNIX_EPOCH + Duration::new(seconds, nanos)), expected);
        }
    }
}
