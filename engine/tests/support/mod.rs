//! Simulated nodes, one to three: model disk, journal, API server and wire around the machine that node-agent's actor is
//! ([`dotgraft_engine::step`]). One seed is one run.
//!
//! - `rng`: dice                       - `disk`: what survives a crash
//! - `sim`: clocks, queue, nodes       - `actor`: the machine, its lives
//! - `api`: the API server, and calls to it that come late or not at all
//! - `work`: tasks, step by step       - `wire`: transfers
//! - `watch`, `writes`: what must hold always, and in the end
//! - `moves`: authority goes from node to node
//! - `user`: what people, the operator and fate do
//! - `hazards`: what the world may do to us
//! - `schedules`: directed ones, a fault each
// Each test file uses a part; what can't be otherwise in a test's model may panic.
#![allow(dead_code, unused_imports, missing_docs, clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::struct_excessive_bools)]
#![allow(clippy::option_option, clippy::unused_self, clippy::needless_pass_by_value)] // the model says it as the agent does

pub mod actor;
pub mod api;
pub mod disk;
pub mod hazards;
pub mod moves;
pub mod rng;
pub mod schedules;
pub mod sim;
pub mod user;
pub mod watch;
pub mod wire;
pub mod work;
pub mod writes;

pub use sim::{Sim, Two};

/// How many seeds to run: `DOTGRAFT_SIM_SEEDS`, else `default`.
pub fn seeds(default: u64) -> u64 {
    std::env::var("DOTGRAFT_SIM_SEEDS").ok().and_then(|v| v.parse().ok()).unwrap_or(default)
}

/// Where to begin: `DOTGRAFT_SIM_FIRST`, to look at one seed alone.
pub fn first() -> u64 {
    std::env::var("DOTGRAFT_SIM_FIRST").ok().and_then(|v| v.parse().ok()).unwrap_or(0)
}

/// Runs each seed; a failure names its seed and shows the end of its trace (`DOTGRAFT_SIM_TRACE` lines).
pub fn run_seeds(name: &str, default: u64, saved: &[u64], run: impl Fn(u64, &mut Vec<String>) + std::panic::RefUnwindSafe) {
    let all = saved.iter().copied().chain(first()..first() + seeds(default));
    for seed in all {
        let mut trace = Vec::new();
        let result = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| run(seed, &mut trace)));
        if let Err(panic) = result {
            let lines = std::env::var("DOTGRAFT_SIM_TRACE").ok().and_then(|v| v.parse().ok()).unwrap_or(90);
            let tail = trace.len().saturating_sub(lines);
            for line in trace.iter().skip(tail) {
                eprintln!("{line}");
            }
            eprintln!("{name}: seed {seed} (DOTGRAFT_SIM_FIRST={seed} DOTGRAFT_SIM_SEEDS=1 runs it alone)");
            std::panic::resume_unwind(panic);
        }
    }
}
