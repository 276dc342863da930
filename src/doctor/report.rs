//! What the doctor says: for people, and for machines.

use std::fmt;

use serde::Serialize;

/// How it stands with one thing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Verdict {
    /// As it should be.
    Ok,
    /// May be wanted so; or could not be found out.
    Warn,
    /// Services do not work like this.
    Fail,
}

/// The outcome of one check.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Check {
    /// What was looked at.
    pub name: &'static str,
    /// How it stands.
    pub verdict: Verdict,
    /// What was found, in one line.
    pub finding: String,
    /// What to do about it; always there unless all is well.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mend: Option<String>,
}

/// All of them.
#[derive(Debug, Serialize)]
pub struct Report {
    /// Nothing failed.
    pub healthy: bool,
    /// The checks, in the order in which they are shown.
    pub checks: Vec<Check>,
}

// === impl Verdict ===

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Ok => "ok",
            Self::Warn => "warn",
            Self::Fail => "FAIL",
        })
    }
}

// === impl Check ===

impl Check {
    /// All is well.
    pub fn ok(name: &'static str, finding: impl Into<String>) -> Self {
        Self { name, verdict: Verdict::Ok, finding: finding.into(), mend: None }
    }

    /// All is not well.
    pub fn but(self, verdict: Verdict, finding: impl Into<String>, mend: impl Into<String>) -> Self {
        Self { verdict, finding: finding.into(), mend: Some(mend.into()), ..self }
    }
}

// === impl Report ===

impl Report {
    /// A report of these checks.
    pub fn new(checks: Vec<Check>) -> Self {
        Self { healthy: checks.iter().all(|check| check.verdict != Verdict::Fail), checks }
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for check in &self.checks {
            writeln!(f, "{:<5} {:<14} {}", check.verdict, check.name, check.finding)?;
            if let Some(mend) = &check.mend {
                writeln!(f, "      {:<14} → {mend}", "")?;
            }
        }
        let count = |verdict| self.checks.iter().filter(|check| check.verdict == verdict).count();
        match (count(Verdict::Fail), count(Verdict::Warn)) {
            (0, 0) => writeln!(f, "\nThis node is fit for kube-proxy."),
            (0, warnings) => writeln!(f, "\nThis node is fit for kube-proxy; {warnings} to look at."),
            (failures, warnings) => writeln!(f, "\n{failures} to mend, {warnings} to look at."),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report() -> Report {
        Report::new(vec![
            Check::ok("kernel", "Linux 6.12"),
            Check::ok("bridges", "").but(Verdict::Warn, "pass by", "load it"),
            Check::ok("default route", "").but(Verdict::Fail, "there is none", "add one"),
        ])
    }

    #[test]
    fn people_read_lines() {
        assert_eq!(
            report().to_string(),
            "ok    kernel         Linux 6.12\n\
             warn  bridges        pass by\n\
             \x20                    → load it\n\
             FAIL  default route  there is none\n\
             \x20                    → add one\n\
             \n\
             1 to mend, 1 to look at.\n"
        );
    }

    #[test]
    fn machines_read_json() {
        assert_eq!(
            serde_json::to_value(report()).unwrap(),
            serde_json::json!({
                "healthy": false,
                "checks": [
                    {"name": "kernel", "verdict": "ok", "finding": "Linux 6.12"},
                    {"name": "bridges", "verdict": "warn", "finding": "pass by", "mend": "load it"},
                    {"name": "default route", "verdict": "fail", "finding": "there is none", "mend": "add one"},
                ],
            })
        );
    }

    #[test]
    fn warnings_alone_leave_a_node_healthy() {
        assert!(Report::new(vec![Check::ok("bridges", "").but(Verdict::Warn, "", "")]).healthy);
        assert!(!report().healthy);
    }
}
