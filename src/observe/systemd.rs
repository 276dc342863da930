//! Word to systemd, or whoever set `NOTIFY_SOCKET`: ready, state, still alive, stopping (`sd_notify(3)`).
//!
//! Must not fail anything: without a supervisor, or with one that does not listen, every call is a no-op.

use std::fmt;
use std::time::{Duration, SystemTime};

use async_io::Timer;
use sd_notify::NotifyState;

use super::time::rfc3339;

/// What [`Status::Serving`] says and [`Status::Waiting`] does not: rules are in the kernel.
pub const SYNCED: &str = "last sync";

/// What `systemctl status` shows. Each begins with the mode in use.
#[derive(Clone, Copy, Debug)]
pub enum Status<'a> {
    /// Nothing is programmed yet, for want of this.
    Waiting(&'a str, &'a str),
    /// Rules are in the kernel, of all families that can be programmed.
    Serving {
        /// The mode in use.
        mode: &'a str,
        /// Services in the kernel, counted once however many families they have.
        services: u32,
        /// Endpoints in the kernel.
        endpoints: u32,
        /// When a sync last succeeded.
        synced: SystemTime,
    },
}

/// Everything that this node can do by itself is done. Rules follow when objects come: that may need an API server,
/// which may need a kubelet, which systemd may start only after us.
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

/// Says [`alive`] as often as needed while something else on this thread is waited for. Never ends by itself.
pub async fn stay_alive<T>() -> T {
    let Some(interval) = watchdog_interval() else { return std::future::pending().await };
    loop {
        alive();
        Timer::after(interval).await;
    }
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
        match self {
            Self::Waiting(mode, what) => write!(f, "{mode}: waiting for {what}"),
            Self::Serving { mode, services, endpoints, synced } => {
                write!(f, "{mode}: {services} Services, {endpoints} endpoints, {SYNCED} {}", rfc3339(*synced))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::UNIX_EPOCH;

    use super::*;

    #[test]
    fn the_state_reads_well() {
        let waiting = Status::Waiting("nftables", "the API server https://10.0.0.1:6443");
        assert_eq!(waiting.to_string(), "nftables: waiting for the API server https://10.0.0.1:6443");
        let synced = UNIX_EPOCH + Duration::from_secs(60);
        let serving = Status::Serving { mode: "nftables", services: 12, endpoints: 30, synced };
        assert_eq!(serving.to_string(), "nftables: 12 Services, 30 endpoints, last sync 1970-01-01T00:01:00Z");
    }
}
