//! A call of `iptables-restore` that reads its text while it is still being written, so that a long one takes no longer
//! than the tool alone.
//!
//! Must not judge what the tool says: whoever hears of a refusal runs the text once more, to learn whose it was.

use std::fs::File;
use std::io::{self, Write};
use std::ops::Range;
use std::process::{Child, ChildStdin};

use nix::errno::Errno;
use nix::fcntl::{SpliceFFlags, splice};

use super::probe::Tools;
use super::shared::Table;

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
        let passed = if self.failed { Ok(bytes.end) } else { self.try_pass(table, file, bytes.clone()) };
        self.failed |= passed.is_err();
        passed.unwrap_or(bytes.end)
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
        let written = text.write_all(b"COMMIT\n");
        drop(text);
        let status = tool.wait();
        !self.failed && written.is_ok() && status.is_ok_and(|status| status.success())
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
