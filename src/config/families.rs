//! Whether the IP families of the configured ranges fit those that this node serves (contract 3.3).
//!
//! Pure judgement of a checked configuration; must not find out anything about the node itself.

use ipnet::IpNet;

use super::checked::{Config, DetectLocal, Mode, NodePortAddresses};
use crate::model::Family;

// === impl Config ===

impl Config {
    /// Compares the configured ranges with the families this node serves, and returns what an operator should know.
    /// `pod_cidrs` are those of the Node object.
    ///
    /// # Errors
    /// A mismatch with which no traffic would be treated right: one line.
    pub fn check_families(
        &self,
        primary: Family,
        dual_stack: bool,
        pod_cidrs: &[IpNet],
    ) -> Result<Vec<String>, String> {
        let mut notes = Vec::new();
        let other_family =
            |cidrs: &[IpNet]| !cidrs.is_empty() && cidrs.iter().all(|net| Family::of_net(net) != primary);
        let fatal = |what: &str| {
            Err(format!(
                "kube-proxy configuration is incorrect: {what} but the primary IP family is {primary}: add a range of \
                 that family, or set bindAddress to an address of the other one"
            ))
        };
        match &self.detect_local {
            DetectLocal::ClusterCidr(cidrs) if other_family(cidrs) => match dual_stack {
                false => return fatal("clusterCIDR has no range of this node's family"),
                true => notes.push(format!("clusterCIDR has no {primary} range, the primary family of this node")),
            },
            DetectLocal::ClusterCidr(cidrs) if cidrs.is_empty() => notes.push(format!(
                "detectLocalMode is ClusterCIDR, but no clusterCIDR is given: {primary} traffic of local pods is not told \
                 from other traffic"
            )),
            DetectLocal::NodeCidr if other_family(pod_cidrs) => return fatal("the Node's podCIDRs are of one family"),
            _ => {}
        }
        if !matches!(self.detect_local, DetectLocal::NodeCidr) && other_family(pod_cidrs) {
            notes.push(format!("the Node's podCIDRs have no {primary} range, the primary family of this node"));
        }
        notes.extend(self.node_port_note(primary, dual_stack));
        if !dual_stack {
            if self.mode == Mode::Ipvs && other_family(&self.ipvs.exclude_cidrs) {
                notes.push(format!("ipvs.excludeCIDRs has no {primary} range, the only family of this node"));
            }
            let servers = [("healthz", self.healthz_bind_address), ("metrics", Some(self.metrics_bind_address))];
            for (name, address) in servers.iter().filter_map(|(name, address)| Some((name, (*address)?))) {
                if !address.ip().is_unspecified() && Family::of(&address.ip()) != primary {
                    notes.push(format!("{name}BindAddress {address} is not {primary}, the only family of this node"));
                }
            }
        }
        Ok(notes)
    }

    fn node_port_note(&self, primary: Family, dual_stack: bool) -> Option<String> {
        let has = |cidrs: &[IpNet], of: bool| cidrs.iter().any(|net| (Family::of_net(net) == primary) == of);
        match &self.node_port_addresses {
            NodePortAddresses::All => Some(
                "nodePortAddresses is unset: NodePorts answer on all addresses of the node; `primary` is more careful"
                    .to_owned(),
            ),
            NodePortAddresses::Cidrs(cidrs) if !has(cidrs, true) => {
                Some(format!("nodePortAddresses has no {primary} range: all {primary} addresses serve NodePorts"))
            }
            NodePortAddresses::Cidrs(cidrs) if dual_stack && !has(cidrs, false) => {
                Some(format!("nodePortAddresses has only {primary} ranges: all others serve NodePorts of their family"))
            }
            _ => None,
        }
    }
}
