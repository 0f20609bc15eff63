//! `kubectl dot`: what people do with Dots, in one command each. It speaks to the API server only, as the person who runs it.

mod accept;
mod branch;
mod client;
mod commit;
mod drain;
mod evict;
mod find;
mod log;
mod operation;
mod orphans;
mod output;
mod progress;
mod push;
mod relocate;
mod runbook;
mod status;
mod users;
mod wait;

use std::process::ExitCode;
use std::time::Duration;

use clap::{Args, Parser, Subcommand};

use output::Format;

/// Git for cluster volumes.
#[derive(Debug, Parser)]
#[command(name = "kubectl-dot", bin_name = "kubectl dot", version)]
struct Cli {
    #[command(flatten)]
    common: Common,
    #[command(subcommand)]
    command: Command,
}

/// Flags of every command.
#[derive(Debug, Args)]
pub struct Common {
    /// Namespace; by default that of the kubeconfig's context.
    #[arg(short, long, global = true)]
    namespace: Option<String>,
    /// Kubeconfig file; by default KUBECONFIG, then ~/.kube/config, then the pod's own account.
    #[arg(long, global = true)]
    kubeconfig: Option<std::path::PathBuf>,
    /// Context of the kubeconfig.
    #[arg(long, global = true)]
    context: Option<String>,
    /// json, yaml or wide; by default a table.
    #[arg(short, long, global = true, value_enum, default_value_t = Format::Table)]
    output: Format,
    /// Seconds to wait for the outcome; 0 returns at once.
    #[arg(long, global = true, default_value_t = 300)]
    timeout: u64,
}

impl Common {
    fn wait(&self) -> Option<Duration> {
        (self.timeout > 0).then(|| Duration::from_secs(self.timeout))
    }
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Take a commit of a Dot or Branch.
    Commit(commit::CommitArgs),
    /// List the commits of a Dot or Branch, newest first.
    Log(log::LogArgs),
    /// Start a Branch from a Dot's newest commit, or another.
    Branch(branch::BranchArgs),
    /// Push a Dot's commits to another node, and show how it goes.
    Push(push::PushArgs),
    /// Let another node own a Dot or Branch: its data goes there, and pods may follow.
    Move(relocate::MoveArgs),
    /// Take a Dot or Branch from an owner that is lost, and let another copy go on.
    Promote(relocate::PromoteArgs),
    /// Make a Dot or Branch what it was in a commit; what it held is kept as a Commit.
    Reset(operation::ResetArgs),
    /// Show Dots, Branches and jobs, and what needs attention.
    Status(status::StatusArgs),
    /// Take orphans back: data in a pool that no object asks for.
    Adopt(orphans::AdoptArgs),
    /// Delete an orphan's data for good, or a copy that isn't the owner's.
    Drop(orphans::DropArgs),
    /// Work on a whole node.
    Node(drain::NodeArgs),
    /// Accept the loss of what can't be proven, and let a Filesystem be opened again.
    Accept(accept::AcceptArgs),
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> ExitCode {
    match run(Cli::parse()).await {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            eprintln!("Error: {}", output::sentence(&e));
            ExitCode::FAILURE
        }
    }
}

async fn run(cli: Cli) -> anyhow::Result<()> {
    let client = client::connect(&cli.common).await?;
    match cli.command {
        Command::Commit(args) => commit::run(&client, &cli.common, args).await,
        Command::Log(args) => log::run(&client, &cli.common, &args).await,
        Command::Branch(args) => branch::run(&client, &cli.common, args).await,
        Command::Push(args) => push::run(&client, &cli.common, args).await,
        Command::Move(args) => relocate::relocate(&client, &cli.common, &args).await,
        Command::Promote(args) => relocate::promote(&client, &cli.common, args).await,
        Command::Reset(args) => operation::reset(&client, &cli.common, args).await,
        Command::Status(args) => status::run(&client, &cli.common, &args).await,
        Command::Adopt(args) => orphans::adopt(&client, &cli.common, &args).await,
        Command::Drop(args) => orphans::drop(&client, &cli.common, &args).await,
        Command::Node(args) => drain::run(&client, &cli.common, args).await,
        Command::Accept(args) => accept::run(&client, &cli.common, &args).await,
    }
}
