//! Services, EndpointSlices and Statuses, given as JSON, in the protobuf of API servers. The definitions are `k8s-pb`'s,
//! generated from those of the API: a second opinion on the field numbers in the program.

use k8s_pb::api::core::v1 as core;
use k8s_pb::api::discovery::v1 as discovery;
use k8s_pb::apimachinery::pkg::apis::meta::v1 as meta;
use k8s_pb::apimachinery::pkg::runtime::{RawExtension, TypeMeta, Unknown};
use k8s_pb::apimachinery::pkg::util::intstr::IntOrString;
use prost::Message;
use serde_json::Value;

/// The media type.
pub const PROTOBUF: &str = "application/vnd.kubernetes.protobuf";

/// Where an object has this text, the message has something that is not UTF-8: its last byte is another.
pub const NOT_UTF8: &str = "not UTF-8";

/// An object in its envelope.
pub fn object(object: &Value) -> Vec<u8> {
    let message = match object["kind"].as_str() {
        Some("Service") => service(object).encode_to_vec(),
        Some("EndpointSlice") => slice(object).encode_to_vec(),
        Some("Status") => status(object).encode_to_vec(),
        other => panic!("no protobuf for {other:?}"),
    };
    envelope(text(&object["apiVersion"]), text(&object["kind"]), message)
}

/// A message of a watch, with its length before it.
pub fn change(kind: &str, changed: &Value) -> Vec<u8> {
    let event =
        meta::WatchEvent { r#type: Some(kind.to_owned()), object: Some(RawExtension { raw: Some(object(changed)) }) };
    let message = event.encode_to_vec();
    let length = u32::try_from(message.len()).expect("no object is so long");
    [&length.to_be_bytes()[..], &message].concat()
}

/// One page of a list of Services or EndpointSlices, in its envelope; `list` is the page as JSON.
pub fn list(kind: &str, list: &Value) -> Vec<u8> {
    let metadata = Some(meta::ListMeta {
        resource_version: text(&list["metadata"]["resourceVersion"]),
        r#continue: text(&list["metadata"]["continue"]),
        ..Default::default()
    });
    let items = &list["items"];
    let (group, message) = match kind {
        "Service" => ("v1", core::ServiceList { metadata, items: each(items, service) }.encode_to_vec()),
        "EndpointSlice" => (
            "discovery.k8s.io/v1",
            discovery::EndpointSliceList { metadata, items: each(items, slice) }.encode_to_vec(),
        ),
        other => panic!("no protobuf for {other:?}"),
    };
    envelope(Some(group.to_owned()), Some(format!("{kind}List")), message)
}

fn envelope(api_version: Option<String>, kind: Option<String>, mut message: Vec<u8>) -> Vec<u8> {
    while let Some(at) = message.windows(NOT_UTF8.len()).position(|text| text == NOT_UTF8.as_bytes()) {
        message[at + NOT_UTF8.len() - 1] = 0xff;
    }
    let unknown = Unknown {
        type_meta: Some(TypeMeta { api_version, kind }),
        raw: Some(message),
        content_encoding: Some(String::new()),
        content_type: Some(String::new()),
    };
    [b"k8s\0", &unknown.encode_to_vec()[..]].concat()
}

fn text(value: &Value) -> Option<String> {
    value.as_str().map(str::to_owned)
}

fn number(value: &Value) -> Option<i32> {
    value.as_i64().map(|number| i32::try_from(number).expect("the API has no larger numbers here"))
}

fn each<T>(list: &Value, convert: impl Fn(&Value) -> T) -> Vec<T> {
    list.as_array().into_iter().flatten().map(convert).collect()
}

fn texts(list: &Value) -> Vec<String> {
    each(list, |value| text(value).unwrap_or_default())
}

fn map<M: FromIterator<(String, String)>>(entries: &Value) -> M {
    let entries = entries.as_object().into_iter().flatten();
    entries.map(|(key, value)| (key.clone(), text(value).unwrap_or_default())).collect()
}

fn metadata(metadata: &Value) -> Option<meta::ObjectMeta> {
    Some(meta::ObjectMeta {
        name: text(&metadata["name"]),
        namespace: text(&metadata["namespace"]),
        uid: text(&metadata["uid"]),
        resource_version: text(&metadata["resourceVersion"]),
        generation: metadata["generation"].as_i64(),
        creation_timestamp: time(&metadata["creationTimestamp"]),
        labels: map(&metadata["labels"]),
        annotations: map(&metadata["annotations"]),
        owner_references: each(&metadata["ownerReferences"], |owner| meta::OwnerReference {
            api_version: text(&owner["apiVersion"]),
            kind: text(&owner["kind"]),
            name: text(&owner["name"]),
            uid: text(&owner["uid"]),
            controller: owner["controller"].as_bool(),
            block_owner_deletion: owner["blockOwnerDeletion"].as_bool(),
        }),
        managed_fields: each(&metadata["managedFields"], |entry| meta::ManagedFieldsEntry {
            manager: text(&entry["manager"]),
            operation: text(&entry["operation"]),
            api_version: text(&entry["apiVersion"]),
            time: time(&entry["time"]),
            fields_type: text(&entry["fieldsType"]),
            fields_v1: Some(meta::FieldsV1 { raw: Some(entry["fieldsV1"].to_string().into()) }),
            subresource: text(&entry["subresource"]),
        }),
        ..Default::default()
    })
}

/// To the second: the exact time matters to nobody.
fn time(value: &Value) -> Option<meta::Time> {
    value.as_str().map(|_| meta::Time { seconds: Some(1_767_323_045), nanos: Some(0) })
}

fn service(object: &Value) -> core::Service {
    let (spec, status) = (&object["spec"], &object["status"]);
    core::Service {
        metadata: metadata(&object["metadata"]),
        spec: spec.is_object().then(|| core::ServiceSpec {
            ports: each(&spec["ports"], service_port),
            selector: map(&spec["selector"]),
            cluster_ip: text(&spec["clusterIP"]),
            cluster_ips: texts(&spec["clusterIPs"]),
            r#type: text(&spec["type"]),
            external_ips: texts(&spec["externalIPs"]),
            session_affinity: text(&spec["sessionAffinity"]),
            load_balancer_source_ranges: texts(&spec["loadBalancerSourceRanges"]),
            external_traffic_policy: text(&spec["externalTrafficPolicy"]),
            health_check_node_port: number(&spec["healthCheckNodePort"]),
            session_affinity_config: spec["sessionAffinityConfig"].as_object().map(|config| {
                core::SessionAffinityConfig {
                    client_ip: config
                        .get("clientIP")
                        .map(|client| core::ClientIpConfig { timeout_seconds: number(&client["timeoutSeconds"]) }),
                }
            }),
            ip_families: texts(&spec["ipFamilies"]),
            ip_family_policy: text(&spec["ipFamilyPolicy"]),
            internal_traffic_policy: text(&spec["internalTrafficPolicy"]),
            ..Default::default()
        }),
        status: status.is_object().then(|| core::ServiceStatus {
            load_balancer: Some(core::LoadBalancerStatus {
                ingress: each(&status["loadBalancer"]["ingress"], |ingress| core::LoadBalancerIngress {
                    ip: text(&ingress["ip"]),
                    hostname: text(&ingress["hostname"]),
                    ip_mode: text(&ingress["ipMode"]),
                    ..Default::default()
                }),
            }),
            ..Default::default()
        }),
    }
}

fn service_port(port: &Value) -> core::ServicePort {
    let target = &port["targetPort"];
    core::ServicePort {
        name: text(&port["name"]),
        protocol: text(&port["protocol"]),
        app_protocol: text(&port["appProtocol"]),
        port: number(&port["port"]),
        target_port: Some(IntOrString {
            r#type: Some(i64::from(target.is_string())),
            int_val: number(target),
            str_val: text(target),
        }),
        node_port: number(&port["nodePort"]),
    }
}

fn slice(object: &Value) -> discovery::EndpointSlice {
    discovery::EndpointSlice {
        metadata: metadata(&object["metadata"]),
        address_type: text(&object["addressType"]),
        endpoints: each(&object["endpoints"], endpoint),
        ports: each(&object["ports"], |port| discovery::EndpointPort {
            name: text(&port["name"]),
            protocol: text(&port["protocol"]),
            port: number(&port["port"]),
            app_protocol: text(&port["appProtocol"]),
        }),
    }
}

fn endpoint(endpoint: &Value) -> discovery::Endpoint {
    let (conditions, hints, target) = (&endpoint["conditions"], &endpoint["hints"], &endpoint["targetRef"]);
    discovery::Endpoint {
        addresses: texts(&endpoint["addresses"]),
        conditions: Some(discovery::EndpointConditions {
            ready: conditions["ready"].as_bool(),
            serving: conditions["serving"].as_bool(),
            terminating: conditions["terminating"].as_bool(),
        }),
        target_ref: target.is_object().then(|| core::ObjectReference {
            kind: text(&target["kind"]),
            namespace: text(&target["namespace"]),
            name: text(&target["name"]),
            uid: text(&target["uid"]),
            ..Default::default()
        }),
        node_name: text(&endpoint["nodeName"]),
        zone: text(&endpoint["zone"]),
        hints: hints.is_object().then(|| discovery::EndpointHints {
            for_zones: each(&hints["forZones"], |zone| discovery::ForZone { name: text(&zone["name"]) }),
            for_nodes: each(&hints["forNodes"], |node| discovery::ForNode { name: text(&node["name"]) }),
        }),
        ..Default::default()
    }
}

fn status(object: &Value) -> meta::Status {
    let details = &object["details"];
    meta::Status {
        status: text(&object["status"]),
        message: text(&object["message"]),
        reason: text(&object["reason"]),
        details: details.is_object().then(|| meta::StatusDetails {
            retry_after_seconds: number(&details["retryAfterSeconds"]),
            ..Default::default()
        }),
        code: number(&object["code"]),
        ..Default::default()
    }
}
