//! What others see of the program: metrics, health, its state for systemd, its log.
//!
//! Looks on: whoever does the work tells it, and it never stands in the way. Nothing here waits for a client, and no
//! client is waited for.

pub mod exposition;
pub mod health;
pub mod http;
pub mod log;
pub mod metrics;
pub mod pages;
pub mod scrape;
pub mod service_health;
pub mod systemd;
pub mod time;
