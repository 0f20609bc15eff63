//! A machine of the rig: what a node is made of, down to its first process. Namespaces of its own for processes, mounts,
//! network, host name, IPC and control groups; a root of its own ([`root`]); a cable to the rig's network ([`network`]).
//!
//! Its programs (containerd, kubelet, agent) are started by [`super::process`] through [`Machine::enter`] and know nothing
//! of all this. Faults: [`Machine::cut`], [`freeze`](Machine::freeze), [`refuse`](Machine::refuse), [`limit`](Machine::limit),
//! [`power_off`](Machine::power_off). Power off kills every process at one instant; what is in the page cache survives.

pub mod network;
pub mod node;
pub mod root;

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use rustix::process::{Pid, Signal};

use super::command;
use crate::cgroups;
use crate::sandbox::{child_of, program};

/// Where a machine stands in the world.
#[derive(Clone, Debug)]
pub struct Place {
    /// `n1`, `n2`, …: its host name and its Node.
    pub name: String,
    /// 1 for `n1`.
    pub index: u8,
    /// Its files; the same path inside and outside.
    pub dir: PathBuf,
    /// Its control group.
    pub group: String,
    /// Directories of the host it sees, read-only, at the same path.
    pub shared: Vec<PathBuf>,
}

/// A machine that is on or off.
pub struct Machine {
    /// Where it stands.
    pub place: Place,
    running: Mutex<Option<Running>>,
}

struct Running {
    unshare: Child,
    init: Pid,
}

impl Machine {
    /// A machine that is off.
    pub fn new(place: Place) -> Self {
        Self { place, running: Mutex::default() }
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.place.name
    }

    /// Its address in the rig's network.
    pub fn address(&self) -> String {
        network::node_address(self.place.index)
    }

    fn lock(&self) -> MutexGuard<'_, Option<Running>> {
        self.running.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Its first process, as seen from the sandbox; an error if it is off.
    pub fn init(&self) -> Result<Pid> {
        self.lock().as_ref().map(|r| r.init).with_context(|| format!("{} is off", self.name()))
    }

    /// Whether it is on (a frozen machine is on).
    pub fn is_on(&self) -> bool {
        self.lock().is_some()
    }

    /// Turns it on: namespaces, root, network. No program runs in it yet.
    pub fn boot(&self) -> Result<()> {
        if self.is_on() {
            bail!("{} is on already", self.name());
        }
        cgroups::remove(&self.place.group)?;
        cgroups::create(&self.place.group)?;
        let ready = self.place.dir.join("ready");
        let _ = fs::remove_file(&ready);
        let log = File::options().create(true).append(true).open(self.place.dir.join("machine.log"))?;
        let mut unshare = Command::new("/proc/self/exe");
        unshare
            .args(["join", &self.place.group, "unshare", "--cgroup", "--mount", "--uts", "--ipc", "--net", "--pid"])
            .args(["--fork", "--kill-child", "--propagation", "private"])
            .arg(program()?)
            .args(["machine", self.name()])
            .arg(&self.place.dir)
            .args(&self.place.shared)
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log);
        let mut unshare = unshare.spawn().context("starting unshare")?;
        let until = Instant::now() + Duration::from_secs(60);
        while !ready.exists() {
            if Instant::now() > until || unshare.try_wait()?.is_some() {
                let said = fs::read_to_string(self.place.dir.join("machine.log")).unwrap_or_default();
                let _ = unshare.kill();
                let _ = unshare.wait();
                bail!("machine {} did not come up: {}", self.name(), said.trim());
            }
            std::thread::sleep(Duration::from_millis(2));
        }
        let init = child_of(unshare.id()).with_context(|| format!("machine {} has no first process", self.name()))?;
        *self.lock() = Some(Running { unshare, init });
        network::connect(&self.place, init)
    }

    /// Cuts the power: every process of the machine is killed at once. Fine if it is off.
    pub fn power_off(&self) -> Result<()> {
        let Some(mut running) = self.lock().take() else { return Ok(()) };
        rustix::process::kill_process(running.init, Signal::KILL).context("killing the machine's first process")?;
        cgroups::thaw(&self.place.group)?; // a frozen process dies only when it may run
        running.unshare.wait()?;
        network::disconnect(&self.place)
    }

    /// A command that runs `program` inside, by its path there.
    pub fn enter(&self, program: &Path) -> Result<Command> {
        let mut command = Command::new("/proc/self/exe");
        let init = self.init()?.as_raw_nonzero().to_string();
        command.args(["join", &self.place.group, "nsenter", "-t", &init, "-m", "-u", "-i", "-n", "-p", "-C", "--"]).arg(program);
        Ok(command)
    }

    /// Runs a program inside to its end and returns its output.
    pub fn run(&self, program: &str, args: &[&str]) -> Result<String> {
        command::output(self.enter(Path::new(program))?.args(args), &format!("{program} {} on {}", args.join(" "), self.name()))
    }

    /// A path of the machine as the sandbox reaches it; valid until the machine is turned off.
    pub fn outside(&self, path: &Path) -> Result<PathBuf> {
        let root = PathBuf::from(format!("/proc/{}/root", self.init()?.as_raw_nonzero()));
        Ok(root.join(path.strip_prefix("/").unwrap_or(path)))
    }

    /// Pulls the cable: nobody reaches it, it reaches nobody.
    pub fn cut(&self) -> Result<()> {
        network::set_link(&self.place, false)
    }

    /// Plugs the cable in again.
    pub fn join(&self) -> Result<()> {
        network::set_link(&self.place, true)
    }

    /// It stops answering and keeps what it holds.
    pub fn freeze(&self) -> Result<()> {
        cgroups::freeze(&self.place.group, true)
    }

    /// It goes on as if nothing had been.
    pub fn thaw(&self) -> Result<()> {
        cgroups::freeze(&self.place.group, false)
    }

    /// It drops every packet that comes from `address`, and sends on: a partition in one direction.
    pub fn refuse(&self, address: &str) -> Result<()> {
        network::refuse(self, address)
    }

    /// Its link carries `rate` (`8mbit`) in each direction at most; `None`: as much as it can.
    pub fn limit(&self, rate: Option<&str>) -> Result<()> {
        network::limit(self, rate)
    }

    /// Undoes cut, freeze, refuse and limit of a machine that is on.
    pub fn heal(&self) -> Result<()> {
        self.thaw()?;
        self.join()?;
        network::heal(self)
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        let _ = self.power_off();
        let _ = cgroups::remove(&self.place.group);
    }
}
