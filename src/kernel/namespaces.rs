//! Namespaces of one's own (`unshare(2)`): a network that nobody else sees, with or without being root.
//!
//! Must be used by a process that has a single thread yet, as the kernel demands. What is made here goes when the last
//! process inside ends.

use std::fs;
use std::io;
use std::path::Path;

use nix::errno::Errno;
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};
use nix::sys::prctl::set_pdeathsig;
use nix::sys::signal::Signal;
use nix::unistd::{getegid, geteuid};

/// Moves this process into network and mount namespaces of its own, with an empty `scratch` folder in memory. Where
/// that needs more rights than it has, it becomes root of a user namespace first; returns whether it did.
///
/// # Errors
/// When the kernel, or whoever configured it, does not allow it: typically `EPERM`, or `ENOSPC` for a limit of zero.
pub fn leave_node(scratch: &Path) -> io::Result<bool> {
    let wanted = CloneFlags::CLONE_NEWNET | CloneFlags::CLONE_NEWNS;
    let as_user = match unshare(wanted) {
        Ok(()) => false,
        Err(Errno::EPERM) => {
            let (user, group) = (geteuid(), getegid());
            unshare(CloneFlags::CLONE_NEWUSER | wanted)?;
            // user_namespaces(7): groups can only be mapped once setgroups(2) is given up.
            fs::write("/proc/self/setgroups", "deny")?;
            fs::write("/proc/self/uid_map", format!("0 {user} 1"))?;
            fs::write("/proc/self/gid_map", format!("0 {group} 1"))?;
            true
        }
        Err(error) => return Err(error.into()),
    };
    mount(None::<&str>, "/", None::<&str>, MsFlags::MS_REC | MsFlags::MS_PRIVATE, None::<&str>)?;
    mount(Some("tmpfs"), scratch, Some("tmpfs"), MsFlags::MS_NOSUID | MsFlags::MS_NODEV, None::<&str>)?;
    Ok(as_user)
}

/// Moves this process into a network namespace of its own.
///
/// # Errors
/// When the kernel does not allow it.
pub fn leave_network() -> io::Result<()> {
    unshare(CloneFlags::CLONE_NEWNET).map_err(Into::into)
}

/// Lets the kernel end this process when the one that started it ends, however that happens.
///
/// # Errors
/// None that `prctl(2)` knows of.
pub fn end_with_parent() -> io::Result<()> {
    set_pdeathsig(Signal::SIGTERM).map_err(Into::into)
}
