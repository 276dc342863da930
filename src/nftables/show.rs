//! The ruleset as JSON.

use crate::plan::{NodeFacts, ServicePlan};

/// Shows.
pub fn show(_facts: &NodeFacts, _plans: &[ServicePlan]) -> Vec<serde_json::Value> {
    Vec::new()
}
