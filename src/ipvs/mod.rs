//! The IPVS backend: virtual servers over generic netlink, their addresses on a dummy device, and a small nftables
//! table for what IPVS cannot do.
//!
//! [`wanted`] is what a Service asks for, [`servers`] writes virtual servers, [`filter`] the elements of [`rules`], once
//! it knows what is [`held`]. This module keeps what was programmed and writes the differences. It holds no policy.

mod filter;
mod held;
mod rules;
mod scheduler;
mod servers;
mod setup;
mod state;
mod wanted;

use std::collections::{HashMap, HashSet};
use std::io;
use std::net::IpAddr;
use std::rc::Rc;
use std::time::Duration;

use ipnet::IpNet;
use nix::sys::socket::AddressFamily;

pub use scheduler::{Malformed, Scheduler};

use filter::Filter;
use servers::{Outcome, Servers};
use state::{Around, Changes, State};
use wanted::{Entrance, Server, Wanted};

use crate::backend::{Backend, Error, Report};
use crate::kernel::dummy::Dummy;
use crate::kernel::ipvs::{Settings, VirtualServer};
use crate::model::{Family, ObjectName};
use crate::plan::{NodeFacts, NodePortAddresses, PortName, PortPlan, ServicePlan};

/// The device that has the virtual addresses.
pub const DEVICE: &str = "kube-ipvs0";

/// How often leaving real servers are looked at (contract 10.4).
const LOOK: Duration = Duration::from_secs(60);

/// Configuration of IPVS mode.
#[derive(Clone, Debug)]
pub struct Options {
    /// For Services that do not name another.
    pub scheduler: Scheduler,
    /// Virtual servers in these ranges are somebody else's.
    pub exclude: Vec<IpNet>,
    /// Answer ARP only for addresses of the interface that is asked.
    pub strict_arp: bool,
    /// Timeouts of idle connections in seconds: TCP, TCP after FIN, UDP. 0 leaves the kernel's.
    pub timeouts: [u32; 3],
}

/// Programs one family.
pub struct Ipvs {
    family: Family,
    options: Options,
    device: Dummy,
    filter: Filter,
    servers: Option<Servers>,
    /// What was programmed, and for what node.
    state: Option<State>,
    facts: Option<NodeFacts>,
}

// === impl Options ===

impl Default for Options {
    fn default() -> Self {
        let scheduler = Scheduler { name: "rr".into(), flags: 0 };
        Self { scheduler, exclude: Vec::new(), strict_arp: false, timeouts: [0; 3] }
    }
}

// === impl Ipvs ===

impl Ipvs {
    /// Opens the doors to the kernel; changes nothing.
    ///
    /// # Errors
    /// When the kernel has no rtnetlink or nf_tables, or we may not use them.
    pub fn new(family: Family, options: Options) -> Result<Self, Error> {
        let device = Dummy::new(DEVICE).map_err(|error| Error(format!("cannot open rtnetlink: {error}")))?;
        Ok(Self { family, options, device, filter: Filter::open(family)?, servers: None, state: None, facts: None })
    }

    /// Checks and prepares the kernel (contract 10.1, 10.2). To be called once before the first [`Backend::replace`].
    ///
    /// # Errors
    /// When this kernel cannot do it; the message says what is missing.
    pub fn start(&mut self) -> Result<(), Error> {
        let mut servers = setup::open()?.ok_or_else(|| {
            Error(
                "the kernel has no IPVS: load the module ip_vs on the host (modprobe ip_vs), or use mode nftables"
                    .into(),
            )
        })?;
        setup::prepare(&mut servers, &self.options)?;
        let name = &self.options.scheduler.name;
        match servers.has(&self.options.scheduler) {
            Ok(true) => {}
            Ok(false) => {
                return Err(Error(format!(
                    "can't use the IPVS proxier: the kernel has no scheduler {name}: load the module ip_vs_{name} on \
                     the host, or choose another with ipvs.scheduler"
                )));
            }
            Err(error) => return Err(Error(format!("can't use the IPVS proxier: scheduler {name}: {error}"))),
        }
        self.servers = Some(servers);
        Ok(())
    }

    fn wanted(&mut self, plan: &ServicePlan) -> Result<Wanted, Error> {
        let (default, servers) = (&self.options.scheduler, opened(&mut self.servers)?);
        Ok(Wanted::new(plan, |port| scheduler_of(port, default, servers)))
    }

    /// Makes our device if it is missing.
    fn look_around(&mut self, facts: &NodeFacts) -> Result<Around, Error> {
        let device = self.device.create().map_err(|error| {
            Error(format!("cannot create the device {DEVICE}: {error}; the kernel needs the module dummy"))
        })?;
        let node_addresses = match &facts.node_port_addresses {
            NodePortAddresses::All => facts.host_addresses.clone(),
            only => only.translatable(),
        };
        let elsewhere = facts.host_addresses.iter().copied().collect();
        Ok(Around { device, elsewhere, node_addresses })
    }

    /// The addresses of a family that our device has.
    fn addresses(&mut self, device: u32, family: Family) -> Result<Vec<IpAddr>, Error> {
        let family = if family == Family::V4 { AddressFamily::Inet } else { AddressFamily::Inet6 };
        let found = self.device.addresses(device, family);
        found.map_err(|error| Error(format!("cannot list the addresses of {DEVICE}: {error}")))
    }

    /// Makes the virtual servers those of `state`, and no others.
    fn replace_servers(&mut self, state: &State) -> io::Result<Outcome> {
        let mut held = self.virtual_servers()?;
        let Some(servers) = &mut self.servers else { return Ok(Outcome::default()) };
        servers.begin();
        // An external IP that is the node's own may meet a NodePort of the same number: the first has it.
        let mut done = HashSet::new();
        for (entrance, server) in state.servers() {
            for at in state.at(entrance).filter(|at| done.insert(*at)) {
                match held.remove(&at) {
                    None => servers.add(at, server)?,
                    Some(settings) => servers.correct(at, &settings, server)?,
                }
            }
        }
        for at in held.into_keys() {
            if !is_excluded(&self.options, &at) {
                servers.remove(at)?;
            }
        }
        servers.finish()
    }

    /// All virtual servers of the family, whoever made them.
    fn virtual_servers(&mut self) -> io::Result<HashMap<VirtualServer, Settings>> {
        let Some(servers) = &mut self.servers else { return Ok(HashMap::new()) };
        let mut found = servers.ipvs().virtual_servers()?;
        found.retain(|server, _| Family::of(&server.address) == self.family);
        Ok(found)
    }

    fn update_servers(&mut self, state: &State, changes: &Changes) -> io::Result<Outcome> {
        let Some(servers) = &mut self.servers else { return Ok(Outcome::default()) };
        servers.begin();
        for (entrance, change) in changes.servers() {
            for at in state.at(entrance) {
                match (&change.before, &change.after) {
                    (Some(before), Some(after)) if before.balances_like(after) => {}
                    (Some(before), Some(after)) => servers.correct(at, &before.settings, after)?,
                    (None, Some(after)) => servers.add(at, after)?,
                    (Some(_), None) => servers.remove(at)?,
                    (None, None) => {}
                }
            }
        }
        servers.finish()
    }

    /// Changes our device's addresses.
    fn change_addresses(
        &mut self,
        state: &mut State,
        gone: &[IpAddr],
        added: &[IpAddr],
        report: &mut Report,
    ) -> Result<(), Error> {
        let device = state.device();
        let refused = self.device.add(device, added).map_err(device_failed)?;
        self.device.remove(device, gone).map_err(device_failed)?;
        report.changes += gone.len() + added.len() - refused.len();
        state.attempted(added, refused);
        Ok(())
    }

    fn apply(&mut self, state: &mut State, changed: &[ServicePlan]) -> Result<Report, Error> {
        let mut changes = Changes::default();
        for plan in changed {
            let wanted = self.wanted(plan)?;
            state.change(plan.name.clone(), wanted, &mut changes);
        }
        let records = changes.records(state);
        let mut report = Report { changes: self.filter.update(records.gone, records.added)?, ..Report::default() };
        let outcome = self.update_servers(state, &changes).map_err(|error| servers_failed(&error))?;
        note(state, outcome, &mut report)?;
        let addresses = changes.addresses(state);
        self.change_addresses(state, &addresses.gone, &addresses.added, &mut report)?;
        report.set_aside.extend(without_address(state, |name| changed.iter().any(|plan| plan.name == *name)));
        Ok(report)
    }

    fn load(
        &mut self,
        facts: &NodeFacts,
        services: &mut dyn Iterator<Item = ServicePlan>,
    ) -> Result<(State, Report), Error> {
        let mut state = State::new(self.look_around(facts)?);
        for plan in services {
            let wanted = self.wanted(&plan)?;
            state.change(plan.name, wanted, &mut Changes::default());
        }
        let mut report = Report { changes: self.filter.replace(facts, state.records())?, ..Report::default() };
        let outcome = self.replace_servers(&state).map_err(|error| servers_failed(&error))?;
        note(&mut state, outcome, &mut report)?;
        let mut held: HashSet<IpAddr> = self.addresses(state.device(), self.family)?.into_iter().collect();
        let added: Vec<IpAddr> = state.addresses().filter(|address| !held.remove(address)).collect();
        let gone: Vec<IpAddr> = held.into_iter().filter(|address| !is_link_local(address)).collect();
        self.change_addresses(&mut state, &gone, &added, &mut report)?;
        report.set_aside.extend(without_address(&state, |_| true));
        Ok((state, report))
    }

    /// Removes the virtual servers and addresses of the family, and the device when the other family has none there.
    /// Ours are those at the device's addresses and those that our table names. Without one (upstream's mode left them)
    /// there is no telling NodePorts from others, and all go that are not excluded.
    fn remove_servers(&mut self) -> Result<(), Error> {
        let index = self.device.index().map_err(|error| Error(format!("cannot look for {DEVICE}: {error}")))?;
        // Without the device nobody ran this mode, and the virtual servers are somebody else's.
        let Some(index) = index else { return Ok(()) };
        if self.servers.is_none() {
            self.servers = setup::open()?;
        }
        let failed = |error: io::Error| servers_failed(&error);
        let other = if self.family == Family::V4 { Family::V6 } else { Family::V4 };
        let mut ours = self.addresses(index, self.family)?;
        let others = self.addresses(index, other)?;
        let on_device: HashSet<IpAddr> = ours.iter().copied().collect();
        let owned = self.filter.owned().map_err(|error| Error(format!("cannot read our nftables table: {error}")))?;
        let is_ours =
            |at: &VirtualServer| on_device.contains(&at.address) || owned.as_ref().is_none_or(|owned| owned.has(at));
        let held = self.virtual_servers().map_err(failed)?;
        if let Some(servers) = &mut self.servers {
            servers.begin();
            for at in held.into_keys().filter(|at| is_ours(at) && !is_excluded(&self.options, at)) {
                servers.remove(at).map_err(failed)?;
            }
            servers.finish().map_err(failed)?;
        }
        if others.iter().all(is_link_local) {
            return self.device.delete().map_err(|error| Error(format!("cannot remove {DEVICE}: {error}")));
        }
        ours.retain(|address| !is_link_local(address));
        self.device.remove(index, &ours).map_err(device_failed)
    }
}

// === impl Backend for Ipvs ===

impl Backend for Ipvs {
    fn replace(&mut self, facts: &NodeFacts, services: &mut dyn Iterator<Item = ServicePlan>) -> Result<Report, Error> {
        self.state = None;
        let (state, report) = self.load(facts, services)?;
        (self.state, self.facts) = (Some(state), Some(facts.clone()));
        Ok(report)
    }

    fn update(&mut self, changed: &[ServicePlan]) -> Result<Report, Error> {
        let Some(mut state) = self.state.take() else {
            return Err(Error("what the kernel holds is not known; it has to be read again".into()));
        };
        let report = self.apply(&mut state, changed)?;
        self.state = Some(state);
        Ok(report)
    }

    fn intact(&mut self) -> bool {
        let (Some(state), Some(facts)) = (&self.state, &self.facts) else { return true };
        let device = state.device();
        if !self.filter.intact(facts, state.records()) || !self.device.index().is_ok_and(|index| index == Some(device))
        {
            return false;
        }
        // What cannot be read is not known to be lost.
        let (Ok(servers), Ok(addresses)) = (self.virtual_servers(), self.addresses(device, self.family)) else {
            return true;
        };
        let addresses = addresses.into_iter().collect();
        self.state.as_ref().is_none_or(|state| state.is_held(|at| servers.contains_key(at), &addresses))
    }

    fn tick(&mut self) -> Option<Duration> {
        let servers = self.servers.as_mut().filter(|servers| servers.any_leaving())?;
        match servers.retire().and_then(|waiting| servers.finish().map(|_| waiting)) {
            Ok(waiting) => waiting.then_some(LOOK),
            Err(error) => {
                log::warn!("cannot look at leaving real servers of IPVS, which is tried again: {error}");
                Some(LOOK)
            }
        }
    }

    fn cleanup(&mut self) -> Result<(), Error> {
        self.state = None;
        let outcomes = [self.remove_servers(), self.filter.remove()];
        let failures: Vec<String> = outcomes.into_iter().filter_map(Result::err).map(|error| error.0).collect();
        if failures.is_empty() { Ok(()) } else { Err(Error(failures.join("; "))) }
    }
}

/// What a port names, if the kernel has it; else the configured one.
fn scheduler_of(port: &PortPlan, default: &Scheduler, servers: &mut Servers) -> Scheduler {
    let Some(text) = &port.scheduler else { return default.clone() };
    let problem = match Scheduler::parse(text) {
        Ok(scheduler) if scheduler.name == default.name => return scheduler,
        Ok(scheduler) => match servers.has(&scheduler) {
            Ok(true) => return scheduler,
            Ok(false) => {
                format!("the kernel has no scheduler {0}: load the module ip_vs_{0} on the host", scheduler.name)
            }
            Err(error) => format!("scheduler {}: {error}", scheduler.name),
        },
        Err(malformed) => malformed.to_string(),
    };
    log::warn!("Service port {} is balanced by {}: {problem}", port.name, default.name);
    default.clone()
}

fn opened(servers: &mut Option<Servers>) -> Result<&mut Servers, Error> {
    servers.as_mut().ok_or_else(|| Error("IPVS mode was not started".into()))
}

fn is_excluded(options: &Options, server: &VirtualServer) -> bool {
    options.exclude.iter().any(|net| net.contains(&server.address))
}

fn is_link_local(address: &IpAddr) -> bool {
    matches!(address, IpAddr::V6(v6) if v6.is_unicast_link_local())
}

/// Ports of some Services at addresses that the kernel did not take, each with the reason.
fn without_address(state: &State, some: impl Fn(&ObjectName) -> bool) -> Vec<(PortName, String)> {
    if state.refused_addresses().is_empty() {
        return Vec::new();
    }
    let refusal = |(entrance, server): (Entrance, &Rc<Server>)| {
        let Entrance::Address(address, ..) = entrance else { return None };
        let why = state.refused_addresses().get(&address).filter(|_| some(&server.port.service))?;
        Some((server.port.clone(), format!("address {address} on {DEVICE}: {why}")))
    };
    state.servers().filter_map(refusal).collect()
}

fn device_failed(error: io::Error) -> Error {
    Error(format!("cannot change the addresses of {DEVICE}: {error}"))
}

fn servers_failed(error: &io::Error) -> Error {
    Error(format!("cannot change the virtual servers of IPVS: {error}"))
}

/// Reports what became of virtual servers.
fn note(state: &mut State, outcome: Outcome, report: &mut Report) -> Result<(), Error> {
    report.changes += outcome.changes;
    if outcome.stale {
        return Err(Error("the virtual servers of IPVS were changed by another program; they are read again".into()));
    }
    if outcome.refused.is_empty() {
        return Ok(());
    }
    state.refuse(outcome.refused.keys().copied());
    for (entrance, server) in state.servers() {
        for at in state.at(entrance) {
            if let Some(why) = outcome.refused.get(&at) {
                let what = format!("virtual server {} port {}: {why}", at.address, at.port);
                report.set_aside.push((server.port.clone(), what));
            }
        }
    }
    Ok(())
}
