//! The only place with netlink, socket options, `/proc` and other doors to the kernel. Knows no Kubernetes.

pub mod netlink;
pub mod nftables;
pub mod nftrule;
