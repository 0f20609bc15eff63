//! `dotgraft-e2e`: end-to-end tests, the demo and a cluster to play with, each in a sandbox that leaves nothing behind.

use std::path::Path;
use std::process::ExitCode;

use anyhow::{Context as _, Result};
use clap::{Parser, Subcommand};
use dotgraft_e2e::cases;
use dotgraft_e2e::data::sqlite;
use dotgraft_e2e::demo;
use dotgraft_e2e::harness::runner::{self, Plan};
use dotgraft_e2e::rig::{Options, Rig};
use dotgraft_e2e::sandbox;

#[derive(Parser)]
#[command(name = "dotgraft-e2e", about = "End-to-end tests, demo and cluster of Dotgraft. Needs root.")]
struct Cli {
    #[command(subcommand)]
    command: Verb,
}

#[derive(Subcommand)]
enum Verb {
    /// Run the end-to-end tests.
    Test {
        /// Only cases whose id starts with one of these.
        filters: Vec<String>,
        /// Without operator and agents: cases that need them are reported as skipped.
        #[arg(long)]
        control_plane_only: bool,
        /// Only list the cases.
        #[arg(long)]
        list: bool,
    },
    /// Show the life of a Dot; KEEP=1 leaves everything running.
    Demo,
    /// Start control plane, operator and two agents, and leave them running.
    Cluster {
        /// Without operator and agents.
        #[arg(long)]
        control_plane_only: bool,
    },
    /// End what `cluster` or `KEEP=1 demo` left running.
    Down,
    /// For e2e/selftest.sh: a control plane, a btrfs on a loop device and an open file; then wait for the end.
    #[command(hide = true)]
    Hold,
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
    match args {
        [role, dir, rest @ ..] if role == "guard" => runtime(1)?.block_on(sandbox::guard(Path::new(dir), rest)),
        [role, database, notes] if role == "sqlite-writer" => {
            sqlite::writer_main(Path::new(database), Path::new(notes)).map(|()| ExitCode::SUCCESS)
        }
        [role, rest @ ..] if role == "init" => sandbox::init(rest),
        _ => {
            let cli = Cli::parse();
            if matches!(cli.command, Verb::Down) {
                return sandbox::down();
            }
            if matches!(cli.command, Verb::Test { list: true, .. }) {
                for case in cases::all() {
                    println!("{:<40} {}", case.id, case.title);
                }
                return Ok(ExitCode::SUCCESS);
            }
            if sandbox::inside().is_none() {
                return runtime(1)?.block_on(sandbox::run(args));
            }
            runtime(2)?.block_on(work(cli.command))
        }
    }
}

fn runtime(threads: usize) -> Result<tokio::runtime::Runtime> {
    let mut builder = match threads {
        1 => tokio::runtime::Builder::new_current_thread(),
        _ => tokio::runtime::Builder::new_multi_thread(),
    };
    if threads > 1 {
        builder.worker_threads(threads);
    }
    builder.enable_all().build().context("starting the runtime")
}

async fn work(verb: Verb) -> Result<ExitCode> {
    match verb {
        Verb::Cluster { control_plane_only } => {
            let rig = Rig::up(Options { programs: !control_plane_only, ..Options::default() }).await?;
            println!("ready after {:.1} s", rig.seconds);
            stay(&rig).await
        }
        Verb::Test { filters, control_plane_only, .. } => {
            let ok = runner::run(cases::all(), &Plan { filters, control_plane_only }).await?;
            Ok(if ok { ExitCode::SUCCESS } else { ExitCode::FAILURE })
        }
        Verb::Demo => match demo::run(std::env::var_os("KEEP").is_some_and(|v| !v.is_empty() && v != "0")).await? {
            Some(rig) => stay(&rig).await,
            None => Ok(ExitCode::SUCCESS),
        },
        Verb::Hold => hold().await,
        Verb::Down => Ok(ExitCode::SUCCESS),
    }
}

/// Says how to use the cluster, lets the runner go and waits for `down`.
async fn stay(rig: &Rig) -> Result<ExitCode> {
    println!("\nThe cluster runs on. Use it:\n");
    println!("  export KUBECONFIG={}", rig.kube.kubeconfig().display());
    println!("  kubectl get nodes,dots -A\n");
    println!("Logs: {}\nEnd it: make down", rig.dir.join("logs").display());
    sandbox::keep()?;
    std::future::pending().await
}

/// Everything a sandbox may hold: processes, a loop device with a mount, an open file.
async fn hold() -> Result<ExitCode> {
    let rig = Rig::up(Options { programs: false, ..Options::default() }).await?;
    let (image, target) = (rig.dir.join("hold.img"), rig.dir.join("hold"));
    std::fs::create_dir(&target)?;
    std::fs::File::create(&image)?.set_len(256 << 20)?;
    let run = |program: &str, args: &[&std::ffi::OsStr]| -> Result<()> {
        let output = std::process::Command::new(program).args(args).output().with_context(|| format!("running {program}"))?;
        anyhow::ensure!(output.status.success(), "{program}: {}", String::from_utf8_lossy(&output.stderr));
        Ok(())
    };
    run("mkfs.btrfs", &["-q".as_ref(), image.as_os_str()])?;
    run("mount", &["-o".as_ref(), "loop".as_ref(), image.as_os_str(), target.as_os_str()])?;
    let _open = std::fs::File::create(target.join("file"))?;
    println!("holding {}", rig.dir.display());
    std::future::pending().await
}
