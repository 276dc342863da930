//! Word to systemd, or whoever set `NOTIFY_SOCKET`: ready, state, still alive, stopping (`sd_notify(3)`).
//!
//! Must not fail anything: without a supervisor, or with one that does not listen, every call is a no-op.

use std::fmt;
use std::time::{Duration, SystemTime};

use sd_notify::NotifyState;

use super::time::rfc3339;

/// What `systemctl status` shows.
#[derive(Clone, Copy, Debug)]
pub struct Status<'a> {
    /// The mode in use.
    pub mode: &'a str,
    /// Services in the kernel, counted once however many families they have.
    pub services: usize,
    /// Endpoints in the kernel.
    pub endpoints: usize,
    /// When a sync last succeeded.
    pub synced: Option<SystemTime>,
}

/// Everything that was asked for is in the kernel for the first time.
pub fn ready(status: &Status<'_>) {
    tell(&[NotifyState::Ready, NotifyState::Status(&status.to_string())]);
}

/// The state changed.
pub fn status(status: &Status<'_>) {
    tell(&[NotifyState::Status(&status.to_string())]);
}

/// How often [`alive`] must be called for the watchdog to be content: half of its patience. `None`: nobody watches.
pub fn watchdog_interval() -> Option<Duration> {
    sd_notify::watchdog_enabled().map(|patience| patience / 2)
}

/// The loop turns. To be called by the loop itself, never by something that would go on without it.
pub fn alive() {
    tell(&[NotifyState::Watchdog]);
}

/// The configuration is read again; followed by [`ready`].
pub fn reloading() {
    if let Ok(now) = NotifyState::monotonic_usec_now() {
        tell(&[NotifyState::Reloading, now]);
    }
}

/// The program ends; its rules stay.
pub fn stopping() {
    tell(&[NotifyState::Stopping, NotifyState::Status("stopping; all rules stay in place")]);
}

fn tell(states: &[NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(states) {
        ::log::debug!("cannot notify the supervisor: {error}");
    }
}

// === impl Status ===

impl fmt::Display for Status<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { mode, services, endpoints, synced } = self;
        write!(f, "{mode}: {services} Services, {endpoints} endpoints, ")?;
        match synced {
            Some(when) => write!(f, "last sync {}", rfc3339(*when)),
            None => f.write_str("no sync yet"),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::UNIX_EPOCH;

    use super::*;

    #[test]
    fn the_state_reads_well() {
        let mut status = Status { mode: "nftables", services: 12, endpoints: 30, synced: None };
        assert_eq!(status.to_string(), "nftables: 12 Services, 30 endpoints, no sync yet");
        status.synced = Some(UNIX_EPOCH + Duration::from_secs(60));
        assert_eq!(status.to_string(), "nftables: 12 Services, 30 endpoints, last sync 1970-01-01T00:01:00Z");
    }
}
