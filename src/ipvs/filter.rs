//! Writes the rules of [`super::rules`] and the elements that Services add to them; keeps nothing but the door.
//!
//! Must not decide what is in the sets: it turns a Service's wishes into elements and makes the kernel's the same.

use std::collections::HashSet;
use std::io;
use std::net::IpAddr;

use super::rules::{Set, TABLE, TABLE_COMMENT, chains, sets, table_family};
use super::wanted::{Entrance, Kind, Server};
use crate::backend::Error;
use crate::kernel::nftables::{Batch, Element, Nftables, SetSpec, Value};
use crate::kernel::nftchains::add_chains;
use crate::model::{Family, Protocol};
use crate::plan::NodeFacts;

/// An element of one of our sets.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Record {
    set: Set,
    key: Box<[u8]>,
    end: Option<Box<[u8]>>,
}

/// The door to one family's table.
pub struct Filter {
    nft: Nftables,
    family: Family,
    specs: [SetSpec; Set::ALL.len()],
    /// Generation of the ruleset when the table was last known to be there.
    generation: u32,
}

/// The elements of an entrance and its server.
pub fn records_of(entrance: Entrance, server: &Server) -> Vec<Record> {
    let (address, protocol, port) = match entrance {
        Entrance::Address(address, protocol, port) => (address, protocol, port),
        Entrance::NodePort(protocol, port) if server.kind == Kind::External => {
            return vec![record(Set::NodePorts, &[padded_protocol(protocol), padded_port(port)], None)];
        }
        Entrance::NodePort(..) => return Vec::new(),
    };
    let set = match server.kind {
        Kind::Internal => Set::Internal,
        Kind::External => Set::External,
        Kind::ExternalLocal => Set::ExternalLocal,
    };
    let address = octets(&address);
    let key = [&*address, &padded_protocol(protocol), &padded_port(port)].concat();
    let mut records = vec![record(set, &[&key], None)];
    if let Some(sources) = &server.sources {
        records.push(record(Set::Restricted, &[&key], None));
        records.extend(sources.iter().map(|net| {
            let end = [&*key, &octets(&net.broadcast())].concat();
            record(Set::AllowedSources, &[&*key, &octets(&net.network())], Some(end))
        }));
    }
    records
}

/// The element of an address of the dummy device.
pub fn record_of_address(address: &IpAddr) -> Record {
    record(Set::ServiceIps, &[octets(address)], None)
}

/// The element of an endpoint on this node.
pub fn record_of_endpoint(address: &IpAddr) -> Record {
    record(Set::Hairpin, &[octets(address), octets(address)], None)
}

/// The element of a health check server's port.
pub fn record_of_health_check(port: &u16) -> Record {
    record(Set::HealthChecks, &[padded_protocol(Protocol::Tcp), padded_port(*port)], None)
}

fn record<P: AsRef<[u8]>>(set: Set, key: &[P], end: Option<Vec<u8>>) -> Record {
    let key = key.iter().flat_map(|part| part.as_ref()).copied().collect();
    Record { set, key, end: end.map(Into::into) }
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
        Element { key: &self.key, end: self.end.as_deref(), data: Value::None, interval_end: false }
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
    pub fn replace(&mut self, facts: &NodeFacts, mut wanted: HashSet<Record>) -> Result<usize, Error> {
        let held = self.read(facts).map_err(|error| Error(format!("cannot read nftables table {TABLE}: {error}")))?;
        let mut batch = Batch::new(table_family(self.family), TABLE, None);
        let mut gone = Vec::new();
        match held {
            Held::Nothing => {}
            Held::Foreign => batch.delete_table(),
            Held::Ours(records) => gone.extend(records.into_iter().filter(|record| !wanted.remove(record))),
        }
        batch.add_table(TABLE_COMMENT);
        self.specs.iter().for_each(|set| batch.add_set(set));
        let changes = write(&mut batch, gone, wanted.into_iter().collect());
        add_chains(&mut batch, &chains(facts));
        self.commit(batch)?;
        Ok(changes)
    }

    /// Removes and adds elements, at one stroke. Returns how many.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn update(&mut self, gone: Vec<Record>, added: Vec<Record>) -> Result<usize, Error> {
        let mut batch = Batch::new(table_family(self.family), TABLE, None);
        let changes = write(&mut batch, gone, added);
        if changes > 0 {
            self.commit(batch)?;
        }
        Ok(changes)
    }

    /// Whether the table is there. Costs next to nothing while nobody changes any table.
    pub fn intact(&mut self) -> bool {
        let Ok(generation) = self.nft.generation() else { return true };
        if generation != self.generation {
            if !self.nft.has_table(table_family(self.family), TABLE).unwrap_or(true) {
                return false;
            }
            self.generation = generation;
        }
        true
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

    fn read(&mut self, facts: &NodeFacts) -> io::Result<Held> {
        let family = table_family(self.family);
        if !self.nft.has_table(family, TABLE)? {
            return Ok(Held::Nothing);
        }
        let found = self.nft.sets(family, TABLE)?;
        let same_sets =
            found.len() == self.specs.len() && self.specs.iter().all(|spec| found.iter().any(|read| spec.is(read)));
        let ours = chains(facts);
        let known = |name: &str, hooked| ours.iter().any(|chain| chain.name == name && chain.hook.is_some() == hooked);
        if !same_sets || !self.nft.chains(family, TABLE)?.iter().all(|(name, hooked)| known(name, *hooked)) {
            return Ok(Held::Foreign);
        }
        let mut records = HashSet::new();
        for set in Set::ALL {
            self.nft.elements(family, TABLE, set.name(), |element| {
                records.insert(Record { set, key: element.key.into(), end: element.end.map(Into::into) });
            })?;
        }
        Ok(Held::Ours(records))
    }
}

/// What the kernel holds under our name.
enum Held {
    Nothing,
    /// A table of another layout, from another version.
    Foreign,
    Ours(HashSet<Record>),
}

/// What goes comes first: a new range may overlap an old one.
fn write(batch: &mut Batch, mut gone: Vec<Record>, mut added: Vec<Record>) -> usize {
    gone.sort_unstable();
    added.sort_unstable();
    for same in gone.chunk_by(|a, b| a.set == b.set) {
        batch.delete_elements(same[0].set.name(), same.iter().map(Record::element));
    }
    for same in added.chunk_by(|a, b| a.set == b.set) {
        batch.add_elements(same[0].set.name(), same.iter().map(Record::element));
    }
    gone.len() + added.len()
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
