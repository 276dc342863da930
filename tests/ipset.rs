//! Removing ipsets, read back with `ipset` in a private namespace.

mod support;

use kube_proxy::kernel::ipset::destroy;
use support::netns::{isolated, run};

#[test]
fn a_set_in_use_is_named_and_keeps_no_other() {
    isolated("a_set_in_use_is_named_and_keeps_no_other", || {
        run("ipset create a hash:ip && ipset create b hash:ip && ipset create c hash:ip && ipset create mine hash:ip
             iptables -A INPUT -m set --match-set a src -j ACCEPT");
        let error = destroy(|name| name != "mine").unwrap_err().to_string();
        assert_eq!(error, "a is used by a rule");
        assert_eq!(run("ipset list -name | sort"), "a\nmine\n");
        run("iptables -F INPUT");
        destroy(|name| name != "mine").unwrap();
        assert_eq!(run("ipset list -name"), "mine\n");
    });
}
