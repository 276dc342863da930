//! What the integration tests share. Each test binary uses a part of it.
#![allow(dead_code, reason = "every test binary includes all of it and uses a part")]

pub mod apiserver;
pub mod certificates;
pub mod follower;
pub mod lab;
pub mod netns;
pub mod plans;
pub mod protobuf;
pub mod reader;
