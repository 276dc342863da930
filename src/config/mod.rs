//! Configuration: flags and file become one checked [`Config`].
//!
//! The way of a value: [`flags`] and [`raw`] hold what was written, `defaults` completes it, `overrides` lets flags
//! speak, `check` turns it into types that cannot be wrong, and `load` leads it along. Must never touch the kernel or
//! the network.

mod address;
pub mod arguments;
mod check;
mod checked;
mod defaults;
mod duration;
mod families;
pub mod flags;
mod flagz;
mod gates;
mod load;
mod logging;
mod overrides;
mod places;
pub mod raw;
mod read;
mod refusals;
#[cfg(test)]
mod tests;
mod write;

pub use checked::{Config, Conntrack, DetectLocal, Ipvs, LogFormat, Mode, NodePortAddresses};
pub use duration::GoDuration;
pub use gates::{Gate, Gates, Stage};
pub use load::{DEFAULT_FILE, Loaded, Options, Settled};
pub use write::{to_configz, to_yaml};
