//! Feature gates: which optional behaviours are on (contract 2.5).
//!
//! Knows the gates that this proxy reads. The gates of the whole Kubernetes registry may be set in a file that several
//! components share, so any well-formed name is accepted; it must never stop the proxy, only be mentioned once.

use std::collections::BTreeMap;

use super::refusals::Refusals;

/// A gate that this proxy reads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Gate {
    /// Its name in files, flags and metrics.
    pub name: &'static str,
    /// How mature it is.
    pub stage: Stage,
    /// Whether it is on when nobody says otherwise.
    default: bool,
    /// Whether it can no longer be switched.
    locked: bool,
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
pub struct Gates(Vec<(Gate, bool)>);

/// The gates of Kubernetes 1.36 that concern a proxy, sorted by name.
const GATES: [Gate; 13] = [
    gate("AllowServiceExternalIPs", Stage::Ga, true),
    gate("ClientsAllowCBOR", Stage::Alpha, false),
    gate("ClientsPreferCBOR", Stage::Alpha, false),
    gate("ComponentFlagz", Stage::Beta, true),
    gate("ComponentStatusz", Stage::Beta, true),
    gate("ContextualLogging", Stage::Beta, true),
    gate("LoggingAlphaOptions", Stage::Alpha, false),
    gate("LoggingBetaOptions", Stage::Beta, true),
    locked("MultiCIDRServiceAllocator"),
    locked("NFTablesProxyMode"),
    gate("NativeHistograms", Stage::Alpha, false),
    locked("PreferSameTrafficDistribution"),
    gate("WatchListClient", Stage::Beta, true),
];

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

// === impl Gate ===

const fn gate(name: &'static str, stage: Stage, default: bool) -> Gate {
    Gate { name, stage, default, locked: false }
}

const fn locked(name: &'static str) -> Gate {
    Gate { name, stage: Stage::Ga, default: true, locked: true }
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
            match GATES.iter().find(|gate| gate.name == name) {
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
        let state = |gate: &Gate| {
            let all = match gate.stage {
                Stage::Alpha => wanted.get("AllAlpha"),
                Stage::Beta => wanted.get("AllBeta"),
                Stage::Ga => None,
            };
            *wanted.get(gate.name).or(all).unwrap_or(&gate.default)
        };
        let gates = Self(GATES.iter().map(|gate| (*gate, state(gate))).collect());
        refused.or((gates, notes))
    }

    /// Whether the gate of this name is on; one that this proxy does not read is off.
    pub fn enabled(&self, name: &str) -> bool {
        self.0.iter().any(|(gate, on)| gate.name == name && *on)
    }

    /// All gates that this proxy reads, with their state, sorted by name.
    pub fn iter(&self) -> impl Iterator<Item = (Gate, bool)> {
        self.0.iter().copied()
    }
}

impl Default for Gates {
    fn default() -> Self {
        Self(GATES.iter().map(|gate| (*gate, gate.default)).collect())
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
    fn nothing_said_means_the_defaults() {
        let (gates, notes) = gates("").unwrap();
        assert_eq!(gates, Gates::default());
        assert!(notes.is_empty());
        assert!(gates.enabled("WatchListClient") && gates.enabled("AllowServiceExternalIPs"));
        assert!(!gates.enabled("LoggingAlphaOptions") && !gates.enabled("NoSuchGate"));
    }

    #[test]
    fn gates_are_switched_one_by_one_or_by_stage() {
        for (flag, gate, on) in [
            ("WatchListClient=false", "WatchListClient", false),
            ("AllowServiceExternalIPs=false", "AllowServiceExternalIPs", false),
            ("LoggingAlphaOptions=1", "LoggingAlphaOptions", true),
            ("AllAlpha=true", "NativeHistograms", true),
            ("AllAlpha=true,NativeHistograms=false", "NativeHistograms", false),
            ("AllAlpha=true", "AllowServiceExternalIPs", true),
            ("AllBeta=false", "ComponentFlagz", false),
            ("AllBeta=false", "AllowServiceExternalIPs", true),
            (" AllBeta=false , ComponentFlagz = true ,", "ComponentFlagz", true),
            ("MultiCIDRServiceAllocator=true", "MultiCIDRServiceAllocator", true),
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
