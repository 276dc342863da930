//! Addresses and their changes over rtnetlink, against what `ip` does in a private namespace.

mod support;

use std::future::Future;
use std::net::IpAddr;
use std::pin::pin;
use std::time::Duration;

use kube_proxy::kernel::links::{Watcher, addresses};
use smol::Timer;
use smol::future::{block_on, or, poll_once};
use support::netns::{isolated, run};

#[test]
fn addresses_are_those_that_ip_added() {
    isolated("addresses_are_those_that_ip_added", || {
        run("ip link add one type veth peer name two
             ip addr add 192.0.2.1/24 dev one
             ip addr add 192.0.2.2 peer 192.0.2.9 dev one
             ip addr add fd00::1/64 dev two nodad
             ip addr add 169.254.7.7/16 scope link dev two");
        let found = addresses().unwrap();
        for (address, interface, prefix, scope) in [
            ("127.0.0.1", "lo", 8, 254),
            ("::1", "lo", 128, 254),
            ("192.0.2.1", "one", 24, 0),
            ("192.0.2.2", "one", 32, 0),
            ("fd00::1", "two", 64, 0),
            ("169.254.7.7", "two", 16, 253),
        ] {
            let ip: IpAddr = address.parse().unwrap();
            let entry =
                found.iter().find(|entry| entry.address == ip).unwrap_or_else(|| panic!("{address}: {found:?}"));
            assert_eq!((&*entry.interface, entry.prefix, entry.scope), (interface, prefix, scope), "{address}");
        }
    });
}

#[test]
fn changes_are_told_and_quiet_is_quiet() {
    isolated("changes_are_told_and_quiet_is_quiet", || {
        block_on(async {
            let mut watcher = Watcher::open(None).unwrap();
            assert!(!is_told(watcher.changed()).await, "nothing happened yet");
            for change in [
                "ip addr add 192.0.2.1/32 dev lo",
                "ip addr del 192.0.2.1/32 dev lo",
                "ip -6 addr add fd00::1/128 dev lo",
                "ip link add one type veth peer name two",
                "ip link set one up",
                "ip link del one",
            ] {
                run(change);
                told(&mut watcher).await;
                // IPv6 follows a change of a link with notices of its own; they are no harm.
                while is_told(watcher.changed()).await {}
            }
        });
    });
}

/// Waits for a notice. The timer is only there so that a failure is not a hang.
async fn told(watcher: &mut Watcher) {
    let patience = async {
        Timer::after(Duration::from_secs(20)).await;
        panic!("no word of the change");
    };
    or(watcher.changed(), patience).await.unwrap();
}

/// Notices are queued before the program that made the change ends, so one look is enough.
async fn is_told(changed: impl Future<Output = std::io::Result<()>>) -> bool {
    poll_once(pin!(changed)).await.is_some()
}

#[test]
fn a_flood_of_changes_is_one_change() {
    isolated("a_flood_of_changes_is_one_change", || {
        block_on(async {
            let mut watcher = Watcher::open(None).unwrap();
            run(
                "for i in $(seq 1 4); do for j in $(seq 1 250); do echo addr add 10.0.$i.$j/32 dev lo; done; done | ip -batch -",
            );
            run("ip addr flush dev lo scope global");
            told(&mut watcher).await;
            assert!(!is_told(watcher.changed()).await, "all notices were taken");
            run("ip addr add 192.0.2.1/32 dev lo");
            told(&mut watcher).await;
        });
    });
}

#[test]
fn a_device_that_is_one_s_own_is_not_told_of() {
    isolated("a_device_that_is_one_s_own_is_not_told_of", || {
        block_on(async {
            // The other ends are elsewhere, so that nothing happens here but to these.
            run("mkdir -p /run/netns && ip netns add far");
            for exists_before in [false, true] {
                let mut watcher = Watcher::open(Some("own")).unwrap();
                if !exists_before {
                    run("ip link add own type veth peer name far1 netns far");
                }
                run("ip addr add 10.96.0.1/32 dev own && ip -6 addr add fd00:96::1/128 dev own nodad");
                run("ip addr flush dev own");
                assert!(!is_told(watcher.changed()).await, "exists before: {exists_before}");
                // Another of that name has another index.
                run("ip link del own && ip link add own type veth peer name far1 netns far");
                run("ip addr add 10.96.0.1/32 dev own");
                assert!(!is_told(watcher.changed()).await, "made anew");
                run("ip addr add 192.0.2.1/32 dev lo");
                told(&mut watcher).await;
                run("ip addr del 192.0.2.1/32 dev lo && ip addr flush dev own");
                told(&mut watcher).await;
            }
        });
    });
}
