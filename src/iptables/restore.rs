//! Texts for `iptables-restore`: written line by line, each line with the Service that owns it, and run so that a Service
//! the tool refuses is left out while all others are programmed.
//!
//! The text goes to an anonymous file in the page cache, which becomes the tool's standard input, or whose pages a tool
//! reads along: nothing of it is kept in this process, and it can be read again when a Service must be left out. Must not
//! know what the rules mean.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, BufRead, BufReader, BufWriter, Read, Seek, Write};
use std::ops::Range;

use nix::sys::memfd::{MFdFlags, memfd_create};

use crate::backend::Error;

use super::probe::Tools;
use super::shared::Table;
use super::tap::Tap;

/// Bytes that are collected before they are written: of a change, and of everything.
const SHORT: usize = 1 << 12;
const LONG: usize = 1 << 14;

/// Number of a Service among those that a script is about.
pub type Owner = u32;

/// Services that the tool refuses.
pub type Aside = BTreeMap<Owner, Refused>;

/// Why a Service is set aside.
pub struct Refused {
    /// What the tool said, and the line that it is about.
    pub reason: String,
    /// Which of the sections has this line; those before it are programmed, with the Service's lines.
    pub section: usize,
}

/// Whose a line is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Whose {
    /// It belongs to this Service.
    Service(Owner),
    /// It belongs to all of them; to say it twice does no harm.
    All,
    /// It belongs to all of them, and must not be said twice, nor without all that is theirs.
    Once,
}

/// Rules of one table, committed together.
pub struct Section {
    table: Table,
    text: BufWriter<File>,
    lines: usize,
    bytes: u64,
    /// Where the lines of an owner begin; they end where the next ones begin.
    marks: Vec<Mark>,
    /// Its lines add to what is there, so none may be said twice.
    additive: bool,
    /// Services of an additive section that are programmed already, while a culprit is searched.
    landed: Vec<Range<Owner>>,
    along: Option<Along>,
}

/// A tool that reads along.
struct Along {
    tap: Tap,
    /// How many bytes it has taken, and how many there were when it was asked.
    passed: u64,
    offered: u64,
}

#[derive(Clone, Copy)]
struct Mark {
    line: usize,
    byte: u64,
    whose: Whose,
}

/// A part of a composed text: from this line on, lines are of this section and belong to the owner.
struct Origin {
    first_line: usize,
    section: usize,
    whose: Whose,
}

/// The parts of sections that one call of the tool is about.
#[derive(Clone)]
enum Part {
    Everything,
    /// These Services, and what may be said twice.
    Services(Range<Owner>),
}

/// Runs the sections in one call of the tool, each a transaction of its own. Services that are refused go to `aside`
/// and those that are in there are left out; when the rest is programmed, this succeeds, and says how many calls failed
/// on the way. Fails, with nothing of the refused section programmed, when a line that no Service owns is refused, or a
/// line that takes something away, or nobody knows what: then the kernel does not hold what it should, and everything must
/// be read and programmed anew.
pub fn run(tools: Tools, sections: &mut [Section], aside: &mut Aside) -> Result<usize, Error> {
    let (mut failures, mut done, mut unexplained) = (0, 0, 0);
    while sections[done..].iter().any(|section| section.lines() > 0) {
        let Err(culprit) = attempt(tools, &mut sections[done..], &Part::Everything, aside)? else { break };
        failures += 1;
        done += culprit.section;
        let found = match (culprit.owner, unexplained) {
            (Some(owner), _) => Some((owner, culprit.message)),
            // The kernel refuses a table that somebody else changed meanwhile: nobody's fault, and over the next time.
            (None, 0) => None,
            (None, 1) => search(tools, &mut sections[done], aside)?,
            (None, _) => return Err(Error(format!("program rules: {}", culprit.message))),
        };
        match found {
            Some((owner, reason)) => drop(aside.insert(owner, Refused { reason, section: done })),
            None => unexplained += 1,
        }
    }
    Ok(failures)
}

struct Culprit {
    owner: Option<Owner>,
    section: usize,
    message: String,
}

/// Finds a Service that the tool refuses without naming its line, by halves. What the halves program on the way is
/// overwritten when all of the rest is, or is not said again. `None`: nothing is refused any more.
fn search(tools: Tools, section: &mut Section, aside: &Aside) -> Result<Option<(Owner, String)>, Error> {
    let attempt = |section: &mut Section, suspects: Range<Owner>| {
        attempt(tools, std::slice::from_mut(section), &Part::Services(suspects), aside)
    };
    if let Err(culprit) = attempt(section, 0..0)? {
        return Err(Error(format!("program rules that belong to no single Service: {}", culprit.message)));
    }
    let mut suspects = section.owners();
    while !suspects.is_empty() {
        let half = suspects.start..suspects.start + suspects.end.abs_diff(suspects.start).div_ceil(2);
        match attempt(section, half.clone())? {
            Ok(()) => {
                suspects = half.end..suspects.end;
                if section.additive {
                    section.landed.push(half);
                }
            }
            Err(Culprit { owner: Some(owner), message, .. }) => return Ok(Some((owner, message))),
            Err(Culprit { message, .. }) if half.len() == 1 => return Ok(Some((half.start, message))),
            Err(_) => suspects = half,
        }
    }
    Ok(None)
}

/// One call of the tool.
fn attempt(tools: Tools, sections: &mut [Section], part: &Part, aside: &Aside) -> Result<Result<(), Culprit>, Error> {
    let (text, origins) = compose(sections, part, aside).map_err(unwritten)?;
    let copy = text.try_clone().map_err(unwritten)?;
    let Err(refusal) = tools.restore(text) else { return Ok(Ok(())) };
    if refusal.busy {
        return Err(Error(format!("program rules: {}", refusal.message)));
    }
    let first = origins.first().map_or(0, |origin| origin.section);
    let Some(number) = refusal.line else {
        if origins.iter().any(|origin| origin.section != first) {
            return Err(Error(format!("program rules: {}", refusal.message)));
        }
        return Ok(Err(Culprit { owner: None, section: first, message: refusal.message }));
    };
    let line = nth_line(copy, number).unwrap_or_default();
    let message = format!("{} [{line}]", refusal.message);
    let origin = origins.iter().rev().find(|origin| origin.first_line < number as usize);
    let (section, whose) = origin.map_or((first, Whose::All), |origin| (origin.section, origin.whose));
    let owner = if let Whose::Service(owner) = whose { Some(owner) } else { None };
    if line.starts_with("-D") || line.starts_with("-X") || owner.is_none() && line != "COMMIT" {
        return Err(Error(format!("program rules: {message}")));
    }
    Ok(Err(Culprit { owner, section, message }))
}

fn compose(sections: &mut [Section], part: &Part, aside: &Aside) -> io::Result<(File, Vec<Origin>)> {
    let mut text = BufWriter::new(memory()?);
    let mut origins = Vec::new();
    let mut lines = 0;
    for (number, section) in sections.iter_mut().enumerate().filter(|(_, section)| section.lines > 0) {
        section.text.flush()?;
        writeln!(text, "*{}", section.table.as_str())?;
        lines += 1;
        let end = Mark { line: section.lines, byte: section.bytes, whose: Whose::All };
        let ends = section.marks.iter().skip(1).chain([&end]);
        let landed = |owner: &Owner| section.landed.iter().any(|range| range.contains(owner));
        let wanted = |whose: Whose| match (whose, part) {
            (Whose::Service(owner), _) if aside.contains_key(&owner) || landed(&owner) => false,
            (Whose::Service(owner), Part::Services(owners)) => owners.contains(&owner),
            (Whose::Once, Part::Services(_)) => false,
            _ => true,
        };
        for (mark, end) in section.marks.iter().zip(ends).filter(|(mark, _)| wanted(mark.whose)) {
            origins.push(Origin { first_line: lines, section: number, whose: mark.whose });
            let file = section.text.get_mut();
            file.seek(io::SeekFrom::Start(mark.byte))?;
            io::copy(&mut file.take(end.byte - mark.byte), &mut text)?;
            lines += end.line - mark.line;
        }
        origins.push(Origin { first_line: lines, section: number, whose: Whose::All });
        writeln!(text, "COMMIT")?;
        lines += 1;
    }
    let mut text = text.into_inner()?;
    text.rewind()?;
    Ok((text, origins))
}

fn unwritten(error: io::Error) -> Error {
    Error(format!("write rules to memory: {error}"))
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
    /// An empty section for a table, whose lines may be said twice if nothing else is claimed of them.
    pub fn new(table: Table) -> Result<Self, Error> {
        Self::with_room(table, SHORT)
    }

    /// The same, with lines that add to what the table has.
    pub fn adding(self) -> Self {
        Self { additive: true, ..self }
    }

    /// An empty section that a tool reads while it is written.
    pub fn tapped(table: Table, tap: Tap) -> Result<Self, Error> {
        Ok(Self { along: Some(Along { tap, passed: 0, offered: 0 }), ..Self::with_room(table, LONG)? })
    }

    fn with_room(table: Table, room: usize) -> Result<Self, Error> {
        let text = memory().map_err(|error| Error(format!("make room for rules: {error}")))?;
        let marks = vec![Mark { line: 0, byte: 0, whose: Whose::All }];
        Ok(Self {
            table,
            text: BufWriter::with_capacity(room, text),
            lines: 0,
            bytes: 0,
            marks,
            additive: false,
            landed: Vec::new(),
            along: None,
        })
    }

    /// Gives the tap back, when it has taken all lines: for the next section, or to be finished.
    pub fn untap(&mut self) -> Result<Option<Tap>, Error> {
        self.offer()?;
        while let Some(along) = self.along.take() {
            if along.passed == self.bytes {
                return Ok(Some(along.tap));
            }
            along.tap.rest();
            self.along = Some(along);
            self.offer()?;
        }
        Ok(None)
    }

    /// Offers the tap what it does not have.
    fn offer(&mut self) -> Result<(), Error> {
        if let Some(along) = &mut self.along
            && along.passed < self.bytes
        {
            self.text.flush().map_err(unwritten)?;
            along.passed = along.tap.pass(self.table, self.text.get_ref(), along.passed..self.bytes);
            along.offered = self.bytes;
        }
        Ok(())
    }

    /// The Services that have lines in it, and those between them.
    fn owners(&self) -> Range<Owner> {
        let owners = || {
            self.marks.iter().filter_map(|mark| if let Whose::Service(owner) = mark.whose { Some(owner) } else { None })
        };
        owners().min().unwrap_or(0)..owners().max().map_or(0, |last| last + 1)
    }

    /// The table whose rules it has.
    pub fn table(&self) -> Table {
        self.table
    }

    /// From here on, lines are theirs.
    pub fn own(&mut self, whose: Whose) {
        let mark = Mark { line: self.lines, byte: self.bytes, whose };
        match self.marks.last_mut() {
            Some(last) if last.line == mark.line => *last = mark,
            Some(last) if last.whose == whose => {}
            _ => self.marks.push(mark),
        }
    }

    /// Adds lines, each with its newline.
    pub fn add(&mut self, lines: &str) -> Result<(), Error> {
        self.text.write_all(lines.as_bytes()).map_err(unwritten)?;
        self.lines += memchr::memchr_iter(b'\n', lines.as_bytes()).count();
        self.bytes += lines.len() as u64;
        // The first at once: the tool starts with it, and reads the table that it is about.
        match &self.along {
            Some(along) if along.offered == 0 || self.bytes - along.offered >= LONG as u64 => self.offer(),
            _ => Ok(()),
        }
    }

    /// How many lines it has.
    pub fn lines(&self) -> usize {
        self.lines
    }
}
