//! The values that were refused, in upstream's words, and where the file has them.
//!
//! Upstream names a value by the path in its internal types (contract 2.3), which is nothing that a reader of the file
//! could look for; the table here leads back to the file. Must not judge a value.

use std::fmt::Display;

use super::places::Places;

/// What was refused, in the order of the checks.
#[derive(Debug, Default)]
pub struct Refusals(Vec<Refusal>);

#[derive(Debug)]
struct Refusal {
    path: String,
    text: String,
}

/// Upstream's paths that do not say where in the file a value stands, and where it does. Elements of a list share the
/// list's path.
const IN_FILE: [(&str, &str); 25] = [
    ("KubeProxyIPTablesConfiguration.MasqueradeBit", "/iptables/masqueradeBit"),
    ("KubeProxyIPVSConfiguration.TCPTimeout", "/ipvs/tcpTimeout"),
    ("KubeProxyIPVSConfiguration.TCPFinTimeout", "/ipvs/tcpFinTimeout"),
    ("KubeProxyIPVSConfiguration.UDPTimeout", "/ipvs/udpTimeout"),
    ("KubeProxyIPVSConfiguration.ExcludeCidrs", "/ipvs/excludeCIDRs"),
    ("KubeProxyNFTablesConfiguration.MasqueradeBit", "/nftables/masqueradeBit"),
    ("KubeProxyLinuxConfiguration.KubeProxyConntrackConfiguration.MaxPerCore", "/conntrack/maxPerCore"),
    ("KubeProxyLinuxConfiguration.KubeProxyConntrackConfiguration.Min", "/conntrack/min"),
    (
        "KubeProxyLinuxConfiguration.KubeProxyConntrackConfiguration.TCPEstablishedTimeout",
        "/conntrack/tcpEstablishedTimeout",
    ),
    (
        "KubeProxyLinuxConfiguration.KubeProxyConntrackConfiguration.TCPCloseWaitTimeout",
        "/conntrack/tcpCloseWaitTimeout",
    ),
    ("KubeProxyLinuxConfiguration.KubeProxyConntrackConfiguration.UDPTimeout", "/conntrack/udpTimeout"),
    ("KubeProxyLinuxConfiguration.KubeProxyConntrackConfiguration.UDPStreamTimeout", "/conntrack/udpStreamTimeout"),
    ("KubeProxyLinuxConfiguration.OOMScoreAdj", "/oomScoreAdj"),
    ("Mode.ProxyMode", "/mode"),
    ("ClientConnection.Burst", "/clientConnection/burst"),
    ("ConfigSyncPeriod", "/configSyncPeriod"),
    ("BindAddress", "/bindAddress"),
    ("HealthzBindAddress", "/healthzBindAddress"),
    ("MetricsBindAddress", "/metricsBindAddress"),
    ("NodePortAddresses", "/nodePortAddresses"),
    ("ShowHiddenMetricsForVersion", "/showHiddenMetricsForVersion"),
    ("DetectLocalMode", "/detectLocalMode"),
    ("DetectLocalConfiguration.InterfaceName", "/detectLocal/bridgeInterface"),
    ("DetectLocalConfiguration.InterfacePrefix", "/detectLocal/interfaceNamePrefix"),
    ("DetectLocalConfiguration.ClusterCIDRs", "/clusterCIDR"),
];

// === impl Refusals ===

impl Refusals {
    /// A value that breaks a rule, with the usual words around it.
    pub fn invalid(&mut self, path: &str, value: impl Display, message: &str) {
        self.push(path, &format!("Invalid value: {value}: {message}"));
    }

    /// A value that breaks a rule, in these words.
    pub fn push(&mut self, path: &str, words: &str) {
        let root = if path.starts_with("logging.") { "" } else { "KubeProxyConfiguration." };
        self.push_text(path, format!("{root}{path}: {words}"));
    }

    /// The same where upstream does not say the path.
    pub fn push_text(&mut self, path: &str, text: String) {
        if !self.0.iter().any(|earlier| earlier.text == text) {
            self.0.push(Refusal { path: path.to_owned(), text });
        }
    }

    /// `value`, unless something was refused.
    ///
    /// # Errors
    /// The refusals, if there are any.
    pub fn or<T>(self, value: T) -> Result<T, Self> {
        if self.0.is_empty() { Ok(value) } else { Err(self) }
    }

    /// All in one line: alone, or as `[first, second]`, each with its place in the file if it stands there.
    pub fn describe(&self, places: Option<&Places>, mode: &str) -> String {
        let describe = |refusal: &Refusal| {
            let place = places.and_then(|places| places.find(&pointer(&refusal.path, mode)));
            place.map_or_else(|| refusal.text.clone(), |place| format!("{} ({place})", refusal.text))
        };
        match &*self.0 {
            [only] => describe(only),
            several => format!("[{}]", several.iter().map(describe).collect::<Vec<_>>().join(", ")),
        }
    }
}

/// Where in the file a value of this path stands, as a JSON pointer.
fn pointer(path: &str, mode: &str) -> String {
    let list = path.split('[').next().unwrap_or_default();
    match IN_FILE.iter().find(|(internal, _)| *internal == list) {
        Some((_, pointer)) => (*pointer).to_owned(),
        None if list == "SyncPeriod" => format!("/{mode}/syncPeriod"),
        None if list == "MinSyncPeriod" => format!("/{mode}/minSyncPeriod"),
        None => format!("/{}", list.replace('.', "/")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{Mode, raw::RawConfig};

    #[test]
    fn every_path_leads_to_a_field_of_the_file() {
        let file = serde_json::to_value(RawConfig::sample()).unwrap();
        let odd = ["SyncPeriod", "MinSyncPeriod", "logging.format", "logging.options.json.splitStream"];
        for path in IN_FILE.iter().map(|(path, _)| *path).chain(odd) {
            let pointer = pointer(path, Mode::Ipvs.as_str());
            assert!(file.pointer(&pointer).is_some(), "{path} leads to {pointer}, which no file has");
        }
    }
}
