//! Schedulers: how they are written in the configuration and in annotations, and what the kernel is told.
//!
//! `NAME` or `NAME:FLAG,FLAG`. Any scheduler that the kernel has may be named: rr, wrr, lc, wlc, lblc, lblcr, sh, dh,
//! sed, nq, mh, fo, ovf. The flags are `port` (the client's port counts too) and `fallback` (a client whose real server
//! is not available gets another), for `sh` and `mh` only. `mh` alone means `mh:port`, as upstream has it; `mh:` has
//! no flags. Must not know which schedulers the running kernel has.

use std::fmt;
use std::rc::Rc;

use crate::kernel::ipvs::{SCHEDULER_FALLBACK, SCHEDULER_PORT};

/// `IP_VS_SCHEDNAME_MAXLEN`, with the terminating NUL.
const NAME_LIMIT: usize = 16;

/// A scheduler with its flags.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Scheduler {
    /// Its name.
    pub name: Rc<str>,
    /// `IP_VS_SVC_F_SCHED*`.
    pub flags: u32,
}

/// Why a text is no scheduler.
#[derive(Debug, PartialEq, Eq)]
pub enum Malformed {
    /// The name cannot be one.
    Name(String),
    /// There is no such flag, or not for this scheduler.
    Flag(String),
}

// === impl Scheduler ===

impl Scheduler {
    /// Reads a scheduler.
    ///
    /// # Errors
    /// When the text has another form; the message says which part.
    pub fn parse(text: &str) -> Result<Self, Malformed> {
        let (name, flags) = match text.split_once(':') {
            None if text == "mh" => (text, "port"),
            None => (text, ""),
            Some(parts) => parts,
        };
        let plain = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_';
        // To the kernel, `none` is a virtual server that chooses nobody.
        if name.is_empty() || name == "none" || name.len() >= NAME_LIMIT || !name.bytes().all(plain) {
            return Err(Malformed::Name(text.into()));
        }
        let has_flags = matches!(name, "sh" | "mh");
        let flags = flags.split(',').filter(|flag| !flag.is_empty()).try_fold(0, |flags, flag| match flag {
            "port" if has_flags => Ok(flags | SCHEDULER_PORT),
            "fallback" if has_flags => Ok(flags | SCHEDULER_FALLBACK),
            _ => Err(Malformed::Flag(text.into())),
        })?;
        Ok(Self { name: name.into(), flags })
    }
}

// === impl Malformed ===

impl fmt::Display for Malformed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Name(text) => {
                write!(f, "IPVS scheduler {text:?} is no name; write one such as rr, wrr, lc or mh:port")
            }
            Self::Flag(text) => {
                write!(f, "IPVS scheduler {text:?} has an unknown flag; there are port and fallback, for sh and mh")
            }
        }
    }
}

impl std::error::Error for Malformed {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_flags_are_read() {
        const BOTH: u32 = SCHEDULER_PORT | SCHEDULER_FALLBACK;
        for (text, name, flags) in [
            ("rr", "rr", 0),
            ("ovf", "ovf", 0),
            ("sh", "sh", 0),
            ("sh:port", "sh", SCHEDULER_PORT),
            ("sh:port,fallback", "sh", BOTH),
            ("mh", "mh", SCHEDULER_PORT),
            ("mh:", "mh", 0),
            ("mh:fallback", "mh", SCHEDULER_FALLBACK),
            ("my_own2", "my_own2", 0),
        ] {
            assert_eq!(Scheduler::parse(text), Ok(Scheduler { name: name.into(), flags }), "{text}");
        }
    }

    #[test]
    fn what_cannot_be_meant_is_refused() {
        for text in ["", "none", ":port", "RR", "r r", "a-name-of-16-byt", "../../etc"] {
            assert_eq!(Scheduler::parse(text), Err(Malformed::Name(text.into())));
        }
        for text in ["rr:port", "mh:ports", "wrr:fallback"] {
            assert_eq!(Scheduler::parse(text), Err(Malformed::Flag(text.into())));
        }
    }
}
