//! Configuration: flags and file become one checked [`Config`].
//!
//! The way of a value: [`flags`] and [`raw`] hold what was written, `defaults` completes it, `overrides` lets flags
//! speak, `check` turns it into types that cannot be wrong. Reads one file; must never touch the kernel or the network.

mod address;
mod check;
mod checked;
mod defaults;
mod duration;
mod families;
pub mod flags;
mod flagz;
mod gates;
mod logging;
mod overrides;
mod places;
pub mod raw;
mod read;
mod refusals;
#[cfg(test)]
mod tests;
mod write;

use std::fs;
use std::path::{Path, PathBuf};

pub use checked::{Config, Conntrack, DetectLocal, Ipvs, LogFormat, Mode, NodePortAddresses};
pub use duration::GoDuration;
pub use gates::{Gate, Gates, Stage};
pub use write::{to_configz, to_yaml};

use flags::{BESIDE_CONFIG, Flags, WITHOUT_EFFECT};
use raw::RawConfig;
use read::Document;

/// Where kubeadm mounts the file: read when no flag says otherwise.
pub const DEFAULT_FILE: &str = "/var/lib/kube-proxy/config.conf";

/// What was asked for on the command line.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Options {
    /// The values.
    pub flags: Flags,
    /// Names of the flags that were given, without dashes, in order.
    pub given: Vec<String>,
}

/// A configuration that can be acted upon.
#[derive(Clone, Debug, PartialEq)]
pub struct Loaded {
    /// What to do.
    pub config: Config,
    /// The same as it is shown to the outside: see [`to_yaml`] and [`to_configz`].
    pub effective: RawConfig,
    /// The file it came from, which upstream watches for changes.
    pub file: Option<PathBuf>,
    /// Name and value of every flag, sorted by name: for `/flagz`, and for the log at verbosity 1.
    pub flags: Vec<(&'static str, String)>,
    /// What an operator should know of how it was read: warnings.
    pub warnings: Vec<String>,
    /// The same of less weight.
    pub notes: Vec<String>,
}

// === impl Options ===

impl Options {
    /// Reads the configuration file, if there is one, and checks everything.
    ///
    /// # Errors
    /// One line in upstream's words that names what is wrong and where.
    pub fn load(&self) -> Result<Loaded, String> {
        self.load_with_default(Path::new(DEFAULT_FILE))
    }

    /// The file counts only when asked for, or when no flag says what a file would say.
    fn file(&self, default: &Path) -> Option<PathBuf> {
        let configures = |name: &String| !BESIDE_CONFIG.contains(&&**name);
        match &self.flags.config {
            Some(path) if !path.is_empty() => Some(path.into()),
            _ if self.given.iter().any(configures) || !default.exists() => None,
            _ => Some(default.to_owned()),
        }
    }

    fn load_with_default(&self, default: &Path) -> Result<Loaded, String> {
        let failed = |e: String| format!("failed complete: {e}");
        let file = self.file(default);
        let document = file.as_deref().map(read_file).transpose().map_err(failed)?;
        let (mut raw, places, mut warnings) = match document {
            Some(Document { raw, places, warnings }) => (raw, Some(places), warnings),
            None => (overrides::from_flags(&self.flags).map_err(failed)?, None, Vec::new()),
        };
        let places = places.as_ref();
        overrides::beside_file(&mut raw, &self.flags).map_err(failed)?;
        if !raw.hostname_override.is_empty() && raw.hostname_override.trim().is_empty() {
            return Err("empty hostname is invalid: hostnameOverride is nothing but blanks".to_owned());
        }
        let mut notes: Vec<String> = defaults::settle(&mut raw).into_iter().collect();
        let (gates, gate_notes) =
            Gates::new(&raw.feature_gates).map_err(|refused| failed(refused.describe(places, &raw.mode)))?;
        warnings.extend(gate_notes);
        warnings.extend(self.deprecated());
        warnings.extend(self.without_effect());
        notes.extend(self.overruled(file.as_deref()));
        logging::check(&raw.logging, &gates)
            .map_err(|refused| format!("initialize logging: {}", refused.describe(places, &raw.mode)))?;
        let config = check::check(&raw, gates)
            .map_err(|refused| format!("failed validate: {}", refused.describe(places, &raw.mode)))?;
        let effective = write::effective(&raw, config.mode);
        let flags =
            flagz::list(&self.flags, &if file.is_some() { self.as_configuration()? } else { effective.clone() });
        Ok(Loaded { config, effective, file, flags, warnings, notes })
    }

    /// What the flags would amount to if there were no file.
    fn as_configuration(&self) -> Result<RawConfig, String> {
        let mut raw = overrides::from_flags(&self.flags)?;
        overrides::beside_file(&mut raw, &self.flags)?;
        Ok(raw)
    }

    fn deprecated(&self) -> impl Iterator<Item = String> {
        let instead = |name: &String| match &**name {
            "healthz-port" => Some("--healthz-bind-address"),
            "metrics-port" => Some("--metrics-bind-address"),
            _ => None,
        };
        let warning = move |name| instead(name).map(|other| format!("Flag --{name} has been deprecated, use {other}"));
        self.given.iter().filter_map(warning)
    }

    fn without_effect(&self) -> Option<String> {
        let json = self.flags.kube_api_content_type.as_deref() == Some("application/json");
        let idle = |name: &&str| WITHOUT_EFFECT.contains(name) && !(json && *name == "kube-api-content-type");
        named("flags that have no effect here", self.given.iter().map(String::as_str).filter(idle))
    }

    fn overruled(&self, file: Option<&Path>) -> Option<String> {
        let overruled = |name: &&str| !BESIDE_CONFIG.contains(name) && !WITHOUT_EFFECT.contains(name);
        let what = format!("flags that yield to {}", file?.display());
        named(&what, self.given.iter().map(String::as_str).filter(overruled))
    }
}

fn read_file(path: &Path) -> Result<Document, String> {
    let name = path.display().to_string();
    let text = fs::read_to_string(path).map_err(|e| format!("cannot read the configuration file {name}: {e}"))?;
    let mut document = read::read(&name, &text).map_err(|e| format!("failed to decode: {e}"))?;
    defaults::fill(&mut document.raw);
    Ok(document)
}

fn named<'a>(what: &str, names: impl Iterator<Item = &'a str>) -> Option<String> {
    let names: Vec<_> = names.map(|name| format!("--{name}")).collect();
    (!names.is_empty()).then(|| format!("{what}: {}", names.join(", ")))
}
