//! The rig (a real control plane, operator and agents in one sandbox), the tests on it and the demo.
#![allow(clippy::disallowed_methods, clippy::disallowed_types)] // clock, files and processes are this crate's job

pub mod cases;
pub mod cgroups;
pub mod conformance;
pub mod data;
pub mod demo;
pub mod harness;
pub mod local;
pub mod rig;
pub mod sandbox;
