//! What of nf_tables this kernel can do: found out by asking for it, in transactions that the kernel checks and drops.
//!
//! Never changes anything. Modules that a transaction needs are loaded by the kernel, as they would be in earnest.

use nftables::expr::MetaKey;
use nix::errno::Errno;

use crate::kernel::nftables::{Batch, CommitError, Hook, Nftables, TableFamily};
use crate::kernel::nftrule::{self, Step};
use crate::kernel::nftwords::{concat, destination_is_local, dnat, field, is_new, masquerade, random, reject, set};
use crate::model::Family;

/// What the kernel answered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Answer {
    /// All that is needed is there, except for these, named by kernel module.
    Missing(Vec<&'static str>),
    /// We may not ask: CAP_NET_ADMIN is wanting.
    Forbidden,
    /// It has no nf_tables at all, or does not answer.
    Silent(String),
}

/// Something that the nftables mode uses.
struct Feature {
    /// The module it comes from, for IPv4 and for IPv6.
    module: [&'static str; 2],
    hook: Hook,
    /// A rule that uses it.
    rule: fn(TableFamily) -> Step,
}

const TABLE: &str = "kube-proxy-doctor";
const CHAIN: &str = "probe";
const NAT_PREROUTING: Hook = Hook { kind: "nat", number: 0, priority: -100 };
const NAT_POSTROUTING: Hook = Hook { kind: "nat", number: 4, priority: 100 };
const FILTER_FORWARD: Hook = Hook { kind: "filter", number: 2, priority: 0 };

const FEATURES: [Feature; 6] = [
    Feature { module: ["nft_ct"; 2], hook: FILTER_FORWARD, rule: |_| is_new() },
    Feature { module: ["nft_numgen"; 2], hook: FILTER_FORWARD, rule: |_| set(MetaKey::Mark, random(2, 0)) },
    Feature { module: ["nft_fib_ipv4", "nft_fib_ipv6"], hook: FILTER_FORWARD, rule: |_| destination_is_local() },
    Feature { module: ["nft_reject_ipv4", "nft_reject_ipv6"], hook: FILTER_FORWARD, rule: reject },
    Feature { module: ["nft_nat"; 2], hook: NAT_PREROUTING, rule: dnat_to_itself },
    Feature { module: ["nft_masq"; 2], hook: NAT_POSTROUTING, rule: |_| masquerade() },
];

/// Asks the kernel about everything that the nftables mode uses in one family.
pub fn nf_tables(family: Family) -> Answer {
    let mut kernel = match Nftables::open() {
        Ok(kernel) => kernel,
        Err(error) => return Answer::Silent(error.to_string()),
    };
    // The bare table first: it tells whether we may ask at all.
    let mut batch = Batch::new(table_family(family), TABLE, None);
    batch.add_table("");
    match kernel.check(&mut batch) {
        Ok(()) => {}
        Err(CommitError::Refused { errno: Errno::EPERM, .. }) => return Answer::Forbidden,
        Err(error) => return Answer::Silent(error.to_string()),
    }
    let missing = FEATURES.iter().filter(|feature| !feature.works(&mut kernel, family));
    Answer::Missing(missing.map(|feature| feature.module[usize::from(family == Family::V6)]).collect())
}

/// The names of the chains in a table; none when there is no such table.
pub fn chains(family: Family, table: &str) -> Vec<String> {
    let chains = Nftables::open().and_then(|mut kernel| kernel.chains(table_family(family), table));
    chains.unwrap_or_default().into_iter().map(|(name, _)| name).collect()
}

/// Whether a table exists.
pub fn has_table(family: Family, table: &str) -> bool {
    Nftables::open().and_then(|mut kernel| kernel.has_table(table_family(family), table)).unwrap_or(false)
}

fn table_family(family: Family) -> TableFamily {
    match family {
        Family::V4 => TableFamily::Ip,
        Family::V6 => TableFamily::Ip6,
    }
}

// === impl Feature ===

impl Feature {
    fn works(&self, kernel: &mut Nftables, family: Family) -> bool {
        let mut batch = Batch::new(table_family(family), TABLE, None);
        batch.add_table("");
        batch.add_chain(CHAIN, Some(self.hook), "");
        batch.add_rule(CHAIN, |buffer| {
            nftrule::compile(buffer, &[(self.rule)(table_family(family))])
                .expect("the probes are written in the subset that is compiled; a test runs them all");
        });
        kernel.check(&mut batch).is_ok()
    }
}

fn dnat_to_itself(family: TableFamily) -> Step {
    let header = match family {
        TableFamily::Ip => "ip",
        TableFamily::Ip6 => "ip6",
    };
    dnat(family, concat([field(header, "daddr"), field("th", "dport")]))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_probe_can_be_asked() {
        for feature in &FEATURES {
            for family in Family::ALL {
                let rule = [(feature.rule)(table_family(family))];
                let mut buffer = crate::kernel::netlink::Buffer::new();
                buffer.message(0, 0, 0, &[]);
                assert_eq!(nftrule::compile(&mut buffer, &rule), Ok(()), "{}", feature.module[0]);
            }
        }
    }
}
