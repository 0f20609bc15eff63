//! `dotgraft-bench`: pushes of the sets of platform.md §4, side by side in one run with what users would take instead, on the
//! same two pools, all to durable. Prints a table; times of Dotgraft are those of the agents' reports.

mod contenders;
mod report;
mod sets;

use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;

use anyhow::{Context as _, Result};
use clap::Parser;
use dotgraft_rig::harness::test::Test;
use dotgraft_rig::rig::{Options, Rig};
use dotgraft_rig::sandbox;

use crate::contenders::Bench;
use crate::report::Table;
use crate::sets::Set;

/// Side-by-side benchmarks. Needs root.
#[derive(Debug, Parser)]
struct Args {
    /// Rounds; each measures every contender once, in turn.
    #[arg(long, default_value_t = 3)]
    rounds: usize,
    /// Only these sets, of A B C E.
    #[arg(long, value_delimiter = ',')]
    sets: Vec<String>,
    /// A twentieth of the data: to see that it works.
    #[arg(long)]
    quick: bool,
}

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    match dispatch(&args) {
        Ok(code) => code,
        Err(e) => {
            eprintln!("error: {e:#}");
            ExitCode::FAILURE
        }
    }
}

/// The sandbox's own roles first, then what people call.
fn dispatch(args: &[String]) -> Result<ExitCode> {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().context("starting the runtime")?;
    match args {
        [role, dir, rest @ ..] if role == "guard" => runtime.block_on(sandbox::guard(Path::new(dir), rest)),
        [role, rest @ ..] if role == "init" => sandbox::init(rest),
        _ => {
            let parsed = Args::parse();
            if sandbox::inside().is_none() {
                return runtime.block_on(sandbox::start(args));
            }
            runtime.block_on(measure(&parsed))?;
            Ok(ExitCode::SUCCESS)
        }
    }
}

async fn measure(args: &Args) -> Result<()> {
    println!("Starting the control plane and two agents with pools of 12 GiB.");
    let rig = Arc::new(Rig::up(Options { pool_size: "12Gi".into(), ..Options::default() }).await?);
    let test = Test::begin(rig.clone(), "bench").await?;
    let bench = Bench::new(&rig, &test)?;
    let scale = if args.quick { 20 } else { 1 };
    let mut table = Table::default();
    for set in Set::all() {
        if !args.sets.is_empty() && !args.sets.iter().any(|s| s == set.name()) {
            continue;
        }
        for round in 1..=args.rounds {
            for cold in [true, false] {
                println!("set {}, round {round} of {}, {}", set.name(), args.rounds, if cold { "cold" } else { "warm" });
                for (contender, seconds) in bench.round(set, scale, round, cold).await? {
                    println!("    {contender:<22} {seconds:8.3} s");
                    table.add(set.name(), cold, contender, seconds);
                }
            }
        }
    }
    println!("\n{}", table.text());
    println!("{}", bench.idle_and_commits().await?);
    Ok(())
}
