//! The only place with netlink, socket options, `/proc` and other doors to the kernel. Knows no Kubernetes.

pub mod conntrack;
pub mod dummy;
pub mod genl;
pub mod ipset;
pub mod ipvs;
pub mod links;
pub mod listen;
pub mod namespaces;
pub mod netlink;
pub mod nfacct;
pub mod nftables;
pub mod nftchains;
pub mod nftevents;
pub mod nftrule;
pub mod nftwords;
pub mod process;
pub mod sysctl;
pub mod veth;
pub mod xtables;
