//! The node's iptables tools: whether they are there, which variant, and how to start them.
//!
//! Which variant (legacy or nft) is the choice of whoever put `iptables` into the PATH: the node's other rules are made
//! with it too. Must not know what the rules are.

use std::fs::File;
use std::io::{self, BufRead, BufReader};
use std::process::{Child, ChildStdin, Command, ExitStatus, Stdio};

use nix::fcntl::{FcntlArg, fcntl};

use crate::backend::Error;
use crate::model::Family;

use super::shared::Table;

/// The first version whose `iptables-restore` waits for the lock and whose MASQUERADE knows `--random-fully`.
const OLDEST: [u32; 3] = [1, 6, 2];
/// How long to wait for other users of iptables, in seconds.
const LOCK_WAIT: &str = "5";
/// How much may be written before the tool has read it, in bytes: as much as those without privileges may ask for.
const PIPE: i32 = 1 << 20;
/// For a tool with glibc that reads much: its heap has huge pages, which saves three of four page faults (*measured*), and
/// what a line takes and gives back is kept at hand for the next one.
const GLIBC: (&str, &str) =
    ("GLIBC_TUNABLES", "glibc.malloc.hugetlb=1:glibc.malloc.tcache_count=128:glibc.malloc.mxfast=0");
/// Exit status when another process held the lock, or the kernel was out of resources.
const RESOURCE_PROBLEM: i32 = 4;

/// How iptables talks to the kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Variant {
    /// Replaces whole tables.
    Legacy,
    /// Translates to nftables.
    Nft,
}

/// The tools of one family.
#[derive(Clone, Copy, Debug)]
pub struct Tools {
    family: Family,
    variant: Variant,
    /// What follows `iptables` in their names: mostly nothing.
    infix: &'static str,
}

/// Why `iptables-restore` did nothing.
#[derive(Debug)]
pub struct Refusal {
    /// The line at fault, from 1, if it says so; for some faults that is the last line of the table.
    pub line: Option<u32>,
    /// What it printed, on one line.
    pub message: String,
    /// Nothing is wrong with the text: it may work later.
    pub busy: bool,
}

/// A question to a tool that may take its time.
pub struct Question {
    asked: Option<Child>,
    answer: bool,
}

/// Checks that the kernel and its tools can do iptables for a family (contract 3.3). Tools that are only busy can.
///
/// # Errors
/// What the tool said, or why it does not run.
pub fn supported(family: Family) -> Result<(), String> {
    let name = tool(family, "");
    let mut command = Command::new(&name);
    command.args(["-w", LOCK_WAIT, "-S", "POSTROUTING", "-t", "nat"]).stdin(Stdio::null()).stdout(Stdio::null());
    let output = command.output().map_err(|error| format!("{name}: {error}"))?;
    if output.status.success() || output.status.code() == Some(RESOURCE_PROBLEM) {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&output.stderr);
    Err(said.lines().next().map_or_else(|| format!("{name}: {}", output.status), str::to_owned))
}

fn tool(family: Family, suffix: &str) -> String {
    match family {
        Family::V4 => format!("iptables{suffix}"),
        Family::V6 => format!("ip6tables{suffix}"),
    }
}

/// Reads `iptables v1.8.9 (nf_tables)`; before 1.8 there was no word in brackets, and only legacy.
fn parse_version(text: &str) -> Option<([u32; 3], Variant)> {
    let mut words = text.split_whitespace().skip(1);
    let mut parts = words.next()?.strip_prefix('v')?.split('.');
    let version = [parts.next()?.parse().ok()?, parts.next()?.parse().ok()?, parts.next().unwrap_or("0").parse().ok()?];
    let variant = if words.next() == Some("(nf_tables)") { Variant::Nft } else { Variant::Legacy };
    Some((version, variant))
}

/// Finds `line 7`, `line: 7` in what the tool printed.
fn failing_line(message: &str) -> Option<u32> {
    message.match_indices("line").find_map(|(at, word)| {
        let rest = message[at + word.len()..].trim_start_matches([':', ' ']);
        let digits = rest.bytes().take_while(u8::is_ascii_digit).count();
        rest[..digits].parse().ok()
    })
}

// === impl Tools ===

impl Tools {
    /// Looks what the PATH has. `None` when there is no iptables at all; an error when there is one that cannot be used.
    pub fn find(family: Family) -> Result<Option<Self>, Error> {
        Self::named(family, "")
    }

    /// The tools of the legacy variant, whichever variant goes by the plain name.
    pub fn legacy(family: Family) -> Result<Option<Self>, Error> {
        match Self::named(family, "-legacy")? {
            Some(tools) => Ok(Some(tools)),
            None => Ok(Self::find(family)?.filter(|tools| tools.variant == Variant::Legacy)),
        }
    }

    fn named(family: Family, infix: &'static str) -> Result<Option<Self>, Error> {
        let name = tool(family, infix);
        let output = match Command::new(&name).arg("--version").stdin(Stdio::null()).output() {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(Error(format!("run {name} --version: {error}"))),
            Ok(output) => output,
        };
        let text = String::from_utf8_lossy(&output.stdout);
        let (version, variant) = parse_version(&text)
            .ok_or_else(|| Error(format!("run {name} --version: no version in {:?}; is it iptables?", text.trim())))?;
        if version < OLDEST {
            return Err(Error(format!(
                "{name} is {}, which does not wait for its lock; install 1.6.2 or later",
                text.trim()
            )));
        }
        Ok(Some(Self { family, variant, infix }))
    }

    /// The tools, or an error that says how to get them.
    pub fn require(family: Family) -> Result<Self, Error> {
        Self::find(family)?.ok_or_else(|| {
            Error(format!("{} is not in the PATH; install it or choose mode nftables", tool(family, "")))
        })
    }

    fn tool(self, suffix: &str) -> String {
        tool(self.family, &format!("{}{suffix}", self.infix))
    }

    /// The family that these tools are for.
    pub fn family(self) -> Family {
        self.family
    }

    /// How this iptables talks to the kernel.
    pub fn variant(self) -> Variant {
        self.variant
    }

    /// Runs `iptables-restore --noflush` on a file, from its beginning.
    pub fn restore(self, text: File) -> Result<(), Refusal> {
        let name = self.tool("-restore");
        let failed = |message| Refusal { line: None, message, busy: true };
        let output = Command::new(&name)
            .args(["--noflush", "-w", LOCK_WAIT])
            .stdin(Stdio::from(text))
            .stdout(Stdio::null())
            .output()
            .map_err(|error| failed(format!("run {name}: {error}")))?;
        if output.status.success() {
            return Ok(());
        }
        let printed = String::from_utf8_lossy(&output.stderr);
        let line = failing_line(&printed);
        let said: Vec<_> =
            printed.lines().map(str::trim).filter(|l| !l.is_empty() && !l.starts_with("Try `")).collect();
        let message = if said.is_empty() { format!("{name}: {}", output.status) } else { said.join(" ") };
        Err(Refusal { line, message, busy: output.status.code().is_none_or(|code| code == RESOURCE_PROBLEM) })
    }

    /// Starts `iptables-restore --noflush`, which reads what is written into its standard input.
    pub fn reader(self) -> io::Result<(Child, ChildStdin)> {
        let mut command = Command::new(self.tool("-restore"));
        if std::env::var_os(GLIBC.0).is_none() {
            command.env(GLIBC.0, GLIBC.1);
        }
        let mut child = command
            .args(["--noflush", "-w", LOCK_WAIT])
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()?;
        let stdin = child.stdin.take().expect("its input is a pipe");
        // Only a matter of speed: the tool should not have to wait for us.
        let _ = fcntl(&stdin, FcntlArg::F_SETPIPE_SZ(PIPE));
        Ok((child, stdin))
    }

    /// Asks the tool whether it has an extension; it answers while other things are done.
    pub fn ask_for_match(self, name: &str) -> Question {
        let mut command = Command::new(self.tool(""));
        command.args(["-m", name, "--help"]).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        Question { asked: command.spawn().ok(), answer: false }
    }

    /// Reads a table with `iptables-save`, line by line.
    pub fn save(self, table: Table, mut each: impl FnMut(&str)) -> Result<(), Error> {
        let name = self.tool("-save");
        let failed = |error: io::Error| Error(format!("read table {} with {name}: {error}", table.as_str()));
        let mut child = Command::new(&name)
            .args(["-t", table.as_str()])
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .map_err(failed)?;
        let mut lines = BufReader::new(child.stdout.take().expect("its output is a pipe"));
        let mut line = String::new();
        let read = loop {
            line.clear();
            match lines.read_line(&mut line) {
                Ok(0) => break Ok(()),
                Ok(_) => each(line.trim_end_matches('\n')),
                Err(error) => break Err(failed(error)),
            }
        };
        drop(lines);
        let status = child.wait().map_err(failed)?;
        read?;
        if status.success() {
            Ok(())
        } else {
            Err(Error(format!("read table {} with {name}: {status}", table.as_str())))
        }
    }

    /// The rules of one chain, as `iptables -S` prints them; `None` when there is no such chain. When the tool had no
    /// chance to look, the error is its exit status.
    pub fn chain(self, table: Table, name: &str) -> Result<Option<String>, ExitStatus> {
        let mut command = Command::new(self.tool(""));
        command.args(["-w", LOCK_WAIT, "-t", table.as_str(), "-S", name]).stdin(Stdio::null()).stderr(Stdio::null());
        match command.output() {
            Ok(output) if output.status.success() => Ok(Some(String::from_utf8_lossy(&output.stdout).into_owned())),
            Ok(output) if output.status.code() == Some(RESOURCE_PROBLEM) => Err(output.status),
            Ok(_) | Err(_) => Ok(None),
        }
    }
}

// === impl Question ===

impl Question {
    /// Waits for the answer.
    pub fn is_answered_with_yes(&mut self) -> bool {
        if let Some(mut tool) = self.asked.take() {
            self.answer = tool.wait().is_ok_and(|status| status.success());
        }
        self.answer
    }
}

impl Drop for Question {
    /// The tool is waited for, even if nobody wants to know any more.
    fn drop(&mut self) {
        self.is_answered_with_yes();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_tell_the_variant() {
        for (text, expected) in [
            ("iptables v1.8.9 (nf_tables)\n", Some(([1, 8, 9], Variant::Nft))),
            ("ip6tables v1.8.10 (legacy)\n", Some(([1, 8, 10], Variant::Legacy))),
            ("iptables v1.6.1", Some(([1, 6, 1], Variant::Legacy))),
            ("iptables v1.8", Some(([1, 8, 0], Variant::Legacy))),
            ("BusyBox", None),
            ("", None),
        ] {
            assert_eq!(parse_version(text), expected, "{text:?}");
        }
    }

    #[test]
    fn the_line_at_fault_is_found_in_every_wording() {
        for (text, expected) in [
            ("iptables-restore: line 24 failed", Some(24)),
            ("iptables-restore v1.8.9 (legacy): unknown option \"--bogus\"\nError occurred at line: 4\nTry", Some(4)),
            (
                "iptables-nft-restore v1.8.9 (nf_tables): \nline 23: RULE_APPEND failed (Invalid argument): rule in chain A",
                Some(23),
            ),
            ("iptables-nft-restore: line 4 failed: Bad rule (does a matching rule exist in that chain?).", Some(4)),
            ("Another app is currently holding the xtables lock.", None),
        ] {
            assert_eq!(failing_line(text), expected, "{text:?}");
        }
    }
}
