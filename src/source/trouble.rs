//! What to do about failures: how long to wait before the next attempt, and what to say without repeating oneself.
//!
//! Must never say the same thing twice in a row: a server that is down is one line, and its return another.

use std::cell::RefCell;
use std::time::Duration;

use crate::model::Kind;

/// Waiting times that double after each failure, with jitter so that a cluster's nodes do not come back in step.
pub struct Backoff {
    first: Duration,
    most: Duration,
    next: Duration,
    /// The last failure was that nobody answered.
    silence: bool,
    /// An answer after silence was taken for a first failure, and nothing has worked since.
    forgiven: bool,
}

/// Failures that have been reported and are not over yet. Shared by all watches, which often fail for the same reason.
#[derive(Default)]
pub struct Troubles {
    open: RefCell<Vec<(Kind, String)>>,
}

// === impl Backoff ===

impl Backoff {
    /// Waits at least half of `first` and never longer than `most`.
    pub fn new((first, most): (Duration, Duration)) -> Self {
        Self { first, most, next: first, silence: false, forgiven: false }
    }

    /// The next failure is that nobody answers.
    pub fn nobody_answers(&mut self) {
        self.silence = true;
    }

    /// The next failure is an answer. After silence it is a first one: a server that has just come back often refuses
    /// for a second or two, and must not be left alone for as long as it was away. Once, until something works: half a
    /// server behind a balancer must not be asked without rest.
    pub fn somebody_answers(&mut self) {
        if std::mem::take(&mut self.silence) && !std::mem::replace(&mut self.forgiven, true) {
            self.next = self.first;
        }
    }

    /// How long to wait before the next attempt; no shorter than the server asked for.
    pub fn after_failure(&mut self, asked: Option<Duration>) -> Duration {
        let wait = self.next.mul_f64(0.5 + 0.5 * fastrand::f64());
        self.next = (self.next * 2).min(self.most);
        asked.map_or(wait, |asked| asked.saturating_add(wait.min(self.first)))
    }

    /// Things work: the next failure is a first one.
    pub fn reset(&mut self) {
        self.next = self.first;
        self.forgiven = false;
    }
}

// === impl Troubles ===

impl Troubles {
    /// Reports a failure, loudly if it is news.
    pub fn begins(&self, kind: Kind, what: &str) {
        let mut open = self.open.borrow_mut();
        let known = open.iter().any(|(_, known)| known == what);
        open.retain(|(of, _)| *of != kind);
        open.push((kind, what.to_owned()));
        if known {
            log::debug!("{what} (watching {kind:?})");
        } else {
            log::warn!("{what}; rules stay as they are, trying again (watching {kind:?})");
        }
    }

    /// Reports that watching this kind works, if it did not.
    pub fn ends(&self, kind: Kind) {
        let mut open = self.open.borrow_mut();
        if let Some(place) = open.iter().position(|(of, _)| *of == kind) {
            let (_, what) = open.swap_remove(place);
            if !open.iter().any(|(_, other)| *other == what) {
                log::info!("over: {what}");
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const RANGE: (Duration, Duration) = (Duration::from_millis(200), Duration::from_secs(30));

    #[test]
    fn waiting_times_double_up_to_the_most() {
        let mut backoff = Backoff::new(RANGE);
        for expected in [200, 400, 800, 1600, 3200, 6400, 12800, 25600, 30000, 30000] {
            let wait = backoff.after_failure(None);
            assert!(wait >= Duration::from_millis(expected / 2) && wait <= Duration::from_millis(expected), "{wait:?}");
        }
        backoff.reset();
        assert!(backoff.after_failure(None) <= RANGE.0);
    }

    #[test]
    fn the_first_answer_after_silence_is_a_first_failure_but_only_once() {
        let mut backoff = Backoff::new(RANGE);
        let silence = |backoff: &mut Backoff| {
            for _ in 0..10 {
                backoff.nobody_answers();
                backoff.after_failure(None);
            }
        };
        let answer = |backoff: &mut Backoff| {
            backoff.somebody_answers();
            backoff.after_failure(None)
        };
        silence(&mut backoff);
        for most in [200, 400, 800, 1600] {
            let wait = answer(&mut backoff);
            assert!(wait <= Duration::from_millis(most) && wait >= Duration::from_millis(most / 2), "{wait:?}");
        }
        silence(&mut backoff);
        assert!(answer(&mut backoff) >= RANGE.1 / 2);
        backoff.reset();
        silence(&mut backoff);
        assert!(answer(&mut backoff) <= RANGE.0);
    }

    #[test]
    fn the_server_is_not_asked_before_it_wants_to_be() {
        let asked = Duration::from_secs(7);
        let mut backoff = Backoff::new(RANGE);
        for _ in 0..20 {
            let wait = backoff.after_failure(Some(asked));
            assert!(wait >= asked && wait <= asked + RANGE.0, "{wait:?}");
        }
    }

    #[test]
    fn a_trouble_is_open_until_the_last_watch_is_over_it() {
        let troubles = Troubles::default();
        troubles.begins(Kind::Service, "down");
        troubles.begins(Kind::Node, "down");
        troubles.begins(Kind::Node, "forbidden");
        assert_eq!(troubles.open.borrow().len(), 2, "one trouble per watch");
        troubles.ends(Kind::Service);
        troubles.ends(Kind::Service);
        troubles.ends(Kind::Node);
        assert!(troubles.open.borrow().is_empty());
    }
}
