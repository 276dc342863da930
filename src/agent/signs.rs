//! Signs from outside that concern the process as a whole: signals, and a changed configuration file (contract 2.4).
//!
//! Says what happened; what follows is for the loop.

use std::io;
use std::path::{Path, PathBuf};

use async_io::Async;
use nix::errno::Errno;
use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify};
use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};

/// SIGTERM and SIGINT, read instead of dying of them.
pub struct Signals(Async<SignalFd>);

/// The configuration file, while somebody may write it.
pub struct ConfigFile {
    path: PathBuf,
    watch: Async<Inotify>,
}

// === impl Signals ===

impl Signals {
    /// Begins to catch both.
    ///
    /// # Errors
    /// When the kernel gives no descriptor for it.
    pub fn catch() -> io::Result<Self> {
        let mut caught = SigSet::empty();
        caught.add(Signal::SIGTERM);
        caught.add(Signal::SIGINT);
        caught.thread_block()?;
        let fd = SignalFd::with_flags(&caught, SfdFlags::SFD_NONBLOCK | SfdFlags::SFD_CLOEXEC)?;
        Ok(Self(Async::new(fd)?))
    }

    /// Waits for one, and tells its name.
    pub async fn next(&self) -> &'static str {
        loop {
            // A failure to wait shows in the next read, or not at all.
            let _ = self.0.readable().await;
            if let Ok(Some(info)) = self.0.get_ref().read_signal() {
                return Signal::try_from(info.ssi_signo as i32).map_or("a signal", Signal::as_str);
            }
        }
    }
}

// === impl ConfigFile ===

impl ConfigFile {
    /// Begins to watch the file.
    ///
    /// # Errors
    /// When it is not there or inotify is exhausted (`fs.inotify.max_user_instances`).
    pub fn watch(path: &Path) -> io::Result<Self> {
        let watch = Inotify::init(InitFlags::IN_NONBLOCK | InitFlags::IN_CLOEXEC)?;
        watch.add_watch(path, AddWatchFlags::IN_MODIFY | AddWatchFlags::IN_MOVE_SELF)?;
        Ok(Self { path: path.to_owned(), watch: Async::new(watch)? })
    }

    /// Waits until it was written or moved away.
    pub async fn changed(&self) -> &Path {
        loop {
            let _ = self.watch.readable().await;
            match self.watch.get_ref().read_events() {
                Err(Errno::EAGAIN | Errno::EINTR) => {}
                Ok(events) if events.iter().all(|event| event.mask.contains(AddWatchFlags::IN_IGNORED)) => {}
                _ => return &self.path,
            }
        }
    }
}
