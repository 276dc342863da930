//! The tables, the chains in them that all Services share, and whose a chain is, by its name (contract 9.1).
//!
//! Must not know what is in the chains: that is for `shape`, and for the `rules` of Services.

use std::borrow::Cow;

use super::names::ChainName;

/// The chain that marks what is to be masqueraded.
pub const MARK_MASQ: &str = "KUBE-MARK-MASQ";
/// Shared with kubelet, so it stays when everything else is cleaned up.
pub const FIREWALL: &str = "KUBE-FIREWALL";
/// Exists for nothing but to be missed.
pub const CANARY: &str = "KUBE-PROXY-CANARY";

/// Counts the packets that connection tracking calls INVALID, and those to NodePorts on loopback (contract 9.4).
pub const COUNTERS: [&str; 2] = ["ct_state_invalid_dropped_pkts", "localhost_nps_accepted_pkts"];

/// A table of iptables.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Table {
    /// Verdicts.
    Filter,
    /// Address translation.
    Nat,
    /// Only home to a canary.
    Mangle,
}

/// A shared chain that Services put rules into. Which Service's rules come first there has no meaning.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Shared {
    /// ClusterIPs, external IPs and load balancer IPs with endpoints.
    Services,
    /// NodePorts with endpoints.
    NodePorts,
    /// ClusterIPs that are refused or dropped.
    Refused,
    /// The same for NodePorts, external IPs and load balancer IPs.
    RefusedExternal,
    /// Load balancer traffic that no source range let through.
    Firewalled,
    /// Health check ports that are let in.
    HealthPorts,
    /// ClusterIPs of Services whose endpoint is drawn before it is known which Service it is.
    Drawn(Slot),
}

/// One endpoint out of a number of them: this one is drawn from Services of so many.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Slot {
    of: u8,
    number: u8,
}

/// Services of so many endpoints may have theirs drawn in common.
pub const DRAWN: std::ops::RangeInclusive<u8> = 2..=8;
/// What the names of the chains begin with in which endpoints are drawn: any kube-proxy removes those that it does not
/// know.
pub const DRAW: &str = "KUBE-SVC-";

/// Whether a chain of this name is ours to make and to remove, apart from those of single Services. Those of upstream's
/// IPVS mode (contract 10.6) are only ever removed.
pub fn is_ours(table: Table, name: &str) -> bool {
    name == CANARY
        || is_of_ipvs_mode(table, name)
        || match table {
            Table::Nat => {
                matches!(name, "KUBE-SERVICES" | "KUBE-NODEPORTS" | "KUBE-POSTROUTING" | MARK_MASQ) || is_draw(name)
            }
            Table::Filter => {
                name == "KUBE-FORWARD" || Shared::NAMED.iter().any(|s| s.table() == table && s.name() == name)
            }
            Table::Mangle => false,
        }
}

/// Whether a chain of this name goes when all of ours goes. [`FIREWALL`] stays.
pub fn goes(table: Table, name: &str) -> bool {
    ChainName::parse(name).is_some() || is_ours(table, name)
}

/// Whether a chain of this name is one in which endpoints are drawn, or one that a draw leads to.
pub fn is_draw(name: &str) -> bool {
    let is_number = |text: &str| matches!(text.as_bytes(), [b'0'..=b'9'] | [b'0'..=b'9', b'0'..=b'9']);
    name.strip_prefix(DRAW).is_some_and(|rest| rest.split('-').count() <= 2 && rest.split('-').all(is_number))
}

fn is_of_ipvs_mode(table: Table, name: &str) -> bool {
    match table {
        Table::Nat => matches!(name, "KUBE-LOAD-BALANCER" | "KUBE-NODE-PORT"),
        Table::Filter => matches!(
            name,
            "KUBE-NODE-PORT" | "KUBE-SOURCE-RANGES-FIREWALL" | "KUBE-IPVS-FILTER" | "KUBE-IPVS-OUT-FILTER"
        ),
        Table::Mangle => false,
    }
}

// === impl Table ===

impl Table {
    /// All that kube-proxy uses.
    pub const ALL: [Self; 3] = [Self::Nat, Self::Filter, Self::Mangle];

    /// Its name.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Filter => "filter",
            Self::Nat => "nat",
            Self::Mangle => "mangle",
        }
    }
}

// === impl Shared ===

impl Shared {
    /// All of those that are always there.
    pub const NAMED: [Self; 6] =
        [Self::Services, Self::NodePorts, Self::Refused, Self::RefusedExternal, Self::Firewalled, Self::HealthPorts];

    /// All of those with endpoints that were drawn.
    pub fn drawn() -> impl Iterator<Item = Self> {
        DRAWN.flat_map(|of| (1..=of).map(move |number| Self::Drawn(Slot { of, number })))
    }

    /// The one with the rule for one of so many endpoints, by its number from 1.
    pub fn of_endpoint(number: u8, of: u8) -> Self {
        if of == 1 { Self::Services } else { Self::Drawn(Slot { of, number }) }
    }

    /// The table it is in.
    pub fn table(self) -> Table {
        match self {
            Self::Services | Self::NodePorts | Self::Drawn(_) => Table::Nat,
            _ => Table::Filter,
        }
    }

    /// Its name, unique within the table.
    pub fn name(self) -> Cow<'static, str> {
        match self {
            Self::Services | Self::Refused => "KUBE-SERVICES".into(),
            Self::NodePorts | Self::HealthPorts => "KUBE-NODEPORTS".into(),
            Self::RefusedExternal => "KUBE-EXTERNAL-SERVICES".into(),
            Self::Firewalled => "KUBE-PROXY-FIREWALL".into(),
            Self::Drawn(Slot { of, number }) => format!("{DRAW}{of}-{number}").into(),
        }
    }

    /// Two bytes that stand for it.
    pub fn code(self) -> [u8; 2] {
        match self {
            Self::Drawn(Slot { of, number }) => [of, number],
            named => [0, Self::NAMED.iter().position(|other| *other == named).unwrap_or_default() as u8],
        }
    }

    /// Reads what [`Shared::code`] wrote.
    pub fn of_code([of, number]: [u8; 2]) -> Option<Self> {
        match of {
            0 => Self::NAMED.get(usize::from(number)).copied(),
            _ => Some(Self::Drawn(Slot { of, number })),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn chains_of_draws_are_told_from_those_of_services() {
        for shared in Shared::drawn() {
            assert!(is_draw(&shared.name()) && is_ours(Table::Nat, &shared.name()), "{shared:?}");
        }
        assert!(is_ours(Table::Nat, "KUBE-SVC-8"));
        for other in ["KUBE-SVC-", "KUBE-SVC-3-", "KUBE-SVC-3-1-1", "KUBE-SVC-XPGD46QRK7WJZT7O", "KUBE-SEP-3"] {
            assert!(!is_draw(other), "{other}");
        }
    }

    #[test]
    fn every_chain_is_known_by_its_code() {
        for shared in Shared::NAMED.into_iter().chain(Shared::drawn()) {
            assert_eq!(Shared::of_code(shared.code()), Some(shared));
        }
    }
}
