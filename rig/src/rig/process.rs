//! The rig's programs as child processes, by name: start, kill, pause, restart, logs. Knows nothing of what they are.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::os::unix::process::ExitStatusExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use rustix::process::{Pid, Signal};

use super::machine::Machine;
use crate::sandbox::child_of;

/// Longest from nsenter to what it starts.
const STARTS: Duration = Duration::from_secs(30);
/// Longest that a pause is waited for.
const STOPS: Duration = Duration::from_secs(2);
/// Longest that a program may take to end; the kernel finishes what it does for it first, also on a busy disk.
pub const ENDS: Duration = Duration::from_secs(60);

/// How much garbage programs written in Go let grow before they collect it, in percent of what lives: a rig lives for minutes, and collecting takes a
/// quarter of its API server's time.
const GARBAGE: &str = "400";

/// How to start one program; kept, so that it can be started again as it was.
#[derive(Clone)]
pub struct Spec {
    /// What faults and logs call it: `apiserver`, `n1`, `operator`.
    pub name: String,
    /// The executable.
    pub program: PathBuf,
    /// Its arguments.
    pub args: Vec<String>,
    /// Environment on top of the rig's own.
    pub env: BTreeMap<String, String>,
    /// Where it runs; `None`: beside this program.
    pub machine: Option<Arc<Machine>>,
}

impl Spec {
    /// A spec without extra environment.
    pub fn new(name: &str, program: &Path, args: Vec<String>) -> Self {
        Self { name: name.into(), program: program.into(), args, env: BTreeMap::new(), machine: None }
    }

    /// The same, to run on a machine, if there is one.
    #[must_use]
    pub fn on(mut self, machine: Option<&Arc<Machine>>) -> Self {
        self.machine = machine.cloned();
        self
    }
}

struct Entry {
    spec: Spec,
    /// As it was started first: what [`Processes::restore`] goes back to.
    original: Spec,
    child: Option<Child>,
}

/// All programs of one rig. Dropping it kills them.
pub struct Processes {
    logs: PathBuf,
    entries: Mutex<BTreeMap<String, Entry>>,
}

impl Processes {
    /// Programs whose output goes to `<logs>/<name>.log`.
    pub fn new(logs: &Path) -> Result<Self> {
        fs::create_dir_all(logs)?;
        Ok(Self { logs: logs.into(), entries: Mutex::default() })
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<String, Entry>> {
        self.entries.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn with<T>(&self, name: &str, f: impl FnOnce(&mut Entry) -> Result<T>) -> Result<T> {
        let mut entries = self.lock();
        let known = entries.keys().cloned().collect::<Vec<_>>().join(", ");
        f(entries.get_mut(name).with_context(|| format!("no program is called {name}; there are {known}"))?)
    }

    /// Starts a program that isn't running under that name yet.
    pub fn start(&self, spec: Spec) -> Result<()> {
        let name = spec.name.clone();
        let mut entries = self.lock();
        if entries.get_mut(&name).is_some_and(|e| alive(&mut e.child)) {
            bail!("{name} is running already");
        }
        let child = self.spawn(&spec)?;
        let original = entries.get(&name).map_or_else(|| spec.clone(), |e| e.original.clone());
        entries.insert(name, Entry { spec, original, child: Some(child) });
        Ok(())
    }

    fn spawn(&self, spec: &Spec) -> Result<Child> {
        let log = File::options().create(true).append(true).open(self.log(&spec.name))?;
        let mut command = match &spec.machine {
            Some(machine) => machine.enter(&spec.program)?,
            None => Command::new(&spec.program),
        };
        command
            .args(&spec.args)
            .env("GOGC", GARBAGE)
            .envs(&spec.env)
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .spawn()
            .with_context(|| format!("starting {} ({})", spec.name, spec.program.display()))
    }

    /// Starts a stopped program again, as it was started last.
    pub fn start_again(&self, name: &str) -> Result<()> {
        let spec = self.with(name, |e| Ok(e.spec.clone()))?;
        self.start(spec)
    }

    /// Starts the same program with the same arguments a second time, as `<name>-twin`.
    pub fn start_twin(&self, name: &str) -> Result<String> {
        let mut spec = self.with(name, |e| Ok(e.spec.clone()))?;
        spec.name = format!("{name}-twin");
        let twin = spec.name.clone();
        self.start(spec)?;
        Ok(twin)
    }

    /// Sets (or with `None` removes) a variable for the next start.
    pub fn set_env(&self, name: &str, key: &str, value: Option<&str>) -> Result<()> {
        self.with(name, |e| {
            match value {
                Some(value) => e.spec.env.insert(key.into(), value.into()),
                None => e.spec.env.remove(key),
            };
            Ok(())
        })
    }

    /// Takes another file as the program from the next start on: another version of it.
    pub fn set_program(&self, name: &str, program: &Path) -> Result<()> {
        self.with(name, |e| {
            program.clone_into(&mut e.spec.program);
            Ok(())
        })
    }

    /// Goes back to the program, environment and arguments of the first start. `true`: they were others.
    pub fn restore(&self, name: &str) -> Result<bool> {
        self.with(name, |e| {
            let changed = e.spec.env != e.original.env || e.spec.args != e.original.args || e.spec.program != e.original.program;
            e.spec = e.original.clone();
            Ok(changed)
        })
    }

    /// Replaces the arguments for the next start.
    pub fn set_args(&self, name: &str, args: Vec<String>) -> Result<()> {
        self.with(name, |e| {
            e.spec.args = args;
            Ok(())
        })
    }

    /// The arguments of the last start.
    pub fn args(&self, name: &str) -> Result<Vec<String>> {
        self.with(name, |e| Ok(e.spec.args.clone()))
    }

    /// Sends a signal; an error if it isn't running.
    pub fn signal(&self, name: &str, signal: Signal) -> Result<()> {
        let pid = self.pid(name)?;
        rustix::process::kill_process(pid, signal).with_context(|| format!("signalling {name}"))?;
        if signal == Signal::STOP {
            until_stopped(pid);
        }
        if signal == Signal::CONT || signal == Signal::KILL {
            // On a machine nsenter stops along with what it started, and then can't see that it has ended. It may be gone already.
            if let Ok(outer) = self.with(name, |e| own_pid(e, name)) {
                let _ = rustix::process::kill_process(outer, Signal::CONT);
            }
        }
        Ok(())
    }

    /// Kills what is paused on a machine: the machine could not be turned off while nobody takes note of its end.
    pub fn kill_paused(&self, machine: &Machine) {
        for name in self.names() {
            let here = self.machine(&name).ok().flatten().is_some_and(|m| m.name() == machine.name());
            let outer = self.with(&name, |e| own_pid(e, &name)).ok();
            if here && outer.is_some_and(is_stopped) {
                let _ = self.signal(&name, Signal::KILL);
            }
        }
    }

    /// The pid, as seen inside the sandbox.
    pub fn pid(&self, name: &str) -> Result<Pid> {
        let (pid, on_machine) = self.with(name, |e| Ok((own_pid(e, name)?, e.spec.machine.is_some())))?;
        if !on_machine {
            return Ok(pid);
        }
        let until = Instant::now() + STARTS;
        loop {
            match child_of(pid.as_raw_nonzero().get().cast_unsigned()) {
                Some(inner) => return Ok(inner),
                None if Instant::now() > until => bail!("{name} was not started on its machine within {STARTS:?}"),
                None => std::thread::sleep(Duration::from_millis(2)),
            }
        }
    }

    /// The machine a program runs on.
    pub fn machine(&self, name: &str) -> Result<Option<Arc<Machine>>> {
        self.with(name, |e| Ok(e.spec.machine.clone()))
    }

    /// Whether it runs now (a paused program runs).
    pub fn running(&self, name: &str) -> bool {
        self.with(name, |e| Ok(alive(&mut e.child))).unwrap_or(false)
    }

    /// The names of all programs ever started and not forgotten.
    pub fn names(&self) -> Vec<String> {
        self.lock().keys().cloned().collect()
    }

    /// `kill -9`, and waits until it is gone.
    pub fn kill9(&self, name: &str) -> Result<()> {
        self.end(name, Signal::KILL, ENDS).map(|_| ())
    }

    /// Ends it politely (SIGTERM), and by SIGKILL after `patience`. Returns how it ended.
    pub fn end(&self, name: &str, signal: Signal, patience: Duration) -> Result<ExitStatus> {
        self.signal(name, signal)?;
        let until = Instant::now() + patience;
        loop {
            if let Some(status) = self.exited(name)? {
                return Ok(status);
            }
            if Instant::now() > until {
                self.signal(name, Signal::KILL)?;
                bail!("{name} did not end within {patience:?} of {signal:?}; it was killed");
            }
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// How it ended, or `None` while it runs.
    pub fn exited(&self, name: &str) -> Result<Option<ExitStatus>> {
        self.with(name, |e| match &mut e.child {
            Some(child) => Ok(child.try_wait()?),
            None => Ok(Some(ExitStatus::from_raw(0))),
        })
    }

    /// Ends it if it runs and drops it from the list.
    pub fn forget(&self, name: &str) -> Result<()> {
        if self.running(name) {
            self.kill9(name)?;
        }
        self.lock().remove(name);
        Ok(())
    }

    /// The log file of a program.
    pub fn log(&self, name: &str) -> PathBuf {
        self.logs.join(format!("{name}.log"))
    }

    /// The last `lines` lines of a log; at most the last 64 KiB.
    pub fn tail(&self, name: &str, lines: usize) -> String {
        let Ok(bytes) = fs::read(self.log(name)) else { return String::new() };
        let text = String::from_utf8_lossy(bytes.get(bytes.len().saturating_sub(64 << 10)..).unwrap_or_default()).into_owned();
        let all: Vec<&str> = text.lines().collect();
        all.get(all.len().saturating_sub(lines)..).unwrap_or_default().join("\n")
    }
}

/// The pid of the child itself: on a machine that is nsenter.
fn own_pid(entry: &mut Entry, name: &str) -> Result<Pid> {
    if !alive(&mut entry.child) {
        bail!("{name} isn't running");
    }
    let id = entry.child.as_ref().map(Child::id).and_then(|id| i32::try_from(id).ok());
    id.and_then(Pid::from_raw).with_context(|| format!("{name} has no pid"))
}

fn is_stopped(pid: Pid) -> bool {
    stands(Path::new(&format!("/proc/{}/stat", pid.as_raw_nonzero())))
}

fn stands(stat: &Path) -> bool {
    let stat = fs::read_to_string(stat).unwrap_or_default();
    stat.rsplit_once(") ").is_some_and(|(_, rest)| rest.starts_with('T'))
}

/// A thread that runs on another processor stops a moment after the signal was sent, and could still answer somebody. One that waits for a
/// disk stops later; it answers nobody meanwhile.
fn until_stopped(pid: Pid) {
    let (tasks, until) = (format!("/proc/{}/task", pid.as_raw_nonzero()), Instant::now() + STOPS);
    let all = || fs::read_dir(&tasks).is_ok_and(|list| list.flatten().all(|task| stands(&task.path().join("stat"))));
    while !all() && Instant::now() < until {
        std::thread::sleep(Duration::from_millis(1));
    }
}

fn alive(child: &mut Option<Child>) -> bool {
    child.as_mut().is_some_and(|c| matches!(c.try_wait(), Ok(None)))
}

impl Drop for Processes {
    fn drop(&mut self) {
        for entry in self.lock().values_mut() {
            if let Some(child) = &mut entry.child {
                let _ = child.kill();
                let _ = child.wait();
            }
        }
    }
}
