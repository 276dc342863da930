//! A call of `iptables-restore` that reads its text while it is still being written, so that a long one takes no longer
//! than the tool alone.
//!
//! Must not judge what the tool says: whoever hears of a refusal runs the text once more, to learn whose it was.

use std::fs::File;
use std::io::{self, Write};
use std::ops::Range;
use std::process::{Child, ChildStdin};
use std::thread;
use std::time::Duration;

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, SpliceFFlags, fcntl, splice};

use super::probe::Tools;
use super::shared::Table;

/// How long to look away from a full pipe, for each byte that it holds: a tool reads some 16 MB in a second, so a quarter
/// of it meanwhile.
const BREATH: Duration = Duration::from_nanos(16);

/// The tool starts with the first line.
pub struct Tap {
    tools: Tools,
    running: Option<Running>,
    failed: bool,
}

struct Running {
    tool: Child,
    text: ChildStdin,
    table: Table,
}

// === impl Tap ===

impl Tap {
    /// Nothing is running yet.
    pub fn new(tools: Tools) -> Self {
        Self { tools, running: None, failed: false }
    }

    /// Gives lines for a table to the tool: these bytes of a file in memory, whose pages it gets to read, as far as its pipe
    /// has room. Returns up to where. A tool that does not want to read on has refused something: what, is found out
    /// later, and nothing is left to be passed.
    pub fn pass(&mut self, table: Table, file: &File, bytes: Range<u64>) -> u64 {
        if self.failed {
            return bytes.end;
        }
        self.try_pass(table, file, bytes.clone()).unwrap_or_else(|error| {
            log::debug!("{} does not read along: {error}", self.tools.family().as_str());
            self.failed = true;
            bytes.end
        })
    }

    /// Gives the tool time to read. Whoever waits for room in a full pipe is woken for each page that is read, which takes
    /// time from the tool.
    pub fn rest(&self) {
        let size = self.running.as_ref().and_then(|running| fcntl(&running.text, FcntlArg::F_GETPIPE_SZ).ok());
        thread::sleep(BREATH * size.map_or(0, i32::unsigned_abs));
    }

    fn try_pass(&mut self, table: Table, file: &File, bytes: Range<u64>) -> io::Result<u64> {
        let text = match &mut self.running {
            Some(running) => {
                if running.table != table {
                    running.table = table;
                    write!(running.text, "COMMIT\n*{}\n", table.as_str())?;
                }
                &mut running.text
            }
            None => {
                let (tool, text) = self.tools.reader()?;
                let Running { text, .. } = self.running.insert(Running { tool, text, table });
                writeln!(text, "*{}", table.as_str())?;
                text
            }
        };
        let mut at = bytes.start.cast_signed();
        while at.cast_unsigned() < bytes.end {
            let left = (bytes.end - at.cast_unsigned()) as usize;
            match splice(file, Some(&mut at), &*text, None, left, SpliceFFlags::SPLICE_F_NONBLOCK) {
                Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
                Ok(_) => {}
                Err(Errno::EAGAIN) => break,
                Err(error) => return Err(error.into()),
            }
        }
        Ok(at.cast_unsigned())
    }

    /// Ends the text and waits. Whether the tool took all of it, or had nothing to take.
    pub fn ended_well(mut self) -> bool {
        let Some(Running { mut tool, mut text, .. }) = self.running.take() else { return !self.failed };
        // What is cut off is not carried out.
        let written = !self.failed && text.write_all(b"COMMIT\n").is_ok();
        drop(text);
        written & tool.wait().is_ok_and(|status| status.success())
    }
}

impl Drop for Tap {
    /// A text that nobody ended is not carried out; the tool is waited for all the same.
    fn drop(&mut self) {
        if let Some(Running { mut tool, text, .. }) = self.running.take() {
            drop(text);
            let _ = tool.wait();
        }
    }
}
