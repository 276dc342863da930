//! From options to a configuration that can be acted upon: reads the file, if there is one, and leads what it and the
//! flags say through all the steps, in upstream's order (contract 2.6). Takes no decision about a value itself.

use std::fs;
use std::path::{Path, PathBuf};

use argh::{EarlyExit, FromArgs};

use super::checked::{Config, LogFormat};
use super::flags::{BESIDE_CONFIG, Flags, WITHOUT_EFFECT};
use super::gates::Gates;
use super::places::Places;
use super::raw::{PROTOBUF, RawConfig};
use super::read::Document;
use super::{arguments, check, defaults, flagz, logging, overrides, read, write};

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

/// A configuration of which so much is known to be right as logging takes.
pub struct Settled {
    flags: Flags,
    raw: RawConfig,
    gates: Gates,
    file: Option<PathBuf>,
    places: Option<Places>,
    warnings: Vec<String>,
    notes: Vec<String>,
}

/// A configuration that can be acted upon.
#[derive(Clone, Debug, PartialEq)]
pub struct Loaded {
    /// What to do.
    pub config: Config,
    /// The same as it is shown to the outside: see [`super::to_yaml`] and [`super::to_configz`].
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
    /// Reads the words of a command line; `None` when help is asked for.
    ///
    /// # Errors
    /// A word that is no flag, or a value that is none for its flag.
    pub fn parse(words: &[String]) -> Result<Option<Self>, String> {
        let Some(pairs) = arguments::pairs(words)? else {
            return Ok(None);
        };
        let plain: Vec<&str> = pairs.iter().flat_map(|(name, value)| [&**name, &**value]).collect();
        let complaint = |early: EarlyExit| early.output.trim().trim_start_matches("Error ").replace('\n', " ");
        let flags = Flags::from_args(&["kube-proxy"], &plain).map_err(complaint)?;
        let mut given: Vec<String> = pairs.into_iter().map(|(name, _)| name[2..].to_owned()).collect();
        given.dedup();
        Ok(Some(Self { flags, given }))
    }

    /// Reads the configuration file, if there is one, and checks everything.
    ///
    /// # Errors
    /// One line in upstream's words that names what is wrong and where.
    pub fn load(&self) -> Result<Loaded, String> {
        self.settle()?.check()
    }

    /// Reads the configuration file, if there is one, and checks what the log needs: whoever logs may begin before the
    /// rest is checked.
    ///
    /// # Errors
    /// The same as for [`Options::load`].
    pub fn settle(&self) -> Result<Settled, String> {
        self.settle_with_default(Path::new(DEFAULT_FILE))
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

    pub(super) fn settle_with_default(&self, default: &Path) -> Result<Settled, String> {
        let failed = |e: String| format!("failed complete: {e}");
        let file = self.file(default);
        let (mut raw, places, mut warnings) = match &file {
            Some(path) => {
                let Document { mut raw, places, warnings } = read_file(path).map_err(failed)?;
                check_host_name(&self.flags, &raw.hostname_override).map_err(failed)?;
                overrides::beside_file(&mut raw, &self.flags);
                (raw, Some(places), warnings)
            }
            None => {
                check_host_name(&self.flags, "").map_err(failed)?;
                (overrides::from_flags(&self.flags), None, Vec::new())
            }
        };
        let mut notes: Vec<String> = defaults::settle(&mut raw).into_iter().collect();
        let (gates, gate_notes) =
            Gates::new(&raw.feature_gates).map_err(|refused| failed(refused.describe(places.as_ref(), &raw.mode)))?;
        warnings.extend(gate_notes);
        warnings.extend(self.deprecated());
        warnings.extend(self.without_effect());
        notes.extend(self.overruled(file.as_deref()));
        let logging_places = places.as_ref().filter(|_| !self.logging_by_flag());
        logging::check(&raw.logging, &gates)
            .map_err(|refused| format!("initialize logging: {}", refused.describe(logging_places, &raw.mode)))?;
        Ok(Settled { flags: self.flags.clone(), raw, gates, file, places, warnings, notes })
    }

    /// What a flag said has no place in the file.
    fn logging_by_flag(&self) -> bool {
        self.given.iter().any(|name| name.starts_with("log") || matches!(&**name, "v" | "vmodule"))
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
        let idle = |name: &&str| match *name {
            "kube-api-content-type" => {
                !matches!(self.flags.kube_api_content_type.as_deref(), Some("application/json" | PROTOBUF))
            }
            "version" => self.flags.version.as_deref().is_some_and(|version| version.starts_with('v')),
            name => WITHOUT_EFFECT.contains(&name),
        };
        named("flags that have no effect here", self.given.iter().map(String::as_str).filter(idle))
    }

    fn overruled(&self, file: Option<&Path>) -> Option<String> {
        let overruled = |name: &&str| !BESIDE_CONFIG.contains(name) && !WITHOUT_EFFECT.contains(name);
        let what = format!("flags that yield to {}", file?.display());
        named(&what, self.given.iter().map(String::as_str).filter(overruled))
    }
}

// === impl Settled ===

impl Settled {
    /// Form and verbosity of the log.
    pub fn log(&self) -> (LogFormat, u32) {
        (check::log_format(&self.raw.logging), self.raw.logging.verbosity)
    }

    /// Checks everything but what is checked already.
    ///
    /// # Errors
    /// One line in upstream's words that names what is wrong and where.
    pub fn check(self) -> Result<Loaded, String> {
        let Self { flags, raw, gates, file, places, warnings, notes } = self;
        let config = check::check(&raw, gates)
            .map_err(|refused| format!("failed validate: {}", refused.describe(places.as_ref(), &raw.mode)))?;
        let effective = write::effective(&raw, config.mode);
        let flags = match file {
            Some(_) => flagz::list(&flags, &overrides::from_flags(&flags)),
            None => flagz::list(&flags, &effective),
        };
        Ok(Loaded { config, effective, file, flags, warnings, notes })
    }
}

fn read_file(path: &Path) -> Result<Document, String> {
    let name = path.display().to_string();
    let text = fs::read_to_string(path).map_err(|e| format!("cannot read the configuration file {name}: {e}"))?;
    let mut document = read::read(&name, &text).map_err(|e| format!("failed to decode: {e}"))?;
    defaults::fill(&mut document.raw);
    Ok(document)
}

/// A name of nothing but blanks is not the same as none (contract 1, 3.1).
fn check_host_name(flags: &Flags, in_file: &str) -> Result<(), String> {
    let blank = |name: &str| !name.is_empty() && name.trim().is_empty();
    match flags.hostname_override.as_deref().unwrap_or_default() {
        name if blank(name) => Err("empty hostname-override is invalid".to_owned()),
        "" if blank(in_file) => Err("empty hostname is invalid".to_owned()),
        _ => Ok(()),
    }
}

fn named<'a>(what: &str, names: impl Iterator<Item = &'a str>) -> Option<String> {
    let names: Vec<_> = names.map(|name| format!("--{name}")).collect();
    (!names.is_empty()).then(|| format!("{what}: {}", names.join(", ")))
}
