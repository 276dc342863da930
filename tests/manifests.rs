//! The files in `configs/` say what they seem to say: each is read into the API's own types, and no key may get lost
//! on the way (the API server would drop a misspelt one as silently).

use std::path::Path;

use k8s_openapi::api::apps::v1::DaemonSet;
use k8s_openapi::api::core::v1::{Container, Pod, PodSpec, Secret, ServiceAccount};
use k8s_openapi::api::rbac::v1::ClusterRoleBinding;
use kube::config::Kubeconfig;
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

/// The documents of a file in `configs/`.
fn documents(name: &str) -> Vec<Value> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("configs").join(name);
    let text = std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    serde_saphyr::from_multiple(&text).unwrap_or_else(|error| panic!("{name}: {error}"))
}

/// The only document of a file.
fn document(name: &str) -> Value {
    let mut all = documents(name);
    assert_eq!(all.len(), 1, "{name} holds one object");
    all.remove(0)
}

/// Reads a document as `T`, and nothing of it gets lost.
fn read<T: DeserializeOwned + Serialize>(document: &Value) -> T {
    let object: T = serde_json::from_value(document.clone()).unwrap_or_else(|error| panic!("{error} in {document}"));
    let understood = serde_json::to_value(&object).expect("the API's types can be written");
    let mut lost = Vec::new();
    find_lost(document, &understood, "", &mut lost);
    assert_eq!(lost, Vec::<String>::new(), "keys that the API does not know");
    object
}

/// Collects the paths of everything in `written` that `understood` lacks.
fn find_lost(written: &Value, understood: &Value, path: &str, lost: &mut Vec<String>) {
    match (written, understood) {
        (Value::Object(written), Value::Object(understood)) => {
            for (key, value) in written {
                let path = format!("{path}.{key}");
                match understood.get(key) {
                    Some(other) => find_lost(value, other, &path, lost),
                    None => lost.push(path),
                }
            }
        }
        (Value::Array(written), Value::Array(understood)) if written.len() == understood.len() => {
            for (index, (value, other)) in written.iter().zip(understood).enumerate() {
                find_lost(value, other, &format!("{path}[{index}]"), lost);
            }
        }
        _ if written == understood => {}
        _ => lost.push(path.to_owned()),
    }
}

fn daemon_set() -> DaemonSet {
    read(&document("daemonset.yaml"))
}

fn pod_of(daemon_set: DaemonSet) -> PodSpec {
    daemon_set.spec.and_then(|spec| spec.template.spec).expect("a DaemonSet has a pod template")
}

fn container(pod: &PodSpec) -> &Container {
    assert_eq!(pod.containers.len(), 1);
    &pod.containers[0]
}

#[test]
fn a_misspelt_key_is_noticed() {
    let mut document = document("static-pod.yaml");
    document["spec"]["containers"][0]["livenessProbe"]["periodSecond"] = json!(3);
    let object: Pod = serde_json::from_value(document.clone()).unwrap();
    let mut lost = Vec::new();
    find_lost(&document, &serde_json::to_value(object).unwrap(), "", &mut lost);
    assert_eq!(lost, [".spec.containers[0].livenessProbe.periodSecond"]);
}

#[test]
fn the_daemon_set_takes_the_place_of_kubeadms() {
    let daemon_set = daemon_set();
    assert_eq!(daemon_set.metadata.name.as_deref(), Some("kube-proxy"));
    assert_eq!(daemon_set.metadata.namespace.as_deref(), Some("kube-system"));
    let selector = daemon_set.spec.as_ref().unwrap().selector.match_labels.clone().unwrap();
    assert_eq!(selector.into_iter().collect::<Vec<_>>(), [("k8s-app".to_owned(), "kube-proxy".to_owned())]);

    let pod = pod_of(daemon_set);
    assert_eq!(pod.service_account_name.as_deref(), Some("kube-proxy"));
    assert_eq!(pod.priority_class_name.as_deref(), Some("system-node-critical"));
    assert_eq!(pod.host_network, Some(true));
    assert_eq!(pod.node_selector.as_ref().unwrap()["kubernetes.io/os"], "linux");
    let container = container(&pod);
    assert_eq!(container.name, "kube-proxy", "`kubectl patch` finds it by its name");
    assert_eq!(container.security_context.as_ref().and_then(|context| context.privileged), Some(true));
    let mounts: Vec<_> = container
        .volume_mounts
        .iter()
        .flatten()
        .map(|mount| (&*mount.name, &*mount.mount_path, mount.read_only.unwrap_or(false)))
        .collect();
    assert_eq!(
        mounts,
        [
            ("kube-proxy", "/var/lib/kube-proxy", false),
            ("xtables-lock", "/run/xtables.lock", false),
            ("lib-modules", "/lib/modules", true),
        ]
    );
}

#[test]
fn both_pods_run_the_same_container() {
    let static_pod: Pod = read(&document("static-pod.yaml"));
    let static_pod = static_pod.spec.expect("a pod has a spec");
    let managed = pod_of(daemon_set());
    let without_mounts = |pod: &PodSpec| Container { volume_mounts: None, ..container(pod).clone() };
    assert_eq!(without_mounts(&static_pod), without_mounts(&managed));
    for pod in [&static_pod, &managed] {
        assert_eq!(pod.host_network, Some(true));
        let tolerations: Vec<_> = pod.tolerations.iter().flatten().collect();
        assert!(
            tolerations.len() == 1
                && tolerations[0].key.is_none()
                && tolerations[0].operator.as_deref() == Some("Exists"),
            "every node is served, whatever its taints: {tolerations:?}"
        );
        let volumes: Vec<_> = pod.volumes.iter().flatten().map(|volume| &volume.name).collect();
        for mount in container(pod).volume_mounts.iter().flatten() {
            assert!(volumes.contains(&&mount.name), "no volume for mount {}", mount.name);
        }
    }
}

#[test]
fn probes_ask_the_port_that_the_pod_names() {
    let pod = pod_of(daemon_set());
    let container = container(&pod);
    let ports: Vec<_> =
        container.ports.iter().flatten().map(|port| (port.name.as_deref(), port.container_port)).collect();
    assert_eq!(ports, [(Some("healthz"), 10256)], "the default of healthzBindAddress");
    for (probe, path) in [(&container.liveness_probe, "/livez"), (&container.readiness_probe, "/healthz")] {
        let get = serde_json::to_value(probe.as_ref().and_then(|probe| probe.http_get.as_ref())).unwrap();
        assert_eq!(get, json!({"path": path, "port": "healthz"}));
    }
}

#[test]
fn the_account_gets_the_role_that_the_api_server_makes() {
    let [account, binding, token] = &documents("rbac.yaml")[..] else { panic!("three objects are expected") };
    let account: ServiceAccount = read(account);
    let binding: ClusterRoleBinding = read(binding);
    let token: Secret = read(token);
    assert_eq!(binding.role_ref.name, "system:node-proxier");
    let subject = &binding.subjects.as_ref().expect("somebody is bound")[0];
    assert_eq!(Some(&subject.name), account.metadata.name.as_ref());
    assert_eq!(subject.namespace, account.metadata.namespace);
    let annotations = token.metadata.annotations.expect("the token names its account");
    assert_eq!(annotations["kubernetes.io/service-account.name"], subject.name);
    assert_eq!(pod_of(daemon_set()).service_account_name, account.metadata.name);
}

#[test]
fn the_kubeconfig_template_is_one() {
    let text = serde_json::to_string(&document("kubeconfig.conf")).unwrap();
    let config = Kubeconfig::from_yaml(&text).expect("a kubeconfig");
    let cluster = config.clusters[0].cluster.as_ref().expect("a cluster");
    assert!(cluster.server.as_ref().is_some_and(|server| server.starts_with("https://")));
    assert_eq!(cluster.certificate_authority.as_deref(), Some("ca.crt"));
    let user = config.auth_infos[0].auth_info.as_ref().expect("a user");
    assert_eq!(user.token_file.as_deref(), Some("token"));
    assert_eq!(config.current_context.as_deref(), Some("default"));
    assert_eq!(config.contexts[0].name, "default");
    assert_eq!(config.contexts[0].context.as_ref().map(|context| &*context.cluster), Some("default"));
}

#[test]
fn kind_leaves_the_services_to_us() {
    assert_eq!(
        document("kind.yaml"),
        json!({
            "kind": "Cluster",
            "apiVersion": "kind.x-k8s.io/v1alpha4",
            "name": "kube-proxy",
            "networking": {"ipFamily": "dual", "kubeProxyMode": "none"},
            "nodes": [{"role": "control-plane"}, {"role": "worker"}, {"role": "worker"}],
        })
    );
}
