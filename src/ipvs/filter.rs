//! Writes the rules of [`super::rules`] and the elements that Services add to them; keeps nothing but the door.
//!
//! Must not decide what is in the sets: it turns a Service's wishes into elements and makes the kernel's the same.

use std::collections::HashSet;
use std::io;
use std::net::IpAddr;

use ipnet::IpNet;
use nix::errno::Errno;

use super::held::Held;
use super::rules::{Set, TABLE, TABLE_COMMENT, chains, sets, table_family};
use super::wanted::{Entrance, Kind, LocalEndpoint, Server};
use crate::backend::Error;
use crate::kernel::ipvs::VirtualServer;
use crate::kernel::netlink::undisturbed;
use crate::kernel::nftables::{Batch, Element, Nftables, SetSpec, Value};
use crate::kernel::nftchains::add_chains;
use crate::model::{Family, Protocol};
use crate::plan::NodeFacts;

/// Elements that are put into words at once.
const PORTION: usize = 1024;

/// An element of one of our sets.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Record {
    set: Set,
    /// The key; in sets of ranges, then the end of the range.
    bytes: Box<[u8]>,
}

/// Whose virtual servers are ours, as the table has it.
#[derive(Default)]
pub struct Owned {
    servers: HashSet<VirtualServer>,
    /// Protocol and port, at any address.
    node_ports: HashSet<(u8, u16)>,
}

/// The door to one family's table.
pub struct Filter {
    nft: Nftables,
    family: Family,
    specs: [SetSpec; Set::ALL.len()],
    /// Generation of others' rules when the table was last known to be as it should be.
    generation: u32,
}

/// The elements of an entrance and its server.
pub fn records_of(entrance: Entrance, server: &Server) -> Vec<Record> {
    let (address, protocol, port) = match entrance {
        Entrance::Address(address, protocol, port) => (address, protocol, port),
        Entrance::NodePort(protocol, port) => {
            let set = if server.kind == Kind::External { Set::NodePorts } else { Set::NodePortsLocal };
            return vec![record(set, &[&padded_protocol(protocol), &padded_port(port)])];
        }
    };
    let set = match server.kind {
        Kind::Internal => Set::Internal,
        Kind::External => Set::External,
        Kind::ExternalLocal => Set::ExternalLocal,
    };
    let address = octets(&address);
    let key = [&*address, &padded_protocol(protocol), &padded_port(port)].concat();
    let mut records = vec![record(set, &[&key])];
    if let Some(sources) = server.sources() {
        records.push(record(Set::Restricted, &[&key]));
        let range = |net: &IpNet| [&*key, &octets(&net.network()), &key, &octets(&net.broadcast())].concat();
        records.extend(sources.iter().map(|net| record(Set::AllowedSources, &[&range(net)])));
    }
    records
}

/// The element of an address of the dummy device.
pub fn record_of_address(address: &IpAddr) -> Record {
    record(Set::ServiceIps, &[&octets(address)])
}

/// The element of an endpoint on this node.
pub fn record_of_endpoint((address, protocol, port): &LocalEndpoint) -> Record {
    let parts: [&[u8]; 4] = [&octets(address), &padded_protocol(*protocol), &padded_port(*port), &octets(address)];
    record(Set::Hairpin, &parts)
}

/// The element of a health check server's port.
pub fn record_of_health_check(port: &u16) -> Record {
    record(Set::HealthChecks, &[&padded_protocol(Protocol::Tcp), &padded_port(*port)])
}

fn record(set: Set, parts: &[&[u8]]) -> Record {
    Record { set, bytes: parts.concat().into() }
}

fn padded_protocol(protocol: Protocol) -> [u8; 4] {
    [protocol as u8, 0, 0, 0]
}

fn padded_port(port: u16) -> [u8; 4] {
    let [high, low] = port.to_be_bytes();
    [high, low, 0, 0]
}

fn octets(address: &IpAddr) -> Vec<u8> {
    match address {
        IpAddr::V4(v4) => v4.octets().into(),
        IpAddr::V6(v6) => v6.octets().into(),
    }
}

// === impl Record ===

impl Record {
    fn element(&self) -> Element<'_> {
        let key_length = if self.set.has_ranges() { self.bytes.len() / 2 } else { self.bytes.len() };
        let (key, end) = self.bytes.split_at(key_length);
        let end = self.set.has_ranges().then_some(end);
        Element { key, end, data: Value::None, interval_end: false }
    }
}

// === impl Owned ===

impl Owned {
    /// Whether a virtual server is ours.
    pub fn has(&self, at: &VirtualServer) -> bool {
        self.servers.contains(at) || self.node_ports.contains(&(at.protocol, at.port))
    }

    /// Reads an element that was written by [`records_of`].
    fn note(&mut self, key: &[u8]) {
        let (address, [protocol, _, _, _, high, low, _, _]) = key.split_last_chunk().expect("protocol and port");
        let (protocol, port) = (*protocol, u16::from_be_bytes([*high, *low]));
        let address = match address.len() {
            0 => {
                self.node_ports.insert((protocol, port));
                return;
            }
            4 => <[u8; 4]>::try_from(address).map(IpAddr::from),
            _ => <[u8; 16]>::try_from(address).map(IpAddr::from),
        };
        self.servers.extend(address.map(|address| VirtualServer { address, protocol, port }));
    }
}

// === impl Filter ===

impl Filter {
    /// Opens the door; changes nothing.
    ///
    /// # Errors
    /// When the kernel has no nf_tables or we may not use it.
    pub fn open(family: Family) -> Result<Self, Error> {
        let nft = Nftables::open().map_err(|error| {
            Error(format!(
                "cannot open netlink for nftables: {error}; CAP_NET_ADMIN and the module nf_tables are needed"
            ))
        })?;
        Ok(Self { nft, family, specs: sets(family), generation: 0 })
    }

    /// Makes the table the one that is wanted, at one stroke. Returns how many elements changed.
    ///
    /// # Errors
    /// When the kernel cannot be asked, or refuses.
    pub fn replace(&mut self, facts: &NodeFacts, wanted: impl Iterator<Item = Record>) -> Result<usize, Error> {
        let unreadable = |error| Error(format!("cannot read nftables table {TABLE}: {error}"));
        let others = self.nft.foreign_generation().map_err(unreadable)?;
        let (held, generation) = self.read_stable(facts).map_err(unreadable)?;
        let mut batch = Batch::new(table_family(self.family), TABLE, Some(generation));
        let mut held = match held {
            Kernel::Absent => Default::default(),
            Kernel::Foreign => {
                batch.delete_table();
                Default::default()
            }
            Kernel::Ours(held) => held,
        };
        batch.add_table(TABLE_COMMENT);
        self.specs.iter().for_each(|set| batch.add_set(set));
        // Rules first: at one that needs a module, the kernel loads it and takes the whole transaction from the start.
        add_chains(&mut batch, &chains(facts));
        let (mut added, mut changes) = (Vec::new(), 0);
        // Where nothing has to go first, nothing has to be remembered.
        let portion = if held.iter().all(Held::is_empty) { PORTION } else { usize::MAX };
        for record in wanted.filter(|record| !held[record.set as usize].want(&record.bytes)) {
            added.push(record);
            if added.len() >= portion {
                changes += write(&mut batch, &mut Vec::new(), &mut added);
            }
        }
        let leftovers =
            Set::ALL.into_iter().flat_map(|set| held[set as usize].leftovers().map(move |bytes| record(set, &[bytes])));
        changes += write(&mut batch, &mut leftovers.collect(), &mut added);
        self.commit(batch)?;
        self.generation = others;
        Ok(changes)
    }

    /// Removes and adds elements, at one stroke. Returns how many.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn update(&mut self, mut gone: Vec<Record>, mut added: Vec<Record>) -> Result<usize, Error> {
        let mut batch = Batch::new(table_family(self.family), TABLE, None);
        let changes = write(&mut batch, &mut gone, &mut added);
        if changes > 0 {
            self.commit(batch)?;
        }
        Ok(changes)
    }

    /// Whether the table is as it should be. Costs next to nothing while nobody else changes any table.
    pub fn intact(&mut self, facts: &NodeFacts, wanted: impl Iterator<Item = Record>) -> bool {
        match self.nft.foreign_generation() {
            Ok(now) if now != self.generation => {
                // What cannot be read is not known to be lost.
                let intact = self.holds_everything(facts, wanted).unwrap_or(true);
                self.generation = if intact { now } else { self.generation };
                intact
            }
            _ => true,
        }
    }

    fn holds_everything(&mut self, facts: &NodeFacts, mut wanted: impl Iterator<Item = Record>) -> io::Result<bool> {
        let (Kernel::Ours(mut held), _) = self.read_stable(facts)? else { return Ok(false) };
        let rules: usize = chains(facts).iter().map(|chain| chain.rules.len()).sum();
        Ok(wanted.all(|record| held[record.set as usize].want(&record.bytes))
            && held.iter().all(|held| held.leftovers().next().is_none())
            && self.nft.rules(table_family(self.family), TABLE)? == rules)
    }

    /// Whose virtual servers are ours. `None` without a table that we can read: upstream has none.
    ///
    /// # Errors
    /// When the kernel cannot be asked.
    pub fn owned(&mut self) -> io::Result<Option<Owned>> {
        let family = table_family(self.family);
        const ASKED: [Set; 5] = [Set::Internal, Set::External, Set::ExternalLocal, Set::NodePorts, Set::NodePortsLocal];
        // The other sets may be those of another version.
        if !self.nft.has_table(family, TABLE)?
            || self.held_sets()?.filter(|set| ASKED.contains(set)).count() < ASKED.len()
        {
            return Ok(None);
        }
        let mut owned = Owned::default();
        for set in ASKED {
            self.nft.elements(family, TABLE, set.name(), |element| owned.note(element.key))?;
        }
        Ok(Some(owned))
    }

    /// Removes the table, if it is there.
    ///
    /// # Errors
    /// When the kernel cannot be asked, or refuses.
    pub fn remove(&mut self) -> Result<(), Error> {
        let family = table_family(self.family);
        let there = self.nft.has_table(family, TABLE);
        if !there.map_err(|error| Error(format!("cannot look for nftables table {TABLE}: {error}")))? {
            return Ok(());
        }
        let mut batch = Batch::new(family, TABLE, None);
        batch.delete_table();
        self.commit(batch)
    }

    fn commit(&mut self, mut batch: Batch) -> Result<(), Error> {
        self.nft.commit(&mut batch).map_err(|error| Error(format!("nftables table {TABLE}: {error}")))
    }

    /// Those of our sets that the table has.
    fn held_sets(&mut self) -> io::Result<impl Iterator<Item = Set>> {
        let found = self.nft.sets(table_family(self.family), TABLE)?;
        let specs = &self.specs;
        Ok(Set::ALL.into_iter().filter(move |set| found.iter().any(|read| specs[*set as usize].is(read))))
    }

    /// Reads what the kernel holds, and the generation of the ruleset that this is.
    fn read_stable(&mut self, facts: &NodeFacts) -> io::Result<(Kernel, u32)> {
        undisturbed(|| {
            let before = self.nft.generation()?;
            let kernel = self.read(facts)?;
            if self.nft.generation()? == before { Ok((kernel, before)) } else { Err(Errno::EINTR.into()) }
        })
    }

    fn read(&mut self, facts: &NodeFacts) -> io::Result<Kernel> {
        let family = table_family(self.family);
        if !self.nft.has_table(family, TABLE)? {
            return Ok(Kernel::Absent);
        }
        let ours = chains(facts);
        let known = |name: &str, hooked| ours.iter().any(|chain| chain.name == name && chain.hook.is_some() == hooked);
        if self.held_sets()?.count() < Set::ALL.len()
            || self.nft.sets(family, TABLE)?.len() > Set::ALL.len()
            || !self.nft.chains(family, TABLE)?.iter().all(|(name, hooked)| known(name, *hooked))
        {
            return Ok(Kernel::Foreign);
        }
        let mut held: Box<[Held; Set::ALL.len()]> = Box::default();
        for (set, held) in Set::ALL.into_iter().zip(held.iter_mut()) {
            self.nft.elements(family, TABLE, set.name(), |element| {
                // A range of one address may have no end of its own.
                let end = if set.has_ranges() { element.end.unwrap_or(element.key) } else { &[] };
                held.push([element.key, end]);
            })?;
            held.sort();
        }
        Ok(Kernel::Ours(held))
    }
}

/// What the kernel holds under our name.
enum Kernel {
    Absent,
    /// A table of another layout, from another version.
    Foreign,
    /// Ours, with the elements of each set.
    Ours(Box<[Held; Set::ALL.len()]>),
}

/// What goes comes first: a new range may overlap an old one. Leaves both empty.
fn write(batch: &mut Batch, gone: &mut Vec<Record>, added: &mut Vec<Record>) -> usize {
    let changes = gone.len() + added.len();
    gone.sort_unstable();
    added.sort_unstable();
    for same in gone.chunk_by(|a, b| a.set == b.set) {
        batch.delete_elements(same[0].set.name(), same.iter().map(Record::element));
    }
    for same in added.chunk_by(|a, b| a.set == b.set) {
        batch.add_elements(same[0].set.name(), same.iter().map(Record::element));
    }
    gone.clear();
    added.clear();
    changes
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernel::netlink::Buffer;
    use crate::kernel::nftrule;
    use crate::plan::{LocalTraffic, NodePortAddresses};

    #[test]
    fn every_rule_compiles() {
        for family in Family::ALL {
            for local_traffic in [
                LocalTraffic::Unknown,
                LocalTraffic::Cidr(if family == Family::V4 { "10.0.0.0/9" } else { "fd00::/47" }.parse().unwrap()),
                LocalTraffic::Interface("cni0".into()),
                LocalTraffic::InterfacePrefix("veth".into()),
            ] {
                for masquerade_all in [false, true] {
                    let facts = NodeFacts {
                        family,
                        local_traffic: local_traffic.clone(),
                        masquerade_all,
                        masquerade_mark: 0x4000,
                        node_port_addresses: NodePortAddresses::All,
                        host_addresses: vec![],
                        service_cidrs: vec![],
                    };
                    for rule in chains(&facts).iter().flat_map(|chain| &chain.rules) {
                        nftrule::compile(&mut Buffer::new(), rule).unwrap();
                    }
                }
            }
        }
    }
}
