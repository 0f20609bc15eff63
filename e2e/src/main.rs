//! `dotgraft-e2e`: end-to-end tests, the demo and a cluster to play with, each in a sandbox that leaves nothing behind.

use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context as _, Result};
use clap::{Parser, Subcommand};
use dotgraft_e2e::cases;
use dotgraft_e2e::cgroups;
use dotgraft_e2e::conformance;
use dotgraft_e2e::data::{sqlite, synced};
use dotgraft_e2e::demo;
use dotgraft_e2e::harness::Needs;
use dotgraft_e2e::harness::runner::{self, Plan};
use dotgraft_e2e::rig::control_plane::Tools;
use dotgraft_e2e::rig::images;
use dotgraft_e2e::rig::machine::root;
use dotgraft_e2e::rig::wait::eventually;
use dotgraft_e2e::rig::{Options, Rig};
use dotgraft_e2e::rig::{door, helm};
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
        /// Only that part of the cases: all parts can run at the same time.
        #[arg(long)]
        part: Option<runner::Part>,
    },
    /// Show the life of a Dot; KEEP=1 leaves everything running.
    Demo,
    /// Start a cluster with operator and agents, and leave it running.
    Cluster {
        /// So many nodes that run pods. 0: two agents without kubelets.
        #[arg(long, default_value_t = 3)]
        nodes: usize,
        /// Without operator and agents.
        #[arg(long, conflicts_with = "chart")]
        control_plane_only: bool,
        /// With our images on the nodes and nothing of ours installed: for `helm install`.
        #[arg(long)]
        chart: bool,
    },
    /// Run Kubernetes' own storage tests; needs `e2e/tools.sh DIR storage-e2e`.
    Conformance {
        /// How many at once.
        #[arg(long, default_value_t = 6)]
        procs: usize,
        /// Longest that they may take, in minutes.
        #[arg(long, default_value_t = 60)]
        minutes: u64,
        /// Only specs whose name matches this regular expression.
        #[arg(long, default_value = "External.Storage")]
        focus: String,
        /// Directory for the report and the logs.
        #[arg(long, default_value = "conformance-report")]
        to: std::path::PathBuf,
    },
    /// End what `cluster` or `KEEP=1 demo` left running.
    Down,
    /// For e2e/selftest.sh: a control plane, a btrfs on a loop device and an open file; then wait for the end.
    #[command(hide = true)]
    Hold {
        /// And two nodes with pods, one of them frozen.
        #[arg(long)]
        kubelets: bool,
    },
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
        [role, file, notes] if role == "synced-writer" => {
            synced::writer_main(Path::new(file), Path::new(notes)).map(|()| ExitCode::SUCCESS)
        }
        [role, rest @ ..] if role == "init" => sandbox::init(rest),
        [role, name, dir, shared @ ..] if role == "machine" => root::main(name, Path::new(dir), shared),
        [role, group, program, rest @ ..] if role == "join" => {
            cgroups::join(group)?;
            Err(std::process::Command::new(program).args(rest).exec()).with_context(|| format!("running {program}"))
        }
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
                if needs_images(&cli.command) {
                    images::made(&Tools::find(true)?)?;
                }
                return runtime(1)?.block_on(sandbox::start(args));
            }
            runtime(2)?.block_on(work(cli.command))
        }
    }
}

/// Whether a cluster will start that runs our images: they are made outside of the sandbox, which has no way to Debian's packages.
fn needs_images(verb: &Verb) -> bool {
    match verb {
        Verb::Test { filters, control_plane_only: false, part, .. } => {
            cases::all().iter().any(|c| runner::takes(filters, *part, c) && matches!(&c.needs, Needs::Own(options) if options.chart))
        }
        Verb::Cluster { chart, .. } => *chart,
        _ => false,
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
        Verb::Cluster { nodes, control_plane_only, chart } => {
            let options = match nodes {
                0 if chart => anyhow::bail!("--chart needs nodes"),
                0 => Options::default(),
                agents => Options { agents, ..Options::kubelets() },
            };
            let rig = Rig::up(Options { programs: !control_plane_only && !chart, chart, ..options }).await?;
            println!("ready after {:.1} s", rig.seconds);
            stay(&rig).await
        }
        Verb::Test { filters, control_plane_only, part, .. } => {
            let ok = runner::run(cases::all(), &Plan { filters, control_plane_only, part }).await?;
            Ok(if ok { ExitCode::SUCCESS } else { ExitCode::FAILURE })
        }
        Verb::Conformance { procs, minutes, focus, to } => {
            let to = std::path::absolute(to)?;
            let plan = conformance::Plan { procs, within: Duration::from_secs(minutes * 60), focus, to };
            let ok = conformance::run(&plan).await?;
            Ok(if ok { ExitCode::SUCCESS } else { ExitCode::FAILURE })
        }
        Verb::Demo => match demo::run(std::env::var_os("KEEP").is_some_and(|v| !v.is_empty() && v != "0")).await? {
            Some(rig) => stay(&rig).await,
            None => Ok(ExitCode::SUCCESS),
        },
        Verb::Hold { kubelets } => hold(kubelets).await,
        Verb::Down => Ok(ExitCode::SUCCESS),
    }
}

/// Says how to use the cluster, lets the runner go and carries what comes through the door until `down`.
async fn stay(rig: &Rig) -> Result<ExitCode> {
    let (kubeconfig, carry) = door::open(rig)?;
    let tools = Tools::find(false)?;
    println!("\nThe cluster runs on. Use it:\n");
    println!("  export KUBECONFIG={}", kubeconfig.display());
    println!("  export PATH={}:{}:$PATH   # kubectl, helm; kubectl-dot", tools.dir().display(), rig.dir.join("programs").display());
    println!("  kubectl get nodes");
    if rig.has_programs() {
        println!("  kubectl get dots -A");
    }
    if rig.awaits_chart() {
        let settings = helm::VALUES.join(",");
        println!("  helm install {} {} -n {} --create-namespace --set {settings}", helm::RELEASE, helm::chart(), helm::NAMESPACE);
    }
    println!();
    let program = sandbox::program()?;
    for machine in &rig.machines {
        let (name, program) = (machine.name(), program.display());
        println!("  nsenter -t $(pgrep -f '^{program} machine {name} ') -a sh   # a shell on {name}");
    }
    println!("Logs: {}\nEnd it: make down", rig.dir.join("logs").display());
    sandbox::keep()?;
    carry.await?;
    Ok(ExitCode::FAILURE)
}

/// Everything a sandbox may hold: processes, a loop device with a mount, an open file.
async fn hold(kubelets: bool) -> Result<ExitCode> {
    let options = if kubelets { Options { agents: 2, ..Options::kubelets() } } else { Options::default() };
    let rig = Rig::up(Options { programs: false, ..options }).await?;
    if kubelets {
        hold_pods(&rig).await?;
    }
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

async fn hold_pods(rig: &Rig) -> Result<()> {
    for node in ["n1", "n2"] {
        let overrides = serde_json::json!({"spec": {"nodeName": node}}).to_string();
        let pod = ["run", node, "--image=busybox:1", "--image-pull-policy=Never", "--overrides", &overrides, "--", "sleep", "1000"];
        // The controller manager makes the namespace's ServiceAccount in its own time.
        eventually("the pod to be taken", Duration::from_secs(30), || rig.kube.kubectl(&pod)).await?;
    }
    rig.kube.kubectl(&["wait", "--for=condition=Ready", "pod", "--all", "--timeout=60s"]).await?;
    rig.machine("n1")?.freeze()
}
