//! The table: a line for each kind of request, who answered it how often, and whether that is as it should be.
//!
//! Fits 80 columns. Must not send anything.

use super::request::Tally;
use super::say;

const PODS: [&str; 3] = ["web-1", "web-2", "web-3"];

/// What is to come of a row's requests.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Expect {
    /// Every pod answers.
    All,
    /// Every pod but this one answers.
    AllBut(&'static str),
    /// The same pod answers always.
    One,
    /// Whoever answers, no request fails.
    Answers,
    /// Every request is refused.
    Refusal,
}

/// One kind of request.
#[derive(Clone, Copy, Debug)]
pub struct Row {
    /// Who asks.
    pub from: &'static str,
    /// What is asked.
    pub what: &'static str,
    /// Where that is.
    pub at: &'static str,
    /// What is to come of it.
    pub expect: Expect,
}

/// What is printed, and what was not as it should be.
#[derive(Debug, Default)]
pub struct Report {
    /// All requests.
    pub requests: u32,
    /// Requests that failed, or were refused when they should not have been.
    pub failures: u32,
    /// One line for each row that is not as it should be.
    pub complaints: Vec<String>,
}

/// The line above the rows.
pub fn head() -> String {
    let [one, two, three] = PODS;
    format!("  {:8} {:13} {:22} {one:>6} {two:>6} {three:>6} {:>6}", "from", "to", "at", "failed")
}

// === impl Row ===

impl Row {
    fn failures(&self, tally: &Tally) -> u32 {
        tally.failed + if self.expect == Expect::Refusal { 0 } else { tally.refused }
    }

    fn line(&self, tally: &Tally) -> String {
        let Self { from, what, at, expect } = self;
        let head = format!("  {from:8} {what:13} {at:22}");
        if *expect == Expect::Refusal && tally.refused == tally.requests() {
            return format!("{head} {:>20} {:>6}", "refused", 0);
        }
        let [one, two, three] = PODS.map(|pod| tally.of(pod));
        format!("{head} {one:>6} {two:>6} {three:>6} {:>6}", self.failures(tally))
    }

    /// What is not as it should be.
    fn complaint(&self, tally: &Tally) -> Option<String> {
        let failures = self.failures(tally);
        let answering = PODS.map(|pod| tally.of(pod) > 0);
        let as_expected = match self.expect {
            Expect::All => answering == [true; 3],
            Expect::AllBut(gone) => answering == PODS.map(|pod| pod != gone),
            Expect::One => answering.iter().filter(|answers| **answers).count() == 1,
            Expect::Answers => answering.contains(&true),
            Expect::Refusal => tally.refused > 0 && tally.refused == tally.requests(),
        };
        if as_expected && failures == 0 {
            return None;
        }
        let Self { from, what, at, expect } = self;
        Some(format!("{from} to {what} at {at}: expected {expect:?}, got {}", tally.to_string().trim_end()))
    }
}

// === impl Report ===

impl Report {
    /// Prints a row, and judges it.
    ///
    /// # Errors
    /// When nobody reads any more.
    pub fn add(&mut self, row: Row, tally: &Tally) -> Result<(), String> {
        say(&row.line(tally))?;
        self.requests += tally.requests();
        self.failures += row.failures(tally);
        self.complaints.extend(row.complaint(tally));
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tally(counts: [u32; 3], refused: u32, failed: u32) -> Tally {
        let answers = PODS.iter().zip(counts).filter(|(_, count)| *count > 0);
        Tally {
            answers: answers.map(|(pod, count)| ((*pod).to_owned(), count)).collect(),
            refused,
            failed,
            ..Tally::default()
        }
    }

    #[test]
    fn every_expectation_can_be_disappointed() {
        for (expect, counts, refused, failed, content) in [
            (Expect::All, [1, 2, 3], 0, 0, true),
            (Expect::All, [1, 2, 0], 0, 0, false),
            (Expect::All, [1, 2, 3], 0, 1, false),
            (Expect::All, [1, 2, 3], 1, 0, false),
            (Expect::AllBut("web-3"), [1, 2, 0], 0, 0, true),
            (Expect::AllBut("web-3"), [1, 2, 1], 0, 0, false),
            (Expect::AllBut("web-3"), [3, 0, 0], 0, 0, false),
            (Expect::One, [0, 3, 0], 0, 0, true),
            (Expect::One, [1, 3, 0], 0, 0, false),
            (Expect::One, [0, 0, 0], 0, 0, false),
            (Expect::Answers, [0, 3, 1], 0, 0, true),
            (Expect::Answers, [0, 3, 1], 1, 0, false),
            (Expect::Answers, [0, 0, 0], 0, 0, false),
            (Expect::Refusal, [0, 0, 0], 3, 0, true),
            (Expect::Refusal, [0, 0, 0], 0, 0, false),
            (Expect::Refusal, [1, 0, 0], 2, 0, false),
            (Expect::Refusal, [0, 0, 0], 2, 1, false),
        ] {
            let row = Row { from: "pod", what: "ClusterIP", at: "10.96.0.80:80", expect };
            let tally = tally(counts, refused, failed);
            assert_eq!(row.complaint(&tally).is_none(), content, "{expect:?} {tally}");
        }
    }

    #[test]
    fn lines_are_of_one_width_and_fit() {
        let width = head().len();
        assert!(width <= 80, "{width}");
        for (expect, tally) in [(Expect::All, tally([1, 22, 9999], 0, 0)), (Expect::Refusal, tally([0; 3], 3, 0))] {
            let row = Row { from: "outside", what: "no endpoints", at: "[2001:db8::1]:30080", expect };
            assert_eq!(row.line(&tally).len(), width, "{}", row.line(&tally));
        }
    }
}
