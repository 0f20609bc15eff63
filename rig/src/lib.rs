//! The rig: a real control plane, operator and agents in one sandbox ([`rig`]), what is put into volumes and compared ([`data`]), and how a
//! test or a benchmark is written with them ([`harness`]). It knows no case.
#![allow(clippy::disallowed_methods, clippy::disallowed_types)] // clock, files and processes are this crate's job
#![allow(clippy::missing_errors_doc)] // whatever it is, the case ends with its text: nobody here goes by which error it was

pub mod cgroups;
pub mod data;
pub mod harness;
pub mod local;
pub mod rig;
pub mod sandbox;
