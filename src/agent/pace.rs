//! When to sync: at once when idle, then not before the shortest period is over; again after a failure, later each
//! time; and when nothing is to do for long (contract 14.1). Pure arithmetic on moments that it is given.

use std::time::{Duration, Instant};

/// The first attempt after a failure comes this much later.
const FIRST_RETRY: Duration = Duration::from_millis(500);

/// Says when the next sync is due.
pub struct Pace {
    shortest: Duration,
    /// Retries come at least this often.
    longest_retry: Duration,
    /// Without anything to do, a sync says this often that all is as it should be.
    longest: Duration,
    not_before: Option<Instant>,
    not_after: Option<Instant>,
    failures: u32,
}

// === impl Pace ===

impl Pace {
    /// Not more often than every `shortest`; not more seldom than every `longest`, after failures every `longest_retry`.
    pub fn new(shortest: Duration, longest_retry: Duration, longest: Duration) -> Self {
        Self { shortest, longest_retry, longest, not_before: None, not_after: None, failures: 0 }
    }

    /// When a sync that is wanted at `now` may run.
    pub fn due(&self, now: Instant) -> Instant {
        self.not_before.map_or(now, |moment| moment.max(now))
    }

    /// When a sync that nobody wants may run. Not before there was one.
    pub fn idle(&self) -> Option<Instant> {
        self.not_after
    }

    /// No sync before this moment.
    pub fn hold(&mut self, until: Instant) {
        self.not_before = Some(self.not_before.map_or(until, |moment| moment.max(until)));
    }

    /// A sync ended.
    pub fn ended(&mut self, now: Instant, succeeded: bool) {
        self.failures = if succeeded { 0 } else { self.failures + 1 };
        let pause = match self.failures {
            0 => self.shortest,
            failures => {
                let retry = FIRST_RETRY.saturating_mul(1 << (failures - 1).min(10));
                retry.min(self.longest_retry).max(self.shortest)
            }
        };
        self.not_before = now.checked_add(pause);
        self.not_after = now.checked_add(self.longest.max(pause));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_idle_proxy_syncs_at_once_and_a_busy_one_at_its_pace() {
        let start = Instant::now();
        let mut pace = Pace::new(Duration::from_secs(1), Duration::from_secs(30), Duration::from_secs(3600));
        assert_eq!((pace.due(start), pace.idle()), (start, None));
        pace.ended(start, true);
        assert_eq!(pace.due(start), start + Duration::from_secs(1));
        assert_eq!(pace.idle(), Some(start + Duration::from_secs(3600)));
        assert_eq!(pace.due(start + Duration::from_secs(5)), start + Duration::from_secs(5));
    }

    #[test]
    fn failures_slow_down_to_the_longest_retry() {
        let start = Instant::now();
        let mut pace = Pace::new(Duration::ZERO, Duration::from_secs(30), Duration::from_secs(3600));
        let mut pauses = Vec::new();
        for _ in 0..9 {
            pace.ended(start, false);
            pauses.push((pace.due(start) - start).as_millis());
        }
        assert_eq!(pauses, [500, 1000, 2000, 4000, 8000, 16000, 30000, 30000, 30000]);
        pace.ended(start, true);
        assert_eq!(pace.due(start), start);
    }
}
