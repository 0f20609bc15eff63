//! The rig: a real control plane, operator and agents in one sandbox ([`rig`]), what is put into volumes and compared ([`data`]), and how a
//! test or a benchmark is written with them ([`harness`]). It knows no case.
#![allow(clippy::disallowed_methods, clippy::disallowed_types)] // clock, files and processes are this crate's job

pub mod cgroups;
pub mod data;
pub mod harness;
pub mod local;
pub mod rig;
pub mod sandbox;
