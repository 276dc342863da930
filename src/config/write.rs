//! The configuration in effect, written down again: for `--write-config-to` and `/configz`.
//!
//! What comes out, read in, must mean the same. Upstream keeps one sync period and one `masqueradeAll` for all modes
//! and writes them into the block of the mode in use (contract 2.2, last paragraph); so do we.

use serde::Serialize;

use super::check::{masquerade_all, periods};
use super::checked::Mode;
use super::duration::GoDuration;
use super::raw::RawConfig;

/// A settled configuration as it is shown to the outside.
pub fn effective(raw: &RawConfig, mode: Mode) -> RawConfig {
    let mut shown = raw.clone();
    let (longest, shortest) = periods(raw, mode);
    let all = masquerade_all(raw, mode);
    let of = |wanted, period| if mode == wanted { period } else { GoDuration::ZERO };
    (shown.iptables.sync_period, shown.iptables.min_sync_period) =
        (of(Mode::Iptables, longest), of(Mode::Iptables, shortest));
    (shown.ipvs.sync_period, shown.ipvs.min_sync_period) = (of(Mode::Ipvs, longest), of(Mode::Ipvs, shortest));
    (shown.nftables.sync_period, shown.nftables.min_sync_period) =
        (of(Mode::Nftables, longest), of(Mode::Nftables, shortest));
    shown.nftables.masquerade_all = all && mode == Mode::Nftables;
    shown.iptables.masquerade_all = all && mode != Mode::Nftables;
    shown.cluster_cidr.get_or_insert_default();
    // Nobody acts upon it, and upstream forgets it.
    shown.port_range.clear();
    shown
}

/// The text of a configuration file.
///
/// # Errors
/// None that is known: every field has a form in YAML.
pub fn to_yaml(effective: &RawConfig) -> Result<String, String> {
    serde_saphyr::to_string(effective).map_err(|e| format!("cannot write the configuration as YAML: {e}"))
}

/// The body of `/configz`.
///
/// # Errors
/// None that is known: every field has a form in JSON.
pub fn to_configz(effective: &RawConfig) -> Result<String, String> {
    #[derive(Serialize)]
    struct Configz<'a> {
        #[serde(rename = "kubeproxy.config.k8s.io")]
        effective: &'a RawConfig,
    }
    serde_json::to_string(&Configz { effective }).map_err(|e| format!("cannot write the configuration as JSON: {e}"))
}
