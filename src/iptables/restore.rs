//! Texts for `iptables-restore`: written line by line, each line with the Service that owns it, and run so that a Service
//! the tool refuses is left out while all others are programmed.
//!
//! The text goes to an anonymous file in the page cache, which becomes the tool's standard input: nothing of it is kept in
//! this process, and it can be read again when a Service must be left out. Must not know what the rules mean.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, BufRead, BufReader, BufWriter, Read, Seek, Write};
use std::ops::Range;

use nix::sys::memfd::{MFdFlags, memfd_create};

use crate::backend::Error;

use super::probe::Tools;
use super::shared::Table;

/// Number of a Service among those that a script is about.
pub type Owner = u32;

/// Services that the tool refuses, and what it said.
pub type Aside = BTreeMap<Owner, String>;

/// Rules of one table, committed together.
pub struct Section {
    table: Table,
    text: BufWriter<File>,
    lines: usize,
    bytes: u64,
    /// Where the lines of an owner begin; they end where the next ones begin.
    marks: Vec<Mark>,
}

#[derive(Clone, Copy)]
struct Mark {
    line: usize,
    byte: u64,
    owner: Option<Owner>,
}

/// A part of a composed text: from this line on, lines belong to the owner.
struct Origin {
    first_line: usize,
    owner: Option<Owner>,
}

/// Runs the sections in one call of the tool, each a transaction of its own. Services that are refused go to `aside`
/// and those that are in there are left out; when the rest is programmed, this succeeds. Fails, with nothing of the
/// refused section programmed, when a line that no Service owns is refused, or a line that takes something away: then
/// the kernel does not hold what it should, and everything must be read and programmed anew.
pub fn run(tools: Tools, sections: &mut [Section], owners: Owner, aside: &mut Aside) -> Result<(), Error> {
    while let Err(culprit) = attempt(tools, sections, 0..owners, aside)? {
        match culprit.owner {
            Some(owner) => aside.insert(owner, culprit.message),
            None => search(tools, sections, owners, aside, culprit.message)?,
        };
    }
    Ok(())
}

struct Culprit {
    owner: Option<Owner>,
    message: String,
}

/// Finds a Service that the tool refuses without naming its line, by halves. What the halves program on the way is
/// overwritten when all of the rest is.
fn search(
    tools: Tools,
    sections: &mut [Section],
    owners: Owner,
    aside: &mut Aside,
    mut message: String,
) -> Result<Option<String>, Error> {
    let mut suspects = 0..owners;
    while suspects.len() > 1 {
        let half = suspects.start..suspects.start + suspects.end.abs_diff(suspects.start) / 2;
        match attempt(tools, sections, half.clone(), aside)? {
            Ok(()) => suspects = half.end..suspects.end,
            Err(Culprit { owner: Some(owner), message }) => return Ok(aside.insert(owner, message)),
            Err(culprit) => (suspects, message) = (half, culprit.message),
        }
    }
    if suspects.is_empty() || aside.contains_key(&suspects.start) {
        return Err(Error(format!("program rules that belong to no single Service: {message}")));
    }
    Ok(aside.insert(suspects.start, message))
}

/// One call of the tool with the lines of some owners, and those of nobody.
fn attempt(
    tools: Tools,
    sections: &mut [Section],
    owners: Range<Owner>,
    aside: &Aside,
) -> Result<Result<(), Culprit>, Error> {
    let wanted =
        |owner: Option<Owner>| owner.is_none_or(|owner| owners.contains(&owner) && !aside.contains_key(&owner));
    let (text, origins) =
        compose(sections, wanted).map_err(|error| Error(format!("write rules to memory: {error}")))?;
    let copy = text.try_clone().map_err(|error| Error(format!("write rules to memory: {error}")))?;
    let Err(refusal) = tools.restore(text) else { return Ok(Ok(())) };
    if refusal.busy {
        return Err(Error(format!("program rules: {}", refusal.message)));
    }
    let Some(number) = refusal.line else { return Ok(Err(Culprit { owner: None, message: refusal.message })) };
    let line = nth_line(copy, number).unwrap_or_default();
    let message = format!("{} [{line}]", refusal.message);
    let owner = origins.iter().rev().find(|origin| origin.first_line < number as usize).and_then(|origin| origin.owner);
    if line.starts_with("-D") || line.starts_with("-X") || owner.is_none() && line != "COMMIT" {
        return Err(Error(format!("program rules: {message}")));
    }
    Ok(Err(Culprit { owner, message }))
}

fn compose(sections: &mut [Section], wanted: impl Fn(Option<Owner>) -> bool) -> io::Result<(File, Vec<Origin>)> {
    let mut text = BufWriter::new(memory()?);
    let mut origins = Vec::new();
    let mut lines = 0;
    for section in sections.iter_mut().filter(|section| section.lines > 0) {
        section.text.flush()?;
        writeln!(text, "*{}", section.table.as_str())?;
        lines += 1;
        let end = Mark { line: section.lines, byte: section.bytes, owner: None };
        let ends = section.marks.iter().skip(1).chain([&end]);
        for (mark, end) in section.marks.iter().zip(ends).filter(|(mark, _)| wanted(mark.owner)) {
            origins.push(Origin { first_line: lines, owner: mark.owner });
            let file = section.text.get_mut();
            file.seek(io::SeekFrom::Start(mark.byte))?;
            io::copy(&mut file.take(end.byte - mark.byte), &mut text)?;
            lines += end.line - mark.line;
        }
        origins.push(Origin { first_line: lines, owner: None });
        writeln!(text, "COMMIT")?;
        lines += 1;
    }
    let mut text = text.into_inner()?;
    text.rewind()?;
    Ok((text, origins))
}

fn memory() -> io::Result<File> {
    Ok(memfd_create("rules", MFdFlags::MFD_CLOEXEC)?.into())
}

fn nth_line(mut text: File, number: u32) -> io::Result<String> {
    text.rewind()?;
    BufReader::new(text).lines().nth(number.saturating_sub(1) as usize).unwrap_or_else(|| Ok(String::new()))
}

// === impl Section ===

impl Section {
    /// An empty section for a table.
    pub fn new(table: Table) -> Result<Self, Error> {
        let text = memory().map_err(|error| Error(format!("make room for rules: {error}")))?;
        let marks = vec![Mark { line: 0, byte: 0, owner: None }];
        Ok(Self { table, text: BufWriter::new(text), lines: 0, bytes: 0, marks })
    }

    /// The table whose rules it has.
    pub fn table(&self) -> Table {
        self.table
    }

    /// From here on, lines belong to this Service; `None`: to all of them.
    pub fn own(&mut self, owner: Option<Owner>) {
        let mark = Mark { line: self.lines, byte: self.bytes, owner };
        match self.marks.last_mut() {
            Some(last) if last.line == mark.line => *last = mark,
            Some(last) if last.owner == owner => {}
            _ => self.marks.push(mark),
        }
    }

    /// Adds lines, each with its newline.
    pub fn add(&mut self, lines: std::fmt::Arguments<'_>) -> Result<(), Error> {
        let mut counted = Counted { text: &mut self.text, lines: 0, bytes: 0 };
        counted.write_fmt(lines).map_err(|error| Error(format!("write rules to memory: {error}")))?;
        self.lines += counted.lines;
        self.bytes += counted.bytes;
        Ok(())
    }

    /// How many lines it has.
    pub fn lines(&self) -> usize {
        self.lines
    }
}

struct Counted<'a> {
    text: &'a mut BufWriter<File>,
    lines: usize,
    bytes: u64,
}

impl Write for Counted<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.text.write_all(bytes)?;
        self.lines += bytes.iter().filter(|&&b| b == b'\n').count();
        self.bytes += bytes.len() as u64;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
