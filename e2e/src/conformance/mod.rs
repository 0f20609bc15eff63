//! `dotgraft-e2e conformance`: Kubernetes' own storage tests (External.Storage), as Kubernetes builds them, on three nodes of the rig.
//!
//! The driver file is `e2e/storage/driver.yaml`. All of it runs in the sandbox: whoever ends it, and however, nothing stays.

pub mod report;

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};

use self::report::Report;
use crate::rig::control_plane::Tools;
use crate::rig::{Options, Rig, source_root};

/// What the suite needs besides the rig's own tools; `e2e/tools.sh DIR storage-e2e` makes them.
const NEEDED: [&str; 4] = ["storage-e2e", "ginkgo", "image-agnhost", "image-e2e-busybox"];
/// Specs that can't run here, as a regular expression, and why: see [`report::excluded`].
const LEFT_OUT: &str = r"\[Disruptive\]|\[Feature:Windows\]|any volume data source|\[Feature:.*erformance";
/// Volumes per node. The spec that fills a node makes one pod for each; 500 of them are more than the machine has.
const LIMIT: &str = "25";
/// How often it says how far it is.
const PROGRESS: Duration = Duration::from_secs(30);

/// What to run, and how.
#[derive(Debug, Clone)]
pub struct Plan {
    /// Processes of ginkgo.
    pub procs: usize,
    /// Longest that the specs may take; what has not ended then is reported as not run.
    pub within: Duration,
    /// Which specs, a regular expression of ginkgo.
    pub focus: String,
    /// Where the report and the logs go.
    pub to: PathBuf,
}

/// Runs the suite and writes the report. `true`: no spec has failed, and it was not cut short.
///
/// # Errors
///
/// A tool is missing; the rig does not come up, or has not what the suite needs; ginkgo can't be started, or leaves no report. A spec that
/// fails is no error.
pub async fn run(plan: &Plan) -> Result<bool> {
    let tools = Tools::find(true)?;
    for needed in NEEDED {
        if !tools.path(needed).exists() {
            bail!("{needed} is missing in {}; build it once: e2e/tools.sh {} storage-e2e", tools.dir().display(), tools.dir().display());
        }
    }
    fs::create_dir_all(&plan.to).with_context(|| format!("creating {}", plan.to.display()))?;
    let rig = Rig::up(options()).await?;
    println!("three nodes, ready after {:.1} s", rig.seconds);
    prepare(&rig).await?;
    let start = Instant::now();
    let ended = suite(&rig, &tools, plan).await?;
    let report = Report::read(&plan.to.join("report.json"))?;
    let text = report.text(start.elapsed(), ended);
    fs::write(plan.to.join("report.md"), &text)?;
    println!("{text}\nAll of it: {}", plan.to.display());
    Ok(ended && report.failed().next().is_none())
}

fn options() -> Options {
    let env = |key: &str| BTreeMap::from([(key.to_owned(), LIMIT.to_owned())]);
    let mut all: BTreeMap<_, _> = (1..=3).map(|i| (format!("n{i}"), env("DOTGRAFT_MAX_VOLUMES_PER_NODE"))).collect();
    all.insert("operator".into(), env("DOTGRAFT_CSI_ATTACH_LIMIT"));
    let images = vec!["image-agnhost".to_owned(), "image-e2e-busybox".to_owned()];
    Options { env: all, images, pool_size: "3Gi".into(), ..Options::kubelets() }
}

/// The classes that the driver file names, but for the one that is there already.
async fn prepare(rig: &Rig) -> Result<()> {
    for file in ["deploy/snapshot/volumesnapshotclass.yaml", "e2e/storage/classes.yaml"] {
        rig.kube.kubectl(&["apply", "-f", &source_root().join(file).to_string_lossy()]).await?;
    }
    Ok(())
}

/// Runs ginkgo to its end. `false`: it was cut short.
async fn suite(rig: &Rig, tools: &Tools, plan: &Plan) -> Result<bool> {
    // ginkgo takes only programs of such a name for compiled tests.
    let test = rig.dir.join("storage.test");
    std::os::unix::fs::symlink(fs::canonicalize(tools.path("storage-e2e"))?, &test)?;
    let log = plan.to.join("ginkgo.log");
    let output = fs::File::create(&log)?;
    let mut ginkgo = tokio::process::Command::new(tools.path("ginkgo"));
    ginkgo
        .args([&format!("--procs={}", plan.procs), "--no-color", "--silence-skips", "--json-report=report.json"])
        .args([&format!("--timeout={}s", plan.within.as_secs()), "--poll-progress-after=5m"])
        .args([&format!("--focus={}", plan.focus), &format!("--skip={LEFT_OUT}")])
        .arg(format!("--output-dir={}", plan.to.display()))
        .arg(&test)
        .arg("--")
        .arg(format!("--storage.testdriver={}", source_root().join("e2e/storage/driver.yaml").display()))
        .arg(format!("--kubeconfig={}", rig.kube.kubeconfig().display()))
        .arg(format!("--kubectl-path={}", tools.path("kubectl").display()))
        .args(["--provider=skeleton", "--num-nodes=3"])
        .current_dir(&rig.dir)
        .stdin(Stdio::null())
        .stdout(output.try_clone()?)
        .stderr(output)
        .kill_on_drop(true);
    let mut child = ginkgo.spawn().context("starting ginkgo")?;
    let start = Instant::now();
    // ginkgo ends itself by its own limit; if even that hangs, it is ended here and there is no report.
    let hard = plan.within + Duration::from_secs(300);
    loop {
        match tokio::time::timeout(PROGRESS, child.wait()).await {
            Ok(status) => {
                let _ = status.context("waiting for ginkgo")?;
                return Ok(start.elapsed() < plan.within);
            }
            Err(_) if start.elapsed() > hard => bail!("ginkgo did not end {} s after its own limit; its log: {}", 300, log.display()),
            Err(_) => println!("{:>5} s  {}", start.elapsed().as_secs(), progress(&log)),
        }
    }
}

/// What ginkgo's log says of how far it is.
fn progress(log: &Path) -> String {
    let text = fs::read_to_string(log).unwrap_or_default();
    // A bullet for each spec that ran; a failed one's is followed by its name.
    let (ran, failed) = (text.matches('•').count(), text.matches("• [FAILED]").count() + text.matches("• [TIMEDOUT]").count());
    format!("{ran} specs have run, {failed} of them failed")
}
