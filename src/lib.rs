//! kube-proxy: Kubernetes Services as kernel rules.
//!
//! There is one way through the house: `source` (where objects come from) → `model` (what the cluster says) →
//! `plan` (what this node must do) → a backend (`nftables`, `iptables`, `ipvs`: how the kernel is told) → `kernel`
//! (netlink, sockets, `/proc`). A module may use those that stand after it on that line, never those before it.
//! `agent` walks the line in a loop; `observe` looks on.

pub mod agent;
pub mod backend;
pub mod cli;
pub mod config;
pub mod demo;
pub mod doctor;
pub mod iptables;
pub mod ipvs;
pub mod kernel;
pub mod model;
pub mod nftables;
pub mod observe;
pub mod plan;
pub mod source;
