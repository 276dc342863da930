//! Whether the proxy does its work and its node may get traffic: the state, and the answers of `/healthz` and `/livez`
//! (contract 12.1, 14.3).
//!
//! Must not know how a sync works, nor look at the machine's clock.

use std::cell::Cell;
use std::rc::Rc;
use std::time::{Duration, SystemTime};

use hyper::StatusCode;

use super::http::{Answer, Request, json, not_found};
use super::metrics::Metrics;
use super::time::{Clock, rfc3339};
use crate::model::Family;

/// The date of what never happened, as the Go library writes it.
const NEVER: &str = "0001-01-01T00:00:00Z";

/// What is known of the proxy's health. Shared by those who tell it and those who answer for it.
pub struct Health {
    clock: Clock,
    patience: Duration,
    families: [Progress; 2],
    node_eligible: Cell<bool>,
}

/// How far one family is.
#[derive(Default)]
struct Progress {
    updated: Cell<Option<SystemTime>>,
    queued: Cell<Option<std::time::Instant>>,
}

// === impl Health ===

impl Health {
    /// A proxy that was not asked for anything yet, on a node that was not seen yet. A sync that is not done after
    /// twice `sync_period` makes it unhealthy.
    pub fn new(clock: Clock, sync_period: Duration) -> Rc<Self> {
        Rc::new(Self {
            clock,
            patience: sync_period.saturating_mul(2),
            families: Default::default(),
            node_eligible: Cell::new(false),
        })
    }

    /// A sync of the family was asked for. The oldest request counts.
    pub fn queued(&self, family: Family) {
        let queued = &self.families[family as usize].queued;
        if queued.get().is_none() {
            queued.set(Some((self.clock)().steady));
        }
    }

    /// A sync of the family succeeded; also called once when its loop starts.
    pub fn synced(&self, family: Family) {
        let progress = &self.families[family as usize];
        progress.queued.set(None);
        progress.updated.set(Some((self.clock)().date));
    }

    /// Whether the Node object is there and may get traffic.
    pub fn node_eligible(&self, eligible: bool) {
        self.node_eligible.set(eligible);
    }

    /// Whether every sync that was asked for was done in time.
    pub fn is_healthy(&self) -> bool {
        Family::ALL.into_iter().all(|family| self.is_family_healthy(family))
    }

    fn is_family_healthy(&self, family: Family) -> bool {
        let now = (self.clock)().steady;
        self.families[family as usize]
            .queued
            .get()
            .is_none_or(|queued| now.saturating_duration_since(queued) < self.patience)
    }

    /// Answers a request to the health server, and counts the answer.
    pub fn answer(&self, metrics: &Metrics, request: &Request) -> Answer {
        let healthy = self.is_healthy();
        let (good, node_eligible, counter) = match request.uri.path() {
            "/healthz" => {
                let eligible = self.node_eligible.get();
                (healthy && eligible, Some(eligible), &metrics.healthz)
            }
            "/livez" => (healthy, None, &metrics.livez),
            _ => return not_found(),
        };
        let status = if good { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
        counter.with(&[status.as_str()]).add(1);
        json(status, self.body(good, node_eligible))
    }

    fn body(&self, good: bool, node_eligible: Option<bool>) -> String {
        let now = (self.clock)().date;
        let last = self.families.iter().filter_map(|progress| progress.updated.get()).max();
        let mut body = format!(
            r#"{{"lastUpdated":"{}","currentTime":"{}""#,
            date(if good { Some(now) } else { last }),
            rfc3339(now)
        );
        if let Some(eligible) = node_eligible {
            body.push_str(&format!(r#","nodeEligible":{eligible}"#));
        }
        body.push_str(&format!(r#","healthy":{}"#, self.is_healthy()));
        let status: Vec<String> = Family::ALL.into_iter().filter_map(|family| self.status(family)).collect();
        if !status.is_empty() {
            body.push_str(&format!(r#","status":{{{}}}"#, status.join(",")));
        }
        body.push('}');
        body
    }

    /// A family is told of once it was updated, or when it is in trouble before.
    fn status(&self, family: Family) -> Option<String> {
        let updated = self.families[family as usize].updated.get();
        let healthy = self.is_family_healthy(family);
        (updated.is_some() || !healthy)
            .then(|| format!(r#""{family}":{{"lastUpdated":"{}","healthy":{healthy}}}"#, date(updated)))
    }
}

fn date(date: Option<SystemTime>) -> String {
    date.map_or_else(|| NEVER.to_owned(), rfc3339)
}

#[cfg(test)]
mod tests {
    use std::time::{Instant, UNIX_EPOCH};

    use super::*;
    use crate::observe::scrape::Build;
    use crate::observe::time::Moment;

    /// A clock that is set by hand, in seconds.
    fn manual() -> (Rc<Cell<u64>>, Clock) {
        let time = Rc::new(Cell::new(0));
        let (base, shown) = (Instant::now(), Rc::clone(&time));
        let clock = move || {
            let since = Duration::from_secs(shown.get());
            Moment { date: UNIX_EPOCH + since, steady: base + since }
        };
        (time, Rc::new(clock))
    }

    fn ask(health: &Health, path: &str) -> (u16, String) {
        let request = hyper::Request::get(path).body(()).unwrap().into_parts().0;
        let answer = health.answer(&Metrics::new(Build::default()), &request);
        (answer.status().as_u16(), answer.into_body().whole())
    }

    #[test]
    fn a_sync_that_is_late_is_unhealthy_and_its_end_heals() {
        let (time, clock) = manual();
        let health = Health::new(clock, Duration::from_secs(30));
        health.node_eligible(true);
        assert!(health.is_healthy(), "nothing was asked for yet");
        health.queued(Family::V4);
        time.set(40);
        // Later requests do not renew the patience.
        health.queued(Family::V4);
        time.set(59);
        assert!(health.is_healthy());
        time.set(60);
        assert!(!health.is_healthy());
        health.synced(Family::V6);
        assert!(!health.is_healthy(), "the other family cannot speak for this one");
        health.synced(Family::V4);
        assert!(health.is_healthy());
        time.set(1000);
        assert!(health.is_healthy(), "idle is healthy");
    }

    #[test]
    fn the_node_counts_for_healthz_only() {
        let (_, clock) = manual();
        let health = Health::new(clock, Duration::from_secs(30));
        for (eligible, healthz, livez) in [(false, 503, 200), (true, 200, 200), (false, 503, 200)] {
            health.node_eligible(eligible);
            assert_eq!((ask(&health, "/healthz").0, ask(&health, "/livez").0), (healthz, livez));
        }
        assert_eq!(ask(&health, "/").0, 404);
        assert_eq!(ask(&health, "/healthz/").0, 404);
    }

    #[test]
    fn bodies_are_upstreams() {
        let (time, clock) = manual();
        let health = Health::new(clock, Duration::from_secs(30));
        health.node_eligible(true);
        assert_eq!(
            ask(&health, "/healthz").1,
            r#"{"lastUpdated":"1970-01-01T00:00:00Z","currentTime":"1970-01-01T00:00:00Z","nodeEligible":true,"healthy":true}"#
        );
        time.set(5);
        health.synced(Family::V4);
        time.set(7);
        health.queued(Family::V6);
        time.set(67);
        assert_eq!(
            ask(&health, "/livez"),
            (
                503,
                concat!(
                    r#"{"lastUpdated":"1970-01-01T00:00:05Z","currentTime":"1970-01-01T00:01:07Z","healthy":false,"#,
                    r#""status":{"IPv4":{"lastUpdated":"1970-01-01T00:00:05Z","healthy":true},"#,
                    r#""IPv6":{"lastUpdated":"0001-01-01T00:00:00Z","healthy":false}}}"#
                )
                .to_owned()
            )
        );
    }
}
