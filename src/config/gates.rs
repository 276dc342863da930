//! Feature gates: which optional behaviours are on (contract 2.5).
//!
//! Knows the gates that this proxy reads. The gates of the whole Kubernetes registry may be set in a file that several
//! components share, so any well-formed name is accepted; it must never stop the proxy, only be mentioned once.

use std::collections::BTreeMap;

use super::refusals::Refusals;

/// A gate that this proxy reads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Gate {
    /// External IPs of Services are served.
    AllowServiceExternalIps,
    /// Objects may come as CBOR: no effect here.
    ClientsAllowCbor,
    /// Objects are wanted as CBOR: no effect here.
    ClientsPreferCbor,
    /// `/flagz` is served.
    ComponentFlagz,
    /// `/statusz` is served.
    ComponentStatusz,
    /// Log lines say what they are about: always so here.
    ContextualLogging,
    /// Log options that are not settled yet may be set.
    LoggingAlphaOptions,
    /// The JSON log format may be used.
    LoggingBetaOptions,
    /// ServiceCIDR objects are watched.
    MultiCidrServiceAllocator,
    /// nftables mode may be used.
    NftablesProxyMode,
    /// Histograms are offered in Prometheus' newer form: no effect here.
    NativeHistograms,
    /// Hints for the same node are honoured.
    PreferSameTrafficDistribution,
    /// Lists are streamed as watches.
    WatchListClient,
}

/// How mature a gate is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stage {
    /// Off unless asked for.
    Alpha,
    /// On unless refused.
    Beta,
    /// Here to stay.
    Ga,
}

/// The state of all gates that this proxy reads.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Gates([bool; GATES.len()]);

/// What Kubernetes 1.36 says of a gate.
struct Facts {
    gate: Gate,
    name: &'static str,
    stage: Stage,
    default: bool,
    /// It can no longer be switched.
    locked: bool,
}

/// In the order of [`Gate`], which is that of the names.
const GATES: [Facts; 13] = [
    gate(Gate::AllowServiceExternalIps, "AllowServiceExternalIPs", Stage::Ga, true),
    gate(Gate::ClientsAllowCbor, "ClientsAllowCBOR", Stage::Alpha, false),
    gate(Gate::ClientsPreferCbor, "ClientsPreferCBOR", Stage::Alpha, false),
    gate(Gate::ComponentFlagz, "ComponentFlagz", Stage::Beta, true),
    gate(Gate::ComponentStatusz, "ComponentStatusz", Stage::Beta, true),
    gate(Gate::ContextualLogging, "ContextualLogging", Stage::Beta, true),
    gate(Gate::LoggingAlphaOptions, "LoggingAlphaOptions", Stage::Alpha, false),
    gate(Gate::LoggingBetaOptions, "LoggingBetaOptions", Stage::Beta, true),
    locked(Gate::MultiCidrServiceAllocator, "MultiCIDRServiceAllocator"),
    locked(Gate::NftablesProxyMode, "NFTablesProxyMode"),
    gate(Gate::NativeHistograms, "NativeHistograms", Stage::Alpha, false),
    locked(Gate::PreferSameTrafficDistribution, "PreferSameTrafficDistribution"),
    gate(Gate::WatchListClient, "WatchListClient", Stage::Beta, true),
];

const fn gate(gate: Gate, name: &'static str, stage: Stage, default: bool) -> Facts {
    Facts { gate, name, stage, default, locked: false }
}

const fn locked(gate: Gate, name: &'static str) -> Facts {
    Facts { gate, name, stage: Stage::Ga, default: true, locked: true }
}

/// Reads the value of `--feature-gates`: `Name=bool,…`.
///
/// # Errors
/// An entry without `=`, or with something else than a truth value behind it.
pub fn parse_flag(text: &str) -> Result<BTreeMap<String, bool>, String> {
    let entries = text.split(',').map(str::trim).filter(|entry| !entry.is_empty());
    entries
        .map(|entry| {
            let (name, value) = entry.split_once('=').ok_or_else(|| format!("missing bool value for {entry}"))?;
            match super::flags::parse_bool(value.trim()) {
                Ok(on) => Ok((name.trim().to_owned(), on)),
                Err(e) => Err(format!("invalid value of {}={value}, err: {e}", name.trim())),
            }
        })
        .collect()
}

// === impl Stage ===

impl Stage {
    /// The label in metrics: nothing for what is here to stay.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Alpha => "ALPHA",
            Self::Beta => "BETA",
            Self::Ga => "",
        }
    }
}

// === impl Gates ===

impl Gates {
    /// The gates as `wanted` switches them, and one line for each thing an operator should know about that.
    ///
    /// # Errors
    /// Every name that cannot be a gate's, and every attempt to switch a locked gate off.
    pub fn new(wanted: &BTreeMap<String, bool>) -> Result<(Self, Vec<String>), Refusals> {
        let mut refused = Refusals::default();
        let mut refuse = |name, text| refused.push_text(&format!("featureGates.{name}"), text);
        let mut notes = Vec::new();
        let mut foreign = Vec::new();
        for (name, on) in wanted {
            match GATES.iter().find(|facts| facts.name == name) {
                Some(gate) if gate.locked && *on != gate.default => {
                    let default = gate.default;
                    refuse(name, format!("cannot set feature gate {name} to {on}, feature is locked to {default}"));
                }
                Some(gate) if gate.stage == Stage::Ga && !gate.locked => {
                    notes.push(format!("Setting GA feature gate {name}={on}. It will be removed in a future release."));
                }
                Some(_) => {}
                None if matches!(&**name, "AllAlpha" | "AllBeta") => {}
                None if is_well_formed(name) => foreign.push(&**name),
                None => refuse(name, format!("unrecognized feature gate: {name}")),
            }
        }
        if !foreign.is_empty() {
            notes.push(format!("feature gates without effect on this proxy: {}", foreign.join(", ")));
        }
        let state = |facts: &Facts| {
            let all = match facts.stage {
                Stage::Alpha => wanted.get("AllAlpha"),
                Stage::Beta => wanted.get("AllBeta"),
                Stage::Ga => None,
            };
            *wanted.get(facts.name).or(all).unwrap_or(&facts.default)
        };
        refused.or((Self(GATES.each_ref().map(state)), notes))
    }

    /// Whether this gate is on.
    pub fn enabled(&self, gate: Gate) -> bool {
        self.0[gate as usize]
    }

    /// Name, stage and state of all gates that this proxy reads, sorted by name.
    pub fn iter(&self) -> impl Iterator<Item = (&'static str, Stage, bool)> {
        GATES.iter().map(|facts| (facts.name, facts.stage, self.enabled(facts.gate)))
    }
}

impl Default for Gates {
    fn default() -> Self {
        Self(GATES.each_ref().map(|facts| facts.default))
    }
}

/// Gates are named in CamelCase.
fn is_well_formed(name: &str) -> bool {
    name.starts_with(|c: char| c.is_ascii_uppercase()) && name.bytes().all(|b| b.is_ascii_alphanumeric())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn gates(flag: &str) -> Result<(Gates, Vec<String>), String> {
        Gates::new(&parse_flag(flag)?).map_err(|refused| refused.describe(None, ""))
    }

    #[test]
    fn the_table_is_in_the_order_of_the_enum() {
        for (i, facts) in GATES.iter().enumerate() {
            assert_eq!(facts.gate as usize, i, "{}", facts.name);
        }
        assert!(Gates::default().iter().map(|(name, ..)| name).is_sorted());
    }

    #[test]
    fn nothing_said_means_the_defaults() {
        let (gates, notes) = gates("").unwrap();
        assert_eq!(gates, Gates::default());
        assert!(notes.is_empty());
        assert!(gates.enabled(Gate::WatchListClient) && gates.enabled(Gate::AllowServiceExternalIps));
        assert!(!gates.enabled(Gate::LoggingAlphaOptions) && !gates.enabled(Gate::NativeHistograms));
    }

    #[test]
    fn gates_are_switched_one_by_one_or_by_stage() {
        for (flag, gate, on) in [
            ("WatchListClient=false", Gate::WatchListClient, false),
            ("AllowServiceExternalIPs=false", Gate::AllowServiceExternalIps, false),
            ("LoggingAlphaOptions=1", Gate::LoggingAlphaOptions, true),
            ("AllAlpha=true", Gate::NativeHistograms, true),
            ("AllAlpha=true,NativeHistograms=false", Gate::NativeHistograms, false),
            ("AllAlpha=true", Gate::AllowServiceExternalIps, true),
            ("AllBeta=false", Gate::ComponentFlagz, false),
            ("AllBeta=false", Gate::AllowServiceExternalIps, true),
            (" AllBeta=false , ComponentFlagz = true ,", Gate::ComponentFlagz, true),
            ("MultiCIDRServiceAllocator=true", Gate::MultiCidrServiceAllocator, true),
        ] {
            assert_eq!(gates(flag).expect(flag).0.enabled(gate), on, "{flag}");
        }
    }

    #[test]
    fn what_an_operator_should_know_is_noted() {
        for (flag, expected) in [
            ("WatchListClient=false", &[][..]),
            ("MultiCIDRServiceAllocator=true", &[]),
            (
                "AllowServiceExternalIPs=true",
                &["Setting GA feature gate AllowServiceExternalIPs=true. It will be removed in a future release."],
            ),
            (
                "GracefulNodeShutdown=true,AppArmor=false",
                &["feature gates without effect on this proxy: AppArmor, GracefulNodeShutdown"],
            ),
        ] {
            assert_eq!(gates(flag).expect(flag).1, expected, "{flag}");
        }
    }

    #[test]
    fn bad_gates_are_refused() {
        for (flag, expected) in [
            ("WatchListClient", "missing bool value for WatchListClient"),
            ("WatchListClient=maybe", "invalid value of WatchListClient=maybe, err: "),
            ("watch-list=true", "unrecognized feature gate: watch-list"),
            (
                "NFTablesProxyMode=false",
                "cannot set feature gate NFTablesProxyMode to false, feature is locked to true",
            ),
        ] {
            let error = gates(flag).expect_err(flag);
            assert!(error.starts_with(expected), "{flag}: {error}");
        }
    }
}
