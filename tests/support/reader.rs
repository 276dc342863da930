//! An independent reader of the nftables ruleset: what `nft -j` shows, reduced to what it means for traffic.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::Value;

use super::netns::run;

/// A table as `nft -j` lists it, without handles.
pub fn listed(family: &str) -> Vec<Value> {
    let text = run(&format!("nft -j list table {family} kube-proxy 2>/dev/null"));
    let mut root: Value = serde_json::from_str(&text).expect("nft prints JSON");
    let objects = root["nftables"].take();
    let Value::Array(mut objects) = objects else { panic!("nft prints a list") };
    objects.retain(|object| object.get("metainfo").is_none());
    objects.iter_mut().for_each(without_handle);
    objects
}

/// For every destination in the counted maps: how traffic is spread over endpoints. Numbers, slots and classes are
/// resolved, since they depend on history; all other sets are taken as they are.
pub fn meaning(family: &str) -> BTreeMap<String, BTreeSet<String>> {
    let objects = listed(family);
    let mut meaning: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    let map = |name: &str| -> BTreeMap<String, Value> {
        elements(&objects, name).into_iter().map(|element| (key(&element[0]), element[1].clone())).collect()
    };
    let (classes, endpoints, draw) = (map("classes"), map("endpoints"), map("draw"));
    let (slots, local_slots) = (map("slots"), map("local-slots"));
    for name in ["services", "external", "external-local", "node-ports", "node-ports-local"] {
        for (destination, value) in map(name) {
            let value = number(&value);
            let class =
                classes.get(&classid(value & 0xfff0_0000)).map(|verdict| verdict["goto"]["target"].as_str().unwrap());
            let spread = class.map_or_else(Vec::new, |chain| {
                let words: Vec<&str> = chain.split('-').collect();
                let (local, size): (bool, u32) = (words[0] == "local", words[1].parse().unwrap());
                let offset = if local { 0x10000 } else { 0 };
                (0..size)
                    .map(|slot| {
                        let drawn = format!("{} . {}", classid(value & 0xf_ffff), slot + offset);
                        if words.len() == 2 {
                            return key(&endpoints[&drawn]);
                        }
                        let slot = key(&draw[&drawn]);
                        key(if local { &local_slots[&slot] } else { &slots[&slot] })
                    })
                    .collect()
            });
            let mut spread = spread;
            spread.sort();
            let sticky = class.and_then(|chain| chain.split_once("-sticky-")).map_or("", |(_, seconds)| seconds);
            meaning.entry(name.into()).or_default().insert(format!("{destination} -> {} {sticky}", spread.join(" ")));
        }
    }
    const PLAIN: [&str; 9] = [
        "cluster-ips",
        "service-cidrs",
        "no-endpoints",
        "no-local-endpoints",
        "node-ports-no-endpoints",
        "node-ports-no-local-endpoints",
        "restricted",
        "allowed-sources",
        "hairpin",
    ];
    for name in PLAIN {
        meaning.insert(name.into(), elements(&objects, name).iter().map(key).collect());
    }
    for (name, used) in [
        ("endpoints", endpoints.len()),
        ("draw", draw.len()),
        ("slots", slots.len()),
        ("local-slots", local_slots.len()),
    ] {
        meaning.insert(format!("size of {name}"), [used.to_string()].into());
    }
    meaning
}

/// The elements of a set or map.
pub fn elements(objects: &[Value], name: &str) -> Vec<Value> {
    let sets = objects.iter().filter_map(|object| object.get("map").or_else(|| object.get("set")));
    let set = sets.into_iter().find(|set| set["name"] == name).unwrap_or_else(|| panic!("there is no set {name}"));
    set["elem"].as_array().cloned().unwrap_or_default()
}

/// A key or value in one line.
pub fn key(value: &Value) -> String {
    match value {
        Value::Object(object) if object.contains_key("elem") => key(&object["elem"]["val"]),
        Value::Object(object) if object.contains_key("concat") => {
            object["concat"].as_array().unwrap().iter().map(key).collect::<Vec<_>>().join(" . ")
        }
        Value::String(text) => text.clone(),
        other => other.to_string(),
    }
}

fn without_handle(object: &mut Value) {
    for (_, inner) in object.as_object_mut().expect("objects are JSON objects") {
        inner.as_object_mut().map(|inner| inner.remove("handle"));
    }
}

/// nft writes `meta priority` values in two hexadecimal halves.
fn number(value: &Value) -> u32 {
    let text = key(value);
    let half = |text: &str| u32::from_str_radix(text, 16).unwrap();
    text.split_once(':').map_or(0, |(major, minor)| half(major) << 16 | half(minor))
}

fn classid(value: u32) -> String {
    format!("{:x}:{:x}", value >> 16, value & 0xffff)
}
