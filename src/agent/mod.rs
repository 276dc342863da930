//! The agent.

mod facts;
mod family;
