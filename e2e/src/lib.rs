//! The end-to-end tests and the demo, on the rig of `dotgraft-rig`. Cases share [`steps`], never each other.
#![allow(clippy::disallowed_methods, clippy::disallowed_types)] // clock, files and processes are this crate's job

pub mod cases;
pub mod conformance;
pub mod demo;
mod steps;

pub use dotgraft_rig::{cgroups, data, harness, local, rig, sandbox};
