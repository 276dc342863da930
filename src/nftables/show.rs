//! The ruleset that would be programmed, in the JSON that `nft -j list table` prints afterwards (libnftables-json(5)).
//!
//! Reads the same layout and footprints that are programmed; must not know the kernel.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv6Addr};

use ipnet::IpNet;
use nftables::schema::{NfListObject, Rule};
use nftables::types::NfFamily;
use serde_json::{Value, json};

use super::footprint::of_node;
use super::layout::{NUMBER_BITS, Set, TABLE, base_chains, inner_chains, sets};
use super::record::{Footprint, Shapes, read_number, set_of};
use super::state::{Changes, SetAside, State};
use crate::kernel::nftables::{Data, Field, SetSpec};
use crate::kernel::nftchains::Chain;
use crate::kernel::nftrule::{Learn, LearnAction, Step};
use crate::kernel::nftwords::classid_text;
use crate::model::Family;
use crate::plan::{NodeFacts, ServicePlan};

/// The objects of one family's table, and the Service ports that could not be part of it.
pub fn show(facts: &NodeFacts, services: &[ServicePlan]) -> (Vec<Value>, SetAside) {
    let shapes = Shapes::new(facts.family);
    let (mut state, mut set_aside) = (State::default(), SetAside::new());
    for service in services {
        state.apply(service, &shapes, &mut |_| None, &mut Changes::default(), &mut set_aside);
    }
    let classes = state.classes.fresh();
    let mut elements: BTreeMap<Set, Vec<Value>> = BTreeMap::new();
    for (index, class) in classes {
        let key = classid_text(index << NUMBER_BITS);
        elements.entry(Set::Classes).or_default().push(json!([key, { "goto": { "target": class.chain() } }]));
    }
    let specs = sets(facts.family);
    let node = of_node(&[], &facts.node_port_addresses.translatable());
    let writer = Writer { specs: &specs, shapes: &shapes };
    state.footprints().chain([&node]).for_each(|footprint| writer.elements(footprint, &mut elements));
    let ranges = IpNet::aggregate(&facts.service_cidrs);
    if !ranges.is_empty() {
        elements.insert(Set::ServiceCidrs, ranges.into_iter().map(prefix).collect());
    }
    elements.values_mut().for_each(|list| {
        list.sort_by_cached_key(Value::to_string);
        list.dedup();
    });

    let class_chains: Vec<(String, Vec<Vec<Step>>)> =
        classes.iter().map(|(_, class)| (class.chain(), class.rules(facts.family))).collect();
    let chains: Vec<Chain> = inner_chains(facts).into_iter().chain(base_chains(facts.family)).collect();
    let family = family_name(facts.family);
    let mut objects = vec![json!({ "table": { "family": family, "name": TABLE } })];
    objects.extend(Set::ALL.iter().map(|set| writer.set(*set, family, elements.remove(set))));
    objects.extend(chains.iter().map(|chain| chain_object(family, chain)));
    objects.extend(
        class_chains.iter().map(|(name, _)| json!({ "chain": { "family": family, "table": TABLE, "name": name } })),
    );
    for chain in &chains {
        objects.extend(chain.rules.iter().map(|steps| rule_object(facts.family, chain.name, steps)));
    }
    for (name, rules) in &class_chains {
        objects.extend(rules.iter().map(|steps| rule_object(facts.family, name, steps)));
    }
    (objects, set_aside)
}

fn family_name(family: Family) -> &'static str {
    match family {
        Family::V4 => "ip",
        Family::V6 => "ip6",
    }
}

fn chain_object(family: &str, chain: &Chain) -> Value {
    const HOOKS: [&str; 5] = ["prerouting", "input", "forward", "output", "postrouting"];
    let mut object = json!({ "family": family, "table": TABLE, "name": chain.name });
    if let Some(hook) = chain.hook {
        object["type"] = hook.kind.into();
        object["hook"] = HOOKS[hook.number as usize].into();
        object["prio"] = hook.priority.into();
        object["policy"] = "accept".into();
    }
    json!({ "chain": object })
}

fn rule_object(family: Family, chain: &str, steps: &[Step]) -> Value {
    let rule = NfListObject::Rule(Rule {
        family: if family == Family::V4 { NfFamily::IP } else { NfFamily::IP6 },
        table: TABLE.into(),
        chain: chain.to_owned().into(),
        ..Rule::default()
    });
    let mut object = serde_json::to_value(rule).expect("a rule without statements is plain data");
    object["rule"]["expr"] = steps.iter().map(step).collect();
    object
}

fn step(step: &Step) -> Value {
    match step {
        Step::Statement(statement) => serde_json::to_value(statement).expect("statements are plain data"),
        Step::Learn(Learn { action, map, key, data }) => {
            let (op, seconds) = match action {
                LearnAction::Add(seconds) => ("add", Some(seconds)),
                LearnAction::Update(seconds) => ("update", Some(seconds)),
                LearnAction::Delete => ("delete", None),
            };
            let element = match seconds {
                Some(seconds) => json!({ "elem": { "val": key, "timeout": seconds } }),
                None => json!(key),
            };
            json!({ "map": { "op": op, "elem": element, "data": data, "map": format!("@{map}") } })
        }
    }
}

/// Writes sets and their elements.
struct Writer<'a> {
    specs: &'a [SetSpec],
    shapes: &'a Shapes,
}

// === impl Writer ===

impl Writer<'_> {
    fn set(&self, set: Set, family: &str, elements: Option<Vec<Value>>) -> Value {
        let spec = &self.specs[set as usize];
        let names = |fields: &[Field]| fields.iter().map(|field| field.name()).collect::<Vec<_>>();
        let kind = match spec.key {
            [field] => json!(field.name()),
            fields => json!(names(fields)),
        };
        let mut object =
            json!({ "family": family, "name": spec.name, "table": TABLE, "type": kind, "comment": spec.comment });
        match spec.data {
            Some(Data::Verdict) => object["map"] = "verdict".into(),
            Some(Data::Fields(fields)) => object["map"] = names(fields).join(" . ").into(),
            None => {}
        }
        if let Some(size) = spec.dynamic {
            object["size"] = size.into();
            object["flags"] = json!(["timeout", "dynamic"]);
            object["timeout"] = 3600.into();
        }
        if spec.interval {
            object["flags"] = json!(["interval"]);
        }
        if let Some(elements) = elements {
            object["elem"] = elements.into();
        }
        if spec.counter {
            object["stmt"] = json!([{ "counter": null }]);
        }
        if spec.data.is_some() { json!({ "map": object }) } else { json!({ "set": object }) }
    }

    fn elements(&self, footprint: &Footprint, elements: &mut BTreeMap<Set, Vec<Value>>) {
        for record in footprint.records(self.shapes) {
            let set = set_of(record);
            let spec = &self.specs[set as usize];
            // Two records make one range there; `show` writes these from the facts.
            if !spec.has_interval_ends() {
                elements.entry(set).or_default().push(self.element(spec, record));
            }
        }
    }

    fn element(&self, spec: &SetSpec, record: &[u8]) -> Value {
        let element = self.shapes.element(record);
        let mut key = concatenation(spec.key, element.key, element.end.unwrap_or(element.key));
        if spec.counter {
            key = json!({ "elem": { "val": key, "counter": { "packets": 0, "bytes": 0 } } });
        }
        match spec.data {
            Some(Data::Fields(fields)) => {
                let data = self.shapes.data(record);
                json!([key, concatenation(fields, data, data)])
            }
            _ => key,
        }
    }
}

/// A key or value from its bytes; `last` differs from `first` where a field is a range.
fn concatenation(fields: &[Field], mut first: &[u8], mut last: &[u8]) -> Value {
    let mut parts: Vec<Value> = Vec::new();
    for field in fields {
        let length = field.bytes();
        parts.push(part(*field, &first[..length], &last[..length]));
        let step = length.next_multiple_of(4).min(first.len());
        (first, last) = (&first[step..], &last[step..]);
    }
    match &mut parts[..] {
        [only] => only.take(),
        several => json!({ "concat": several }),
    }
}

fn part(field: Field, first: &[u8], last: &[u8]) -> Value {
    match field {
        Field::Ipv4Addr | Field::Ipv6Addr => {
            let (first, last) = (address(first), address(last));
            let nets = (0..=Family::of(&first).host_bits()).filter_map(|length| IpNet::new(first, length).ok());
            // Ranges are made of prefixes, so one fits.
            let net = nets.into_iter().find(|net| (net.network(), net.broadcast()) == (first, last));
            net.map_or(Value::Null, prefix)
        }
        Field::InetProto => match first[0] {
            6 => "tcp".into(),
            17 => "udp".into(),
            132 => "sctp".into(),
            other => other.into(),
        },
        Field::InetService => u16::from_be_bytes([first[0], first[1]]).into(),
        Field::Mark => read_number(first).into(),
        Field::ClassId => classid_text(read_number(first)).into(),
    }
}

fn prefix(net: IpNet) -> Value {
    if net.prefix_len() == net.max_prefix_len() {
        return net.addr().to_string().into();
    }
    json!({ "prefix": { "addr": net.network().to_string(), "len": net.prefix_len() } })
}

fn address(bytes: &[u8]) -> IpAddr {
    match <[u8; 4]>::try_from(bytes) {
        Ok(octets) => octets.into(),
        Err(_) => <[u8; 16]>::try_from(bytes).map_or(IpAddr::V6(Ipv6Addr::UNSPECIFIED), Into::into),
    }
}
