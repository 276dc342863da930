//! A call of `iptables-restore` that reads its text while it is still being written, so that a long one takes no longer
//! than the tool alone.
//!
//! Must not judge what the tool says: whoever hears of a refusal runs the text once more, to learn whose it was.

use std::io::{BufWriter, Write};
use std::process::{Child, ChildStdin};

use super::probe::Tools;
use super::shared::Table;

/// Bytes that are collected before they are written: few, for the tool has nothing to do before the first of them.
const PIECE: usize = 1 << 14;

/// The tool starts with the first line.
pub struct Tap {
    tools: Tools,
    running: Option<Running>,
    failed: bool,
}

struct Running {
    tool: Child,
    text: BufWriter<ChildStdin>,
    table: Table,
}

// === impl Tap ===

impl Tap {
    /// Nothing is running yet.
    pub fn new(tools: Tools) -> Self {
        Self { tools, running: None, failed: false }
    }

    /// Gives lines for a table to the tool. One that does not want to read on has refused something: what, is found out
    /// later.
    pub fn write(&mut self, table: Table, lines: &str) {
        if !lines.is_empty() {
            self.failed |= self.open(table).is_some_and(|text| text.write_all(lines.as_bytes()).is_err());
        }
    }

    fn open(&mut self, table: Table) -> Option<&mut dyn Write> {
        if self.failed {
            return None;
        }
        let begun = match &mut self.running {
            Some(running) if running.table == table => Ok(()),
            Some(running) => {
                running.table = table;
                write!(running.text, "COMMIT\n*{}\n", table.as_str())
            }
            None => self.tools.reader().and_then(|(tool, stdin)| {
                let mut text = BufWriter::with_capacity(PIECE, stdin);
                // At once, for the tool reads the table when it is named.
                let begun = writeln!(text, "*{}", table.as_str()).and_then(|()| text.flush());
                self.running = Some(Running { tool, text, table });
                begun
            }),
        };
        self.failed = begun.is_err();
        match &mut self.running {
            Some(running) if !self.failed => Some(&mut running.text),
            _ => None,
        }
    }

    /// Ends the text and waits. Whether the tool took all of it, or had nothing to take.
    pub fn ended_well(mut self) -> bool {
        let Some(Running { mut tool, mut text, .. }) = self.running.take() else { return !self.failed };
        let written = text.write_all(b"COMMIT\n").and_then(|()| text.flush());
        // What could not be written before cannot be written now.
        let (stdin, _rest) = text.into_parts();
        drop(stdin);
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
