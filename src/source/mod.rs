//! Where objects come from.

pub mod auth;
pub mod decode;
mod tls;
