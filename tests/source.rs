//! The source against a real TLS API server with all its faults, and against a folder of manifests.

mod support;

use std::cell::RefCell;
use std::fs;
use std::path::PathBuf;
use std::process::Command;
use std::rc::Rc;
use std::time::{Duration, Instant};

use kube_proxy::model::{Event, Kind};
use kube_proxy::source::{Access, Client, Exchange, Limits, Manifests, Notice, Outcome, Regarding, Source};
use serde_json::{Value, json};
use support::apiserver::{ApiServer, TOKEN};
use support::certificates::Authority;
use support::follower::{Folder, Follower, NODE, limits};
use support::netns::{isolated, run};

const AGAIN: &str = "KUBE_PROXY_TEST_AGAIN";

fn service(name: &str, address: &str) -> Value {
    json!({"kind": "Service", "apiVersion": "v1", "metadata": {"name": name, "namespace": "default"},
        "spec": {"type": "ClusterIP", "clusterIP": address, "clusterIPs": [address], "ipFamilies": ["IPv4"],
            "ports": [{"port": 80, "protocol": "TCP"}]}, "status": {"loadBalancer": {}}})
}

fn slice(name: &str, addresses: &[&str]) -> Value {
    let endpoints: Vec<Value> =
        addresses.iter().map(|address| json!({"addresses": [address], "nodeName": NODE})).collect();
    json!({"kind": "EndpointSlice", "apiVersion": "discovery.k8s.io/v1",
        "metadata": {"name": format!("{name}-1"), "namespace": "default", "labels": {"kubernetes.io/service-name": name}},
        "addressType": "IPv4", "ports": [{"name": "", "port": 8080, "protocol": "TCP"}], "endpoints": endpoints})
}

fn node(name: &str) -> Value {
    json!({"kind": "Node", "apiVersion": "v1", "metadata": {"name": name, "uid": "u-1"},
        "status": {"addresses": [{"type": "InternalIP", "address": "192.0.2.1"}]}})
}

fn cidr(name: &str, range: &str) -> Value {
    json!({"kind": "ServiceCIDR", "apiVersion": "networking.k8s.io/v1", "metadata": {"name": name},
        "spec": {"cidrs": [range]}})
}

/// Three Services, one slice, two nodes, one range.
fn populate(server: &ApiServer) {
    for (name, address) in [("a", "10.96.0.1"), ("b", "10.96.0.2"), ("c", "10.96.0.3")] {
        server.put(service(name, address));
    }
    server.put(slice("a", &["10.244.0.1", "10.244.0.2"]));
    server.put(node(NODE));
    server.put(node("them"));
    server.put(cidr("kubernetes", "10.96.0.0/16"));
}

/// A kubeconfig with these fields of the cluster and the user, as flow YAML.
fn kubeconfig(folder: &Folder, cluster: &str, user: &str) -> PathBuf {
    let text = format!(
        "apiVersion: v1\nkind: Config\ncurrent-context: it\n\
         contexts: [{{name: it, context: {{cluster: it, user: it}}}}]\n\
         clusters: [{{name: it, cluster: {{{cluster}}}}}]\nusers: [{{name: it, user: {{{user}}}}}]\n"
    );
    folder.write("kubeconfig", &text)
}

fn usual(server: &ApiServer, folder: &Folder) -> PathBuf {
    folder.write("ca.crt", server.authority.pem());
    folder.write("token", TOKEN);
    kubeconfig(folder, &format!("server: '{}', certificate-authority: ca.crt", server.url()), "tokenFile: token")
}

/// A server with objects, and a follower that has listed them.
fn listed() -> (ApiServer, Folder, Follower) {
    let (server, folder) = (ApiServer::start("127.0.0.1"), Folder::new());
    populate(&server);
    let mut follower = Follower::api(&usual(&server, &folder), limits());
    follower.until_listed();
    (server, folder, follower)
}

/// Requests for Services that were answered with 200: lists (streaming or not) and resumed watches.
fn lists_and_watches(server: &ApiServer) -> (usize, usize) {
    let requests = server.requests();
    let answered =
        requests.iter().filter(|request| request.path.starts_with("/api/v1/services") && request.answer == 200);
    let (watches, lists): (Vec<_>, Vec<_>) = answered
        .partition(|request| request.path.contains("watch=true") && !request.path.contains("sendInitialEvents"));
    (lists.len(), watches.len())
}

#[test]
fn lists_then_follows_every_kind() {
    let (server, _folder, mut follower) = listed();
    let names: Vec<_> = follower.seen.objects.keys().map(String::as_str).collect();
    assert_eq!(
        names,
        [
            "EndpointSlice default/a-1",
            "Node ours",
            "Service default/a",
            "Service default/b",
            "Service default/c",
            "ServiceCidr kubernetes"
        ]
    );
    assert!(follower.seen.endpoints("default/a-1").iter().all(|endpoint| endpoint.place.is_here()));

    server.put(service("d", "10.96.0.4"));
    server.delete("Service", "default/b");
    server.put(slice("a", &["10.244.0.9"]));
    server.put(cidr("more", "10.97.0.0/16"));
    server.delete("Node", NODE);
    follower.until("all changes", |seen| {
        seen.has("Service default/d")
            && !seen.has("Service default/b")
            && seen.endpoints("default/a-1").len() == 1
            && seen.has("ServiceCidr more")
            && !seen.has("Node ours")
    });
    assert_eq!(lists_and_watches(&server), (1, 0), "one streaming list is all it takes");
}

#[test]
fn requests_bear_the_selectors_and_who_we_are() {
    let (server, _folder, _follower) = listed();
    let requests = server.requests();
    for (path, selectors) in [
        (
            "/api/v1/services?",
            &["labelSelector=%21service.kubernetes.io%2Fservice-proxy-name", "fieldSelector=spec.clusterIP%21%3DNone"]
                [..],
        ),
        ("/apis/discovery.k8s.io/v1/endpointslices?", &["labelSelector=%21service.kubernetes.io%2Fheadless"]),
        ("/api/v1/nodes?", &["fieldSelector=metadata.name%3Dus"]),
        ("/apis/networking.k8s.io/v1/servicecidrs?", &[]),
    ] {
        let request = requests.iter().find(|request| request.path.starts_with(path)).expect(path);
        let parameters: Vec<&str> = request.path[path.len()..].split('&').collect();
        let given = parameters.iter().filter(|parameter| parameter.contains("Selector="));
        assert_eq!(given.count(), selectors.len(), "{}", request.path);
        assert!(selectors.iter().all(|selector| parameters.contains(selector)), "{}", request.path);
        let agent = &request.headers["user-agent"];
        assert!(
            agent.starts_with("kube-proxy/v") && agent.contains(" (linux/") && agent.contains(") kubernetes/"),
            "{agent}"
        );
        let many = path.contains("services") || path.contains("endpointslices");
        let accepted = if many { "application/vnd.kubernetes.protobuf, application/json" } else { "application/json" };
        assert_eq!(request.headers["accept"], accepted);
    }
}

#[test]
fn what_is_read_does_not_depend_on_the_format() {
    let mut seen = Vec::new();
    for (streaming, offered, wanted) in
        [(true, true, true), (true, true, false), (true, false, true), (false, true, true), (false, false, true)]
    {
        let (server, folder) = (ApiServer::start("127.0.0.1"), Folder::new());
        server.streaming(streaming);
        // In pieces, so that lengths and lines are cut as well.
        server.dribble(3);
        if !offered {
            server.speak_json();
        }
        populate(&server);
        let mut follower = Follower::api(&usual(&server, &folder), Limits { protobuf: wanted, ..limits() });
        follower.until_listed();
        server.put(service("d", "10.96.0.4"));
        server.delete("Service", "default/b");
        server.put(slice("a", &["10.244.0.9"]));
        follower.until("all changes", |seen| {
            seen.has("Service default/d") && !seen.has("Service default/b") && seen.endpoints("default/a-1").len() == 1
        });
        seen.push(format!("{:?}", follower.seen.objects));
        let asked = server.requests().iter().any(|request| request.headers["accept"].contains("protobuf"));
        assert_eq!(asked, wanted);
    }
    seen.dedup();
    assert_eq!(seen.len(), 1, "{seen:#?}");
}

/// Follows three Services, and a fourth after the list.
fn follow_pages(server: &ApiServer) {
    let folder = Folder::new();
    populate(server);
    let mut follower = Follower::api(&usual(server, &folder), limits());
    follower.until_listed();
    assert!(["a", "b", "c"].iter().all(|name| follower.seen.has(&format!("Service default/{name}"))));
    server.put(service("d", "10.96.0.4"));
    follower.until("a change after the list", |seen| seen.has("Service default/d"));
}

#[test]
fn a_server_without_streaming_lists_is_read_page_by_page() {
    let server = ApiServer::start("127.0.0.1");
    server.streaming(false);
    follow_pages(&server);

    let requests = server.requests();
    let pages: Vec<_> =
        requests.iter().filter(|r| r.path.starts_with("/api/v1/services") && r.path.contains("limit=2")).collect();
    assert_eq!(pages.len(), 2, "three Services on pages of two");
    assert_eq!(lists_and_watches(&server), (2, 1));
    let plain: std::collections::BTreeSet<_> =
        requests.iter().filter(|request| request.path.contains("limit=")).map(|request| request.peer).collect();
    assert!(
        plain.len() < requests.iter().filter(|request| request.path.contains("limit=")).count(),
        "connections are kept"
    );
}

#[test]
fn a_list_whose_pages_expire_is_read_at_once() {
    let server = ApiServer::start("127.0.0.1");
    server.streaming(false);
    server.expire_pages();
    follow_pages(&server);

    let requests = server.requests();
    let lists = requests.iter().filter(|r| r.path.starts_with("/api/v1/services") && !r.path.contains("watch=true"));
    let asked: Vec<_> = lists.map(|r| (r.path.contains("limit="), r.path.contains("continue="), r.answer)).collect();
    assert_eq!(asked, [(true, false, 200), (true, true, 410), (false, false, 200)]);
}

#[test]
fn lists_are_not_streamed_where_that_is_not_wanted() {
    let (server, folder) = (ApiServer::start("127.0.0.1"), Folder::new());
    populate(&server);
    let mut follower = Follower::api(&usual(&server, &folder), Limits { streaming: false, ..limits() });
    follower.until_listed();
    server.put(service("d", "10.96.0.4"));
    follower.until("a change after the list", |seen| seen.has("Service default/d"));
    assert!(server.requests().iter().all(|request| !request.path.contains("sendInitialEvents")));
}

/// So answers a real one, within the stream, on an etcd without progress requests (3.4, or what stands in for etcd).
#[test]
fn a_server_whose_streaming_lists_fail_is_read_page_by_page() {
    let (server, folder) = (ApiServer::start("127.0.0.1"), Folder::new());
    server.fail_streaming();
    populate(&server);
    let mut follower = Follower::api(&usual(&server, &folder), limits());
    follower.until_listed();
    assert!(["a", "b", "c"].iter().all(|name| follower.seen.has(&format!("Service default/{name}"))));
    server.put(service("d", "10.96.0.4"));
    follower.until("a change after the list", |seen| seen.has("Service default/d"));
}

#[test]
fn a_watch_that_ends_is_resumed_without_a_list() {
    let (server, _folder, mut follower) = listed();
    server.put(service("d", "10.96.0.4"));
    follower.until("a first change", |seen| seen.has("Service default/d"));
    server.bookmark();
    let resumed = format!("resourceVersion={}", server.version());
    server.put(service("e", "10.96.0.5"));
    follower.until("a second change", |seen| seen.has("Service default/e"));
    server.bookmark();
    let newest = format!("resourceVersion={}", server.version());
    assert_ne!(resumed, newest);
    // A bookmark is no event: give it time to arrive before the watch ends, by a change that follows it.
    server.put(service("f", "10.96.0.6"));
    follower.until("a change behind the bookmark", |seen| seen.has("Service default/f"));
    let newest = format!("resourceVersion={}", server.version());
    server.end_watches();
    server.put(service("g", "10.96.0.7"));
    follower.until("a change after the end", |seen| seen.has("Service default/g"));
    assert_eq!(lists_and_watches(&server).0, 1);
    let requests = server.requests();
    assert!(requests.iter().any(|r| r.path.starts_with("/api/v1/services") && r.path.ends_with(&newest)), "{newest}");
}

#[test]
fn a_bookmark_moves_the_place_to_resume() {
    let (server, _folder, mut follower) = listed();
    // Nothing that Services' watch sees happens but the bookmark; then all history before it is forgotten.
    server.put(cidr("more", "10.97.0.0/16"));
    server.bookmark();
    let marked = server.version();
    follower.until("the change before the bookmark", |seen| seen.has("ServiceCidr more"));
    let resumed = |server: &ApiServer| {
        let wanted = format!("resourceVersion={marked}");
        server.requests().iter().any(|r| r.path.starts_with("/api/v1/services") && r.path.ends_with(&wanted))
    };
    // Ends watches until one is resumed from the bookmark: the first end may come before the bookmark did.
    follower.until("Services resume from the bookmark", |_| {
        server.end_watches();
        resumed(&server)
    });
    assert_eq!(lists_and_watches(&server).0, 1);
}

#[test]
fn forgotten_history_is_replaced_by_a_list_and_the_difference_applied() {
    let (server, _folder, mut follower) = listed();
    server.stop();
    server.delete("Service", "default/b");
    server.put(service("d", "10.96.0.4"));
    server.put(slice("a", &["10.244.0.7"]));
    server.compact();
    server.restart();
    follower.until("the difference", |seen| {
        seen.has("Service default/d") && !seen.has("Service default/b") && seen.endpoints("default/a-1").len() == 1
    });
    assert!(follower.seen.has("Service default/a"), "what is in both lists stays");
    assert_eq!(follower.seen.lists(Kind::Service), 2);
}

#[test]
fn a_place_that_is_refused_for_ever_is_replaced_by_a_list() {
    for (code, streaming) in [(400, true), (404, true), (500, false), (504, true), (504, false)] {
        let (server, folder) = (ApiServer::start("127.0.0.1"), Folder::new());
        server.streaming(streaming);
        populate(&server);
        let mut follower = Follower::api(&usual(&server, &folder), limits());
        follower.until_listed();
        server.displace(code);
        server.delete("Service", "default/b");
        server.put(service("d", "10.96.0.4"));
        follower.until("the difference", |seen| seen.has("Service default/d") && !seen.has("Service default/b"));
        assert!(follower.seen.lists(Kind::Service) > 1, "{code}");
        server.put(service("e", "10.96.0.5"));
        follower.until("a change after the list", |seen| seen.has("Service default/e"));
    }
}

#[test]
fn a_connection_cut_in_the_middle_of_a_line_loses_nothing() {
    let (server, _folder, mut follower) = listed();
    server.cut_next_line(true);
    server.put(service("d", "10.96.0.4"));
    follower.until("the watch was opened again", |_| lists_and_watches(&server).1 > 0);
    server.cut_next_line(false);
    follower.until("the change that was cut", |seen| seen.has("Service default/d"));
    assert_eq!(lists_and_watches(&server).0, 1);
}

#[test]
fn bodies_may_come_in_tiny_pieces() {
    for streaming in [true, false] {
        let (server, folder) = (ApiServer::start("127.0.0.1"), Folder::new());
        server.streaming(streaming);
        server.dribble(7);
        populate(&server);
        let mut follower = Follower::api(&usual(&server, &folder), limits());
        follower.until_listed();
        assert_eq!(follower.seen.objects.len(), 6, "streaming: {streaming}");
    }
}

#[test]
fn a_connection_that_says_nothing_is_given_up() {
    let (server, folder) = (ApiServer::start("127.0.0.1"), Folder::new());
    populate(&server);
    let quick = Limits { watch: Duration::from_millis(100), grace: Duration::from_millis(100), ..limits() };
    let mut follower = Follower::api(&usual(&server, &folder), quick);
    follower.until_listed();
    server.fall_silent();
    server.put(service("d", "10.96.0.4"));
    follower.until("the change behind the silence", |seen| seen.has("Service default/d"));
    assert_eq!(lists_and_watches(&server).0, 1);
}

#[test]
fn a_server_that_is_away_takes_nothing_with_it() {
    let (server, _folder, mut follower) = listed();
    server.stop();
    let failed = Rc::clone(&follower.exchanges);
    follower.until("attempts that fail", |_| failed.borrow().iter().filter(|(_, code)| code.is_none()).count() >= 5);
    assert_eq!(follower.seen.objects.len(), 6, "nothing is gone");
    server.restart();
    server.put(service("d", "10.96.0.4"));
    follower.until("a change after the return", |seen| seen.has("Service default/d"));
    assert_eq!(lists_and_watches(&server).0, 1, "resumed, not listed again");
}

#[test]
fn a_server_that_is_late_is_waited_for() {
    let (server, folder) = (ApiServer::start("127.0.0.1"), Folder::new());
    populate(&server);
    server.stop();
    let mut follower = Follower::api(&usual(&server, &folder), limits());
    let failed = Rc::clone(&follower.exchanges);
    follower.until("attempts that fail", |_| failed.borrow().len() >= 5);
    server.restart();
    follower.until_listed();
}

#[test]
fn refusals_are_outlived() {
    for (code, retry_after) in
        [(401, None), (403, None), (404, None), (429, Some(0)), (429, Some(1)), (500, None), (503, Some(0))]
    {
        let (server, folder) = (ApiServer::start("127.0.0.1"), Folder::new());
        populate(&server);
        server.refuse(6, code, retry_after);
        let mut follower = Follower::api(&usual(&server, &folder), limits());
        follower.until_listed();
        assert_eq!(server.refusals_left(), 0, "{code}");
        let refused = follower.exchanges.borrow().iter().filter(|(_, got)| *got == Some(code)).count();
        assert_eq!(refused, 6, "every request is observed: {code}");

        // Who we are and how busy the server is says nothing about the place; anything else may be about it.
        if [404, 500].contains(&code) {
            continue;
        }
        let lists = lists_and_watches(&server).0;
        server.refuse(2, code, None);
        server.end_watches();
        server.put(service("d", "10.96.0.4"));
        follower.until("a change after refused watches", |seen| seen.has("Service default/d"));
        assert_eq!(lists_and_watches(&server).0, lists, "a refused watch is resumed, not listed again: {code}");
    }
}

#[test]
fn a_quiet_watch_that_lasted_ends_the_trouble_before_it() {
    let (server, folder) = (ApiServer::start("127.0.0.1"), Folder::new());
    populate(&server);
    // Whoever is refused often waits longer than this test, but for what the server says: that it need not wait.
    let patient = Limits { retry: (Duration::from_millis(20), Duration::from_secs(3600)), ..limits() };
    let mut follower = Follower::api(&usual(&server, &folder), patient);
    follower.until_listed();
    server.refuse(80, 503, Some(0));
    server.end_watches();
    follower.until("all watches are resumed", |_| {
        let requests = server.requests();
        requests.iter().filter(|r| r.path.contains("&resourceVersion=1") && r.answer == 200).count() == 4
    });
    let began = Instant::now();
    follower.until("they lasted", |_| began.elapsed() > Duration::from_secs(2));

    server.refuse(4, 503, None);
    server.end_watches();
    server.put(service("d", "10.96.0.4"));
    follower.until("a change after another refusal", |seen| seen.has("Service default/d"));
    assert_eq!(lists_and_watches(&server).0, 1);
}

/// Balancers cut what is quiet for half a minute, again and again: nothing is missed for that.
#[test]
fn quiet_watches_that_break_off_are_resumed_at_once() {
    let (server, folder) = (ApiServer::start("127.0.0.1"), Folder::new());
    populate(&server);
    // Whoever waits before it asks again waits longer than this test.
    let hour = Duration::from_secs(3600);
    let patient = Limits { retry: (hour, hour), lasting: Duration::from_secs(1), ..limits() };
    let mut follower = Follower::api(&usual(&server, &folder), patient);
    follower.until_listed();
    for name in ["d", "e"] {
        let began = Instant::now();
        follower.until("they lasted", |_| began.elapsed() > Duration::from_millis(1500));
        server.break_watches();
        server.put(service(name, "10.96.0.4"));
        follower.until("a change after watches broke off", |seen| seen.has(&format!("Service default/{name}")));
    }
    assert_eq!(lists_and_watches(&server).0, 1);
}

/// The API server lets anything into the value of an annotation.
#[test]
fn an_annotation_that_is_not_utf8_harms_nobody() {
    let (server, folder) = (ApiServer::start("127.0.0.1"), Folder::new());
    populate(&server);
    let mut odd = service("odd", "10.96.0.66");
    odd["metadata"]["annotations"] = json!({"note": support::protobuf::NOT_UTF8, "kube-proxy.io/weight": "7"});
    server.put(odd);
    let mut follower = Follower::api(&usual(&server, &folder), limits());
    follower.until_listed();
    assert!(follower.seen.has("Service default/odd"));
    server.delete("Service", "default/odd");
    follower.until("its end", |seen| !seen.has("Service default/odd"));
}

#[test]
fn one_bad_object_harms_no_other() {
    for (streaming, protobuf) in [(true, true), (true, false), (false, true), (false, false)] {
        let (server, folder) = (ApiServer::start("127.0.0.1"), Folder::new());
        server.streaming(streaming);
        if !protobuf {
            server.speak_json();
        }
        populate(&server);
        let mut bad = service("bad", "10.96.0.66");
        bad["spec"]["sessionAffinityConfig"] = json!({"clientIP": {"timeoutSeconds": -1}});
        server.put(bad.clone());
        let mut follower = Follower::api(&usual(&server, &folder), limits());
        follower.until_listed();
        assert_eq!(follower.seen.objects.len(), 6);
        server.send_raw("Service", "MODIFIED", bad);
        server.put(service("d", "10.96.0.4"));
        follower.until("a change behind a bad object", |seen| seen.has("Service default/d"));
        let expected = if streaming { (1, 0) } else { (2, 1) };
        assert_eq!(lists_and_watches(&server), expected, "the watch went on");
    }
}

#[test]
fn a_rotated_token_is_used_at_the_next_request() {
    let (server, folder, mut follower) = listed();
    server.change_token("second-token");
    server.end_watches();
    let refused = Rc::clone(&follower.exchanges);
    follower.until("the old token is refused", |_| refused.borrow().iter().any(|(_, code)| *code == Some(401)));
    folder.write("token", "second-token\n");
    server.put(service("d", "10.96.0.4"));
    follower.until("a change seen with the new token", |seen| seen.has("Service default/d"));
}

#[test]
fn a_token_stands_in_for_a_file_that_cannot_be_read() {
    let (server, folder) = (ApiServer::start("127.0.0.1"), Folder::new());
    populate(&server);
    folder.write("ca.crt", server.authority.pem());
    folder.write("empty", "");
    let cluster = format!("server: '{}', certificate-authority: ca.crt", server.url());
    for file in ["none", "empty"] {
        let path = kubeconfig(&folder, &cluster, &format!("tokenFile: {file}, token: {TOKEN}"));
        Follower::api(&path, limits()).until_listed();
    }
}

#[test]
fn a_user_that_is_missing_is_nobody() {
    let (server, folder) = (ApiServer::start("127.0.0.1"), Folder::new());
    let text = format!(
        "current-context: x\ncontexts: [{{name: x, context: {{cluster: c, user: u}}}}]\n\
         clusters: [{{name: c, cluster: {{server: '{}', insecure-skip-tls-verify: true}}}}]\n",
        server.url()
    );
    let mut follower = Follower::api(&folder.write("kubeconfig", &text), limits());
    let refused = Rc::clone(&follower.exchanges);
    follower.until("nobody is refused", |_| refused.borrow().iter().any(|(_, code)| *code == Some(401)));
    assert!(server.requests().iter().all(|request| !request.headers.contains_key("authorization")));
}

#[test]
fn a_client_certificate_is_enough() {
    let (server, folder) = (ApiServer::start("127.0.0.1"), Folder::new());
    populate(&server);
    let identity = server.authority.sign("system:kube-proxy", &[]);
    folder.write("ca.crt", server.authority.pem());
    folder.write("client.crt", &identity.certificate);
    folder.write("client.key", &identity.key);
    let cluster = format!("server: '{}', certificate-authority: ca.crt", server.url());
    let path = kubeconfig(&folder, &cluster, "client-certificate: client.crt, client-key: client.key");
    Follower::api(&path, limits()).until_listed();
    let requests = server.requests();
    assert!(requests.iter().all(|request| request.certified && !request.headers.contains_key("authorization")));

    let data = |text: &str| serde_json::to_value(k8s_openapi::ByteString(text.into())).unwrap();
    let cluster = format!("server: '{}', certificate-authority-data: {}", server.url(), data(server.authority.pem()));
    let user =
        format!("client-certificate-data: {}, client-key-data: {}", data(&identity.certificate), data(&identity.key));
    Follower::api(&kubeconfig(&folder, &cluster, &user), limits()).until_listed();
}

#[test]
fn servers_are_reached_by_address_and_name_with_and_without_tls() {
    let user = format!("token: {TOKEN}");
    let folder = Folder::new();
    let try_one = |server: &ApiServer, cluster: String| {
        populate(server);
        folder.write("ca.crt", server.authority.pem());
        Follower::api(&kubeconfig(&folder, &cluster, &user), limits()).until_listed();
    };
    let server = ApiServer::start("::1");
    assert!(server.url().contains("[::1]"));
    try_one(&server, format!("server: '{}', certificate-authority: ca.crt", server.url()));

    let server = ApiServer::start("127.0.0.1");
    let port = server.port();
    try_one(&server, format!("server: 'https://localhost:{port}', certificate-authority: ca.crt"));
    try_one(&server, format!("server: '127.0.0.1:{port}', certificate-authority: ca.crt"));
    try_one(
        &server,
        format!(
            "server: 'https://127.0.0.1:{port}', certificate-authority: ca.crt, tls-server-name: kubernetes.example"
        ),
    );
    try_one(&server, format!("server: 'https://127.0.0.1:{port}', insecure-skip-tls-verify: true"));

    let server = ApiServer::start_plain();
    try_one(&server, format!("server: '{}'", server.url()));
}

#[test]
fn a_master_address_overrides_the_kubeconfig() {
    let (server, folder) = (ApiServer::start("127.0.0.1"), Folder::new());
    populate(&server);
    folder.write("ca.crt", server.authority.pem());
    let path =
        kubeconfig(&folder, "server: 'https://192.0.2.1', certificate-authority: ca.crt", &format!("token: {TOKEN}"));
    let access = Access::load(Some(&path), Some(&server.url())).unwrap();
    assert_eq!(access.server().to_string(), server.url());
    let mut follower = Follower::new(Source::Api(Rc::new(Client::new(access, limits(), None))));
    follower.until_listed();

    let alone = Access::load(None, Some("http://10.0.0.1:8080")).unwrap();
    assert_eq!(alone.server().to_string(), "http://10.0.0.1:8080");
}

#[test]
fn an_unknown_authority_is_a_clear_error() {
    let (server, folder) = (ApiServer::start("127.0.0.1"), Folder::new());
    folder.write("ca.crt", Authority::new("somebody else").pem());
    let path = kubeconfig(&folder, &format!("server: '{}', certificate-authority: ca.crt", server.url()), "token: t");
    let client = Client::new(Access::load(Some(&path), None).unwrap(), limits(), None);
    let error = smol::block_on(client.get("/version")).unwrap_err().to_string();
    assert!(
        error.contains(&server.url()) && error.contains("not signed by the given certificate-authority"),
        "{error}"
    );

    folder.write("ca.crt", server.authority.pem());
    let path = kubeconfig(
        &folder,
        &format!("server: '{}', certificate-authority: ca.crt, tls-server-name: other.example", server.url()),
        "token: t",
    );
    let client = Client::new(Access::load(Some(&path), None).unwrap(), limits(), None);
    let error = smol::block_on(client.get("/version")).unwrap_err().to_string();
    assert!(error.contains("is not for this name") && !error.contains('\n'), "{error}");
}

#[test]
fn mistakes_in_a_kubeconfig_are_one_clear_line() {
    let folder = Folder::new();
    let authority = Authority::new("a");
    folder.write("ca.crt", authority.pem());
    let (ours, other) = (authority.sign("x", &[]), authority.sign("y", &[]));
    folder.write("client.crt", &ours.certificate);
    folder.write("client.key", &ours.key);
    folder.write("other.key", &other.key);
    folder.write("empty", "");
    folder.write("binary", "a\u{1}b");
    let good = "server: 'https://10.0.0.1', certificate-authority: ca.crt";
    for (cluster, user, expected) in [
        ("certificate-authority: ca.crt", "token: t", "server \"\" is empty"),
        ("server: 'ftp://10.0.0.1'", "token: t", "is not an address like"),
        ("server: 'https://[10.0.0.1', certificate-authority: ca.crt", "token: t", "is not an address like"),
        ("server: 'https://u:p@10.0.0.1', certificate-authority: ca.crt", "token: t", "is not an address like"),
        ("server: 'https://-bad-', certificate-authority: ca.crt", "token: t", "neither a DNS name nor an IP"),
        (
            "server: 'https://10.0.0.1', certificate-authority: none.crt",
            "token: t",
            "none.crt cannot be read: No such file",
        ),
        (
            "server: 'https://10.0.0.1', certificate-authority: client.key",
            "token: t",
            "client.key holds no certificate",
        ),
        (
            "server: 'https://10.0.0.1', certificate-authority-data: '***'",
            "token: t",
            "certificate-authority-data is not base64",
        ),
        (
            "server: 'https://10.0.0.1', certificate-authority: ca.crt, insecure-skip-tls-verify: true",
            "token: t",
            "exclude each other",
        ),
        ("server: 'https://10.0.0.1', proxy-url: 'http://p'", "token: t", "proxy-url is not supported"),
        ("server: 'http://10.0.0.1', certificate-authority: none", "token: t", "none cannot be read"),
        ("server: 'http://10.0.0.1'", "client-certificate: client.crt, client-key: none", "none cannot be read"),
        (good, "tokenFile: none", "tokenFile"),
        (good, "tokenFile: empty", "is empty"),
        (good, "tokenFile: binary", "characters that no token has"),
        (good, "client-certificate: client.crt", "needs a client-key"),
        (good, "client-key: client.key", "needs a client-certificate"),
        (good, "client-certificate: client.crt, client-key: other.key", "does not go with its key"),
        (good, "client-certificate: client.crt, client-key: ca.crt", "ca.crt holds no private key"),
        (
            good,
            "exec: {command: get-token, apiVersion: client.authentication.k8s.io/v1}",
            "exec credential plugins are not run",
        ),
        (good, "auth-provider: {name: gcp}", "auth-provider is not supported"),
        (good, "username: me, password: secret", "no longer accept a username"),
        (good, "as: somebody", "impersonation"),
        ("server: [1, 2]", "token: t", "clusters[0].cluster.server must be a string"),
    ] {
        let path = kubeconfig(&folder, cluster, user);
        let error = Access::load(Some(&path), None).err().unwrap_or_else(|| panic!("{cluster} {user}")).to_string();
        assert!(error.contains(expected), "{cluster} {user}: {error}");
        assert!(error.contains("kubeconfig") && !error.contains('\n'), "{error}");
    }
    for (text, expected) in [
        ("{}", "current-context is not set"),
        ("current-context: x", "current-context \"x\" is not among its contexts"),
        ("current-context: x\ncontexts: [{name: x, context: {cluster: c}}]", "cluster \"c\" of the current context"),
        ("kind: Pod\ncurrent-context: x", "kind must be Config"),
    ] {
        let path = folder.write("kubeconfig", text);
        let error = Access::load(Some(&path), None).err().unwrap_or_else(|| panic!("{text}")).to_string();
        assert!(error.contains(expected), "{text}: {error}");
    }
    let error = Access::load(Some(&folder.path().join("none")), None).err().unwrap().to_string();
    assert!(error.contains("/none: No such file"), "{error}");
}

#[test]
fn a_peer_that_vanished_is_noticed_without_a_word_from_it() {
    isolated("a_peer_that_vanished_is_noticed_without_a_word_from_it", || {
        let (server, folder) = (ApiServer::start("127.0.0.1"), Folder::new());
        populate(&server);
        // Only the kernel's probes can notice: the watch itself may be silent for minutes.
        let probed = Limits { keep_alive: Duration::from_secs(2), connect: Duration::from_secs(1), ..limits() };
        let mut follower = Follower::api(&usual(&server, &folder), probed);
        follower.until_listed();
        run(&format!(
            "nft 'add table inet lost; add chain inet lost in {{ type filter hook input priority 0; }}; \
             add rule inet lost in tcp dport {} drop'",
            server.port()
        ));
        let failed = Rc::clone(&follower.exchanges);
        follower.until("a new attempt", |_| failed.borrow().iter().any(|(_, code)| code.is_none()));
        run("nft delete table inet lost");
        server.put(service("d", "10.96.0.4"));
        follower.until("a change after the return", |seen| seen.has("Service default/d"));
        assert_eq!(lists_and_watches(&server).0, 1);
    });
}

#[test]
fn a_pod_uses_its_service_account() {
    const NAME: &str = "a_pod_uses_its_service_account";
    if again(NAME) {
        let access = Access::load(None, None).unwrap();
        return Follower::new(Source::Api(Rc::new(Client::new(access, limits(), None)))).until_listed();
    }
    isolated(NAME, || {
        let server = ApiServer::start("127.0.0.1");
        populate(&server);
        // `/run` is the test's own, and `/var/run` leads there.
        let account = PathBuf::from("/var/run/secrets/kubernetes.io/serviceaccount");
        fs::create_dir_all(&account).unwrap();
        fs::write(account.join("token"), TOKEN).unwrap();
        fs::write(account.join("ca.crt"), server.authority.pem()).unwrap();
        run_again(NAME, Some(server.port()));
        assert_eq!(lists_and_watches(&server), (1, 0));
    });
}

#[test]
fn outside_of_a_pod_a_kubeconfig_is_asked_for() {
    const NAME: &str = "outside_of_a_pod_a_kubeconfig_is_asked_for";
    if !again(NAME) {
        return run_again(NAME, None);
    }
    let error = Access::load(None, None).err().expect("there is no service account").to_string();
    assert!(error.contains("clientConnection.kubeconfig") && !error.contains('\n'), "{error}");
}

/// Whether this is the second run of a test, in an environment of its own.
fn again(name: &str) -> bool {
    std::env::var_os(AGAIN).is_some_and(|again| again == *name)
}

/// Runs a test once more, in the environment of a pod or of none.
fn run_again(name: &str, port: Option<u16>) {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(["--exact", name, "--nocapture"]).env(AGAIN, name).env_remove("KUBERNETES_SERVICE_HOST");
    if let Some(port) = port {
        command.env("KUBERNETES_SERVICE_HOST", "127.0.0.1").env("KUBERNETES_SERVICE_PORT", port.to_string());
    }
    assert!(command.status().unwrap().success(), "{name} failed in its environment");
}

#[test]
fn the_server_is_asked_for_its_time_and_told_of_events() {
    let (server, folder) = (ApiServer::start("127.0.0.1"), Folder::new());
    let access = Access::load(Some(&usual(&server, &folder)), None).unwrap();
    let sizes = Rc::new(RefCell::new(Vec::new()));
    let log = Rc::clone(&sizes);
    let observer = move |exchange: &Exchange<'_>| {
        if let Outcome::Read { sent, received } = exchange.outcome {
            log.borrow_mut().push((exchange.verb.to_owned(), sent > 200, received));
        }
    };
    let client = Client::new(access, limits(), Some(Rc::new(observer)));
    let time = smol::block_on(client.server_time()).unwrap();
    assert_eq!(time.duration_since(std::time::UNIX_EPOCH).unwrap().as_secs(), 1_704_164_645);

    server.refuse(1, 400, None);
    let notice = Notice {
        node_name: NODE.into(),
        regarding: Regarding::Node,
        warning: false,
        reason: "Starting",
        action: "StartKubeProxy",
        note: String::new(),
    };
    smol::block_on(client.post_event(notice.clone()));
    assert!(server.events().is_empty(), "a refusal is final");
    smol::block_on(client.post_event(notice));
    let events = server.events();
    assert_eq!(events.len(), 1);
    assert_eq!(events[0]["reason"], "Starting");
    let request = server.requests().pop().unwrap();
    assert_eq!((&*request.method, &*request.path), ("POST", "/apis/events.k8s.io/v1/namespaces/default/events"));
    let version = r#"{"gitVersion":"v1.36.0"}"#.len();
    let created = r#"{"code":201}"#.len();
    assert_eq!(*sizes.borrow(), [("GET".into(), false, version), ("POST".into(), true, created)]);
}

#[test]
fn a_folder_of_manifests_is_followed() {
    let folder = Folder::new();
    let text = |objects: &[Value]| objects.iter().map(|object| format!("---\n{object}\n")).collect::<String>();
    folder.write("a.yaml", &text(&[service("a", "10.96.0.1"), slice("a", &["10.244.0.1"]), node(NODE), node("them")]));
    folder.write("b.json", &service("b", "10.96.0.2").to_string());
    folder.write("ignored.txt", &service("ignored", "10.96.0.3").to_string());
    let manifests = Manifests::open(folder.path()).unwrap();
    let mut follower = Follower::new(Source::Manifests(manifests));
    follower.until_listed();
    let names: Vec<_> = follower.seen.objects.keys().map(String::as_str).collect();
    assert_eq!(names, ["EndpointSlice default/a-1", "Node ours", "Service default/a", "Service default/b"]);

    folder.write("c.yml", &text(&[cidr("kubernetes", "10.96.0.0/16")]));
    follower.until("a new file", |seen| seen.has("ServiceCidr kubernetes"));
    folder.write("a.yaml", &text(&[service("a", "10.96.0.1"), slice("a", &["10.244.0.1", "10.244.0.2"])]));
    follower.until("a changed file", |seen| seen.endpoints("default/a-1").len() == 2 && !seen.has("Node ours"));
    fs::rename(folder.write("new", &service("b2", "10.96.0.22").to_string()), folder.path().join("b.json")).unwrap();
    follower.until("a replaced file", |seen| seen.has("Service default/b2") && !seen.has("Service default/b"));

    let mut slip = service("a", "10.96.0.1");
    slip["spec"]["ports"] = json!("80");
    folder.write("a.yaml", &text(&[slip, slice("a", &["10.244.0.9"])]));
    follower.until("what is beside a slip", |seen| seen.endpoints("default/a-1").len() == 1);
    assert!(follower.seen.has("Service default/a"), "what it said before still counts");

    folder.write("a.yaml", "{ unfinished");
    folder.write("d.yaml", &text(&[service("d", "10.96.0.4")]));
    follower.until("a file beside a broken one", |seen| seen.has("Service default/d"));
    assert!(follower.seen.has("Service default/a"), "what a broken file said before still counts");

    fs::remove_file(folder.path().join("a.yaml")).unwrap();
    follower.until("a removed file", |seen| !seen.has("Service default/a"));
    let error = Manifests::open(&folder.path().join("none")).err().unwrap().to_string();
    assert!(error.contains("manifests folder") && error.contains("No such file"), "{error}");
    assert!(matches!(follower.seen.objects["Service default/d"], Event::Service(_, Some(_))));
}
