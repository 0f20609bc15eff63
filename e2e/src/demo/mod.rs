//! The demo: the life of a Dot on a real API server with two agents, with real data in it. Each step shows its command.

mod show;
mod steps;

use std::path::PathBuf;
use std::time::Instant;

use anyhow::Result;

use self::show::Show;
use crate::rig::{Options, Rig};

/// The most files, directories and links that are copied in.
const ENTRIES: usize = 30_000;

/// What the steps hand on to each other.
struct Demo {
    rig: Rig,
    show: Show,
    /// Where the demo mounts and keeps its notes.
    dir: PathBuf,
}

/// Runs the demo on a rig of its own; gives the rig back when it is to be kept.
///
/// # Errors
///
/// The rig does not come up, or a step shows something else than it should; what the rig says of itself is printed by then.
pub async fn run(keep: bool) -> Result<Option<Rig>> {
    let start = Instant::now();
    println!("Starting etcd, kube-apiserver, kube-controller-manager, the operator and two agents with a pool each.");
    let rig = Rig::up(Options::default()).await?;
    let dir = rig.dir.join("demo");
    std::fs::create_dir_all(&dir)?;
    let mut show = Show::new(&rig.kube);
    show.timing("control plane, operator and agents ready", rig.seconds);
    let mut demo = Demo { rig, show, dir };
    match demo.steps(keep).await {
        Ok(describe) => {
            println!("\n{describe}");
            demo.show.timing("the whole demo", start.elapsed().as_secs_f64());
            demo.show.table();
        }
        Err(e) => {
            println!("\n{}", demo.rig.diagnosis(25).await);
            return Err(e);
        }
    }
    Ok(keep.then_some(demo.rig))
}
