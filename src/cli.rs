//! From the words on the command line to what the program is to do.
//!
//! Decides between serving and the things that end by themselves; a flag's meaning is the business of `config`. Must
//! neither print nor exit: whoever calls [`parse`] does that.

mod help;

use std::ffi::OsString;

use crate::config::Options;
use crate::config::flags::parse_bool;

/// The release of Kubernetes whose kube-proxy this one stands in for.
pub const KUBERNETES_VERSION: &str = "v1.36.2";

/// What the program is to do.
#[derive(Clone, Debug, PartialEq)]
pub enum Command {
    /// Serve until told to stop.
    Run(Options),
    /// Do what needs full privileges, and end.
    InitOnly(Options),
    /// Print the ruleset that would be programmed, and end.
    DryRun(Options),
    /// Remove all that was ever programmed, and end.
    Cleanup(Options),
    /// Write the configuration in effect to a file, and end.
    WriteConfig {
        /// The file.
        path: String,
        /// The rest.
        options: Options,
    },
    /// Show Services at work in namespaces of their own, and end.
    Demo(Options),
    /// Check this node, and end.
    Doctor {
        /// For machines.
        json: bool,
        /// The rest.
        options: Options,
    },
}

/// The end of the program before it began.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Exit {
    /// For the shell.
    pub code: u8,
    /// For the reader, with no line break at its end.
    pub message: String,
    /// It is what was asked for, not a complaint.
    pub to_stdout: bool,
}

/// Reads the arguments that follow the program's name.
///
/// ```
/// use kube_proxy::cli::{Command, parse};
///
/// match parse(["--proxy-mode=nftables", "-v", "2"].map(Into::into)) {
///     Ok(Command::Run(options)) => {
///         let loaded = options.load().expect("the configuration is valid");
///         assert_eq!(loaded.config.mode, kube_proxy::config::Mode::Nftables);
///     }
///     other => panic!("unexpected: {other:?}"),
/// }
/// ```
///
/// # Errors
/// An argument that is wrong (code 1), or help or version that were asked for (code 0).
pub fn parse(args: impl IntoIterator<Item = OsString>) -> Result<Command, Exit> {
    let text = |word: OsString| word.into_string().map_err(|word| Exit::refused(&format!("{word:?} is not UTF-8")));
    let mut words = args.into_iter().map(text).collect::<Result<Vec<_>, _>>()?;
    let verb = words.first().filter(|word| matches!(&***word, "demo" | "doctor")).cloned();
    if verb.is_some() {
        words.remove(0);
    }
    let before = words.len();
    if verb.as_deref() == Some("doctor") {
        words.retain(|word| word != "--json");
    }
    let json = words.len() < before;
    let options = options(&words)?;
    Ok(match verb.as_deref() {
        Some("demo") => Command::Demo(options),
        Some(_) => Command::Doctor { json, options },
        None => command(options),
    })
}

fn options(words: &[String]) -> Result<Options, Exit> {
    let options = Options::parse(words).map_err(|e| Exit::refused(&e))?;
    let options = options.ok_or_else(|| Exit::asked_for(help::text()))?;
    match options.flags.version.as_deref().unwrap_or("false") {
        "raw" => Err(Exit::asked_for(raw_version())),
        stated if is_this_release(stated) => Ok(options),
        other if other.starts_with('v') => {
            Err(Exit::refused(&format!("--version: {other:?} is not {KUBERNETES_VERSION}, with or without a suffix")))
        }
        text => match parse_bool(text) {
            Ok(true) => Err(Exit::asked_for(format!("Kubernetes {}", full_version()))),
            Ok(false) => Ok(options),
            Err(e) => Err(Exit::refused(&format!("--version: {e}, nor raw"))),
        },
    }
}

/// What comes first when several were asked for is upstream's choice (contract 2.6).
fn command(options: Options) -> Command {
    let flags = &options.flags;
    match flags.write_config_to.clone().filter(|path| !path.is_empty()) {
        Some(path) => Command::WriteConfig { path, options },
        None if flags.cleanup == Some(true) => Command::Cleanup(options),
        None if flags.dry_run == Some(true) => Command::DryRun(options),
        None if flags.init_only == Some(true) => Command::InitOnly(options),
        None => Command::Run(options),
    }
}

/// The version that is reported everywhere: upstream's, with ours as semantic versioning's build metadata.
pub fn full_version() -> String {
    format!("{KUBERNETES_VERSION}+rust.{}", env!("CARGO_PKG_VERSION"))
}

/// Upstream lets a distribution give its build a suffix of its own, but not another number.
fn is_this_release(stated: &str) -> bool {
    stated.strip_prefix(KUBERNETES_VERSION).is_some_and(|suffix| {
        let named = suffix.strip_prefix(['-', '+']).is_some_and(|name| !name.is_empty());
        suffix.is_empty() || named && suffix.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '-' | '+' | '.'))
    })
}

fn raw_version() -> String {
    let mut numbers = KUBERNETES_VERSION.trim_start_matches('v').split('.');
    let (major, minor) = (numbers.next().unwrap_or_default(), numbers.next().unwrap_or_default());
    let platform = format!("{}/{}", std::env::consts::OS, go_arch(std::env::consts::ARCH));
    let version = full_version();
    format!("version.Info{{Major:{major:?}, Minor:{minor:?}, GitVersion:{version:?}, Platform:{platform:?}}}")
}

/// The name that Kubernetes has for an architecture.
pub fn go_arch(arch: &str) -> &str {
    match arch {
        "aarch64" => "arm64",
        "x86_64" => "amd64",
        other => other,
    }
}

// === impl Exit ===

impl Exit {
    fn asked_for(message: String) -> Self {
        Self { code: 0, message, to_stdout: true }
    }

    fn refused(reason: &str) -> Self {
        Self { code: 1, message: format!("Error: {reason}; see kube-proxy --help"), to_stdout: false }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(line: &str) -> Result<Command, Exit> {
        parse(line.split_whitespace().map(OsString::from))
    }

    #[test]
    fn the_words_decide_what_is_done() {
        for (line, expected) in [
            ("", "Run"),
            ("--config=/c", "Run"),
            ("--cleanup=false", "Run"),
            ("--init-only", "InitOnly"),
            ("--dry-run --manifests=/m", "DryRun"),
            ("--cleanup --init-only", "Cleanup"),
            ("--cleanup --write-config-to=/w", "WriteConfig"),
            ("--write-config-to=", "Run"),
            ("demo", "Demo"),
            ("demo -v 2", "Demo"),
            ("doctor", "Doctor { json: false"),
            ("doctor --json --config=/c", "Doctor { json: true"),
            ("--version=false", "Run"),
            ("--version=v1.36.2", "Run"),
            ("--version=v1.36.2-gke.1+a", "Run"),
            ("--help=false", "Run"),
        ] {
            let command = format!("{:?}", read(line).expect(line));
            assert!(command.starts_with(expected), "{line}: {command}");
        }
    }

    #[test]
    fn what_was_asked_for_goes_to_stdout_with_code_0() {
        for (line, expected) in [
            ("--help", "Usage: kube-proxy [flags]"),
            ("-h", "Usage: kube-proxy [flags]"),
            ("doctor --help", "Usage: kube-proxy [flags]"),
            ("--version", "Kubernetes v1.36."),
            ("--version=true", "Kubernetes v1.36."),
            ("--version=1", "Kubernetes v1.36."),
            ("--version=raw", "version.Info{Major:\"1\", Minor:\"36\", GitVersion:\"v1.36."),
        ] {
            let exit = read(line).expect_err(line);
            assert!(exit.code == 0 && exit.to_stdout && exit.message.starts_with(expected), "{line}: {exit:?}");
        }
    }

    #[test]
    fn what_is_wrong_goes_to_stderr_with_code_1_in_one_line() {
        for (line, expected) in [
            ("--bogus", "Error: unknown flag: --bogus"),
            ("run", "Error: \"kube-proxy\" does not take any arguments, got [\"run\"]"),
            ("--json", "Error: unknown flag: --json"),
            ("--cleanup=maybe", "Error: parsing option '--cleanup' with value 'maybe': \"maybe\" is neither true"),
            ("--oom-score-adj=x", "Error: parsing option '--oom-score-adj' with value 'x'"),
            ("--oom-score-adj=3000000000", "Error: parsing option '--oom-score-adj'"),
            (
                "--bind-address=host",
                "Error: parsing option '--bind-address' with value 'host': \"host\" is not a valid IP",
            ),
            ("--healthz-bind-address=1.2.3", "Error: parsing option '--healthz-bind-address' with value '1.2.3'"),
            (
                "--healthz-bind-address=x:1",
                "Error: parsing option '--healthz-bind-address' with value 'x:1': \"x\" is not",
            ),
            ("--healthz-bind-address=1.2.3.4:99999", "Error: parsing option '--healthz-bind-address'"),
            (
                "--conntrack-udp-timeout=5",
                "Error: parsing option '--conntrack-udp-timeout' with value '5': invalid dur",
            ),
            ("--feature-gates=X", "Error: parsing option '--feature-gates' with value 'X': missing bool value for X"),
            ("--vmodule=a", "Error: parsing option '--vmodule' with value 'a': \"a\" is not of the form pattern=N"),
            ("--log-json-info-buffer-size=x", "Error: parsing option '--log-json-info-buffer-size' with value 'x'"),
            ("--version=v1.36.9", "Error: --version: \"v1.36.9\" is not v1.36.2"),
            ("--version=v9", "Error: --version: \"v9\" is not v1.36.2"),
            ("--version=vfoo", "Error: --version: \"vfoo\" is not v1.36.2"),
            ("--version=v1.36.20", "Error: --version: \"v1.36.20\" is not v1.36.2"),
            ("--version=v1.36.2-", "Error: --version: \"v1.36.2-\" is not v1.36.2"),
            ("--version=v1.36.2-a_b", "Error: --version: \"v1.36.2-a_b\" is not v1.36.2"),
            ("--healthz-bind-address=1.2.3.4:+80", "Error: parsing option '--healthz-bind-address'"),
            ("--kube-api-qps=NaN", "Error: parsing option '--kube-api-qps' with value 'NaN': \"NaN\" is not a valid"),
            ("--help=maybe", "Error: --help: \"maybe\" is neither true nor false"),
            ("-v=+1", "Error: parsing option '--v' with value '+1'"),
            ("--nodeport-addresses=\"a", "Error: parsing option '--nodeport-addresses'"),
            ("--version=9", "Error: --version: \"9\" is neither true nor false, nor raw"),
        ] {
            let exit = read(line).expect_err(line);
            assert!(exit.code == 1 && !exit.to_stdout && exit.message.starts_with(expected), "{line}: {exit:?}");
            assert!(!exit.message.contains('\n'), "{line}: {exit:?}");
        }
    }

    #[test]
    fn words_that_are_no_text_are_refused() {
        use std::os::unix::ffi::OsStringExt;
        let exit = parse([OsString::from_vec(b"--config=\xff".to_vec())]).unwrap_err();
        assert!(exit.message.contains("is not UTF-8"), "{exit:?}");
    }
}
