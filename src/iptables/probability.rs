//! Chances as iptables says them. Must not know whose they are.

use std::fmt;

/// `xt_statistic` keeps a probability in units of 2^-31.
const CERTAIN: u64 = 1 << 31;

/// The share of `weight` in `total` as `xt_statistic` prints what it keeps.
pub struct Probability {
    /// The part.
    pub weight: u64,
    /// The whole; not 0.
    pub total: u64,
}

// === impl Probability ===

impl fmt::Display for Probability {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let kept = (CERTAIN * self.weight + self.total / 2) / self.total;
        write!(f, "{:.11}", kept as f64 / CERTAIN as f64)
    }
}
