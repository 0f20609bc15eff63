//! The sandbox every rig runs in, so that nothing stays behind whatever happens.
//!
//! Three processes. The **runner** is what a person started; it only passes output on and waits. The **guard** is its
//! child in a session of its own; it owns the scratch directory, and ends everything as soon as the runner is gone
//! (its standard input ends) or asks for it. Under the guard, in a new pid, mount and network namespace, **init** starts
//! the real work and reaps orphans. When init dies, the kernel kills every process of the namespace and drops its mounts
//! and its network; the pools' loop devices, which are set to clear themselves, go with them; then the guard removes the
//! control groups, which have the sandbox's name, and the directory.
//! If the guard is killed the namespace dies with it (parent-death signal), and the runner removes the directory. Of
//! a machine that lost both at one instant only the directory remains; the next run removes it.
//!
//! A *kept* sandbox (`make cluster`, `KEEP=1 make demo`) outlives its runner until `dotgraft-e2e down`. Nothing outside
//! reaches its network, except through its [`door`]: a socket that listens on the machine's own loopback address.

use std::fs::{self, File};
use std::io::ErrorKind;
use std::net::{Ipv4Addr, TcpListener};
use std::os::fd::{AsFd as _, OwnedFd};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use rustix::process::{Pid, Signal};
use tokio::io::AsyncReadExt as _;
use tokio::signal::unix::{SignalKind, signal};

use crate::cgroups;
use crate::rig::command::run;

/// Names the scratch directory to what runs inside.
const INSIDE: &str = "DOTGRAFT_SANDBOX";
const PREFIX: &str = "dotgraft-rig-";
/// Held (flock) by the guard for its life: a directory whose lock is free belongs to nobody.
const LOCK: &str = "lock";
/// Exists once the work inside asked to be kept.
const KEPT: &str = "kept";
/// This program, copied or linked.
const PROGRAM: &str = "dotgraft-e2e";
/// Holds the guard's pid.
const GUARD: &str = "guard.pid";

/// The scratch directory, when this process runs inside a sandbox.
pub fn inside() -> Option<PathBuf> {
    std::env::var_os(INSIDE).map(PathBuf::from)
}

/// The name of the sandbox: its control groups have it.
pub fn name() -> Result<String> {
    Ok(name_of(&inside().context("not inside a sandbox")?))
}

/// This program, as the sandbox has it.
pub fn program() -> Result<PathBuf> {
    Ok(inside().context("not inside a sandbox")?.join(PROGRAM))
}

fn name_of(dir: &Path) -> String {
    dir.file_name().unwrap_or_default().to_string_lossy().into_owned()
}

/// The way in from outside: a socket that listens on a port of `127.0.0.1` of the host. The guard opens it and passes it
/// on as standard input, which needs neither a name nor a rule in the host's network.
pub fn door() -> Result<TcpListener> {
    inside().context("not inside a sandbox")?;
    let listener = TcpListener::from(std::io::stdin().as_fd().try_clone_to_owned()?);
    listener.local_addr().context("standard input is not the sandbox's door")?;
    Ok(listener)
}

/// Tells the runner to leave, and the guard to stay: the sandbox now ends by [`down`] only.
pub fn keep() -> Result<()> {
    let dir = inside().context("not inside a sandbox")?;
    fs::write(dir.join(KEPT), b"").context("marking the sandbox as kept")
}

fn base() -> PathBuf {
    std::env::var_os("DOTGRAFT_RIG_BASE").map_or_else(std::env::temp_dir, PathBuf::from)
}

/// Runs this program again with `args` inside a new sandbox and waits for it.
pub async fn start(args: &[String]) -> Result<ExitCode> {
    if !rustix::process::geteuid().is_root() {
        bail!("this needs root: it makes namespaces, loop devices and btrfs mounts. Run it by sudo or in a root shell.");
    }
    sweep()?;
    let dir = base().join(format!("{PREFIX}{}", &uuid::Uuid::new_v4().simple().to_string()[..8]));
    fs::create_dir(&dir).with_context(|| format!("creating {}", dir.display()))?;
    let mut guard = tokio::process::Command::new("/proc/self/exe")
        .arg("guard")
        .arg(&dir)
        .args(args)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .context("starting the guard")?;
    let alive = guard.stdin.take();
    let copies = copy_output(&mut guard);
    let mut int = signal(SignalKind::interrupt())?;
    let mut term = signal(SignalKind::terminate())?;
    let mut hup = signal(SignalKind::hangup())?;
    let mut interrupted = false;
    let kept = async {
        while !dir.join(KEPT).exists() {
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    };
    tokio::select! {
        _ = guard.wait() => {}
        () = kept => {
            tokio::time::sleep(Duration::from_millis(300)).await; // the last lines of output
            return Ok(ExitCode::SUCCESS);
        }
        _ = int.recv() => interrupted = true,
        _ = term.recv() => interrupted = true,
        _ = hup.recv() => interrupted = true,
    }
    drop(alive);
    let status = guard.wait().await?;
    let _ = tokio::time::timeout(Duration::from_secs(2), copies).await;
    remove(&dir)?;
    Ok(if interrupted { ExitCode::from(130) } else { exit_code(status.code()) })
}

fn exit_code(code: Option<i32>) -> ExitCode {
    ExitCode::from(code.and_then(|c| u8::try_from(c).ok()).unwrap_or(1))
}

fn copy_output(guard: &mut tokio::process::Child) -> tokio::task::JoinHandle<()> {
    let (out, err) = (guard.stdout.take(), guard.stderr.take());
    tokio::spawn(async move {
        let out = async {
            if let Some(mut out) = out {
                let _ = tokio::io::copy(&mut out, &mut tokio::io::stdout()).await;
            }
        };
        let err = async {
            if let Some(mut err) = err {
                let _ = tokio::io::copy(&mut err, &mut tokio::io::stderr()).await;
            }
        };
        tokio::join!(out, err);
    })
}

/// The guard's whole life. Must be called on the main thread: the parent-death signal belongs to a thread.
pub async fn guard(dir: &Path, args: &[String]) -> Result<ExitCode> {
    rustix::process::setsid().context("leaving the runner's session")?;
    let lock = File::create(dir.join(LOCK))?;
    lock.lock()?;
    fs::write(dir.join(GUARD), std::process::id().to_string())?;
    let program = dir.join(PROGRAM);
    copy_program(&std::env::current_exe()?, &program)?;
    let mut isolated = isolated(dir, &program, args);
    isolated.stdin(OwnedFd::from(TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).context("opening the sandbox's door")?));
    let mut namespace = tokio::process::Command::from(isolated).spawn().context("starting unshare and setpriv")?;
    let id = namespace.id();
    let mut int = signal(SignalKind::interrupt())?;
    let mut term = signal(SignalKind::terminate())?;
    let mut hup = signal(SignalKind::hangup())?;
    let runner_gone = async {
        let mut buffer = [0u8; 1];
        while matches!(tokio::io::stdin().read(&mut buffer).await, Ok(n) if n > 0) {}
        if dir.join(KEPT).exists() {
            std::future::pending::<()>().await;
        }
    };
    let ended = tokio::select! {
        status = namespace.wait() => Some(status?),
        () = runner_gone => None,
        _ = int.recv() => None,
        _ = term.recv() => None,
        _ = hup.recv() => None,
    };
    if ended.is_none() {
        end_namespace(id);
        cgroups::thaw(&name_of(dir))?; // a frozen process dies only when it may run
        namespace.wait().await?;
    }
    remove(dir)?;
    drop(lock);
    let code = exit_code(ended.and_then(|s| s.code()));
    // Tokio's reader of standard input may still be blocked: leave without waiting for it.
    std::process::exit(i32::from(code != ExitCode::SUCCESS) * ended.and_then(|s| s.code()).unwrap_or(1));
}

fn isolated(dir: &Path, program: &Path, args: &[String]) -> Command {
    let mut command = Command::new("setpriv");
    command
        .args(["--pdeathsig", "KILL", "unshare", "--mount", "--net", "--pid", "--fork", "--kill-child", "--mount-proc"])
        .arg(program)
        .arg("init")
        .args(args)
        .env(INSIDE, dir);
    command
}

/// A link where the file system allows, so that a build that replaces the program meanwhile changes nothing here.
pub fn copy_program(from: &Path, to: &Path) -> Result<()> {
    let _ = fs::remove_file(to);
    if fs::hard_link(from, to).is_err() {
        fs::copy(from, to).with_context(|| format!("copying {}", from.display()))?;
    }
    Ok(())
}

/// Kills init (the child of `unshare`), and so everything in the namespace; `unshare` returns when all are dead.
fn end_namespace(unshare: Option<u32>) {
    let Some(parent) = unshare else { return };
    if let Some(pid) = child_of(parent) {
        let _ = rustix::process::kill_process(pid, Signal::KILL);
    } else if let Some(pid) = i32::try_from(parent).ok().and_then(Pid::from_raw) {
        let _ = rustix::process::kill_process(pid, Signal::KILL);
    }
}

/// A child of a process.
pub fn child_of(parent: u32) -> Option<Pid> {
    fs::read_dir("/proc").into_iter().flatten().flatten().find_map(|entry| {
        let pid: i32 = entry.file_name().to_str()?.parse().ok()?;
        if parent_of(pid)? == parent { Pid::from_raw(pid) } else { None }
    })
}

fn parent_of(pid: i32) -> Option<u32> {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    status.lines().find_map(|line| line.strip_prefix("PPid:")).and_then(|v| v.trim().parse().ok())
}

/// Process 1 of the namespace: starts the work, reaps orphans, ends with the work's exit code.
pub fn init(args: &[String]) -> Result<ExitCode> {
    run("ip", &["link", "set", "lo", "up"])?;
    let work = Command::new("/proc/self/exe").args(args).process_group(0).spawn().context("starting the work")?;
    let work = i32::try_from(work.id())?;
    loop {
        let Some((pid, status)) = rustix::process::wait(rustix::process::WaitOptions::empty())? else { continue };
        if pid.as_raw_nonzero().get() == work {
            return Ok(exit_code(status.exit_status()));
        }
    }
}

/// Removes the sandbox's control groups, and `dir` once no loop device has a file of it any more (10 s at most:
/// unmounting goes on behind a dead namespace).
fn remove(dir: &Path) -> Result<()> {
    cgroups::remove(&name_of(dir))?;
    let until = Instant::now() + Duration::from_secs(10);
    while loops_on(dir) && Instant::now() < until {
        std::thread::sleep(Duration::from_millis(50));
    }
    match fs::remove_dir_all(dir) {
        Err(e) if e.kind() != ErrorKind::NotFound => Err(e).with_context(|| format!("removing {}", dir.display())),
        _ => Ok(()),
    }
}

fn loops_on(dir: &Path) -> bool {
    fs::read_dir("/sys/block")
        .into_iter()
        .flatten()
        .flatten()
        .any(|entry| fs::read_to_string(entry.path().join("loop/backing_file")).is_ok_and(|file| Path::new(file.trim()).starts_with(dir)))
}

fn sandboxes() -> Result<Vec<PathBuf>> {
    let entries = fs::read_dir(base()).with_context(|| format!("listing {}", base().display()))?;
    Ok(entries.flatten().filter(|e| e.file_name().to_string_lossy().starts_with(PREFIX)).map(|e| e.path()).collect())
}

/// Removes directories whose guard is gone. One without a lock file yet is being made, unless it is a minute old.
fn sweep() -> Result<()> {
    for dir in sandboxes()? {
        let abandoned = match File::open(dir.join(LOCK)) {
            Ok(lock) => lock.try_lock().is_ok(),
            Err(_) => {
                fs::metadata(&dir).and_then(|m| m.modified()).is_ok_and(|t| t.elapsed().is_ok_and(|age| age > Duration::from_secs(60)))
            }
        };
        if abandoned {
            println!("removing {}, left by a run that was killed together with its guard", dir.display());
            remove(&dir)?;
        }
    }
    Ok(())
}

/// Ends every kept sandbox of this machine.
pub fn down() -> Result<ExitCode> {
    sweep()?;
    let kept: Vec<PathBuf> = sandboxes()?.into_iter().filter(|dir| dir.join(KEPT).exists()).collect();
    if kept.is_empty() {
        println!("no cluster is running");
    }
    for dir in kept {
        let pid: i32 = fs::read_to_string(dir.join(GUARD))?.trim().parse()?;
        let pid = Pid::from_raw(pid).context("the guard's pid file is damaged")?;
        rustix::process::kill_process(pid, Signal::TERM).context("asking the guard to end")?;
        let until = Instant::now() + Duration::from_secs(20);
        while dir.exists() {
            if Instant::now() > until {
                bail!("the guard (process {}) has not removed {} in 20 s", pid.as_raw_nonzero(), dir.display());
            }
            std::thread::sleep(Duration::from_millis(50));
        }
        println!("the cluster in {} is gone", dir.display());
    }
    Ok(ExitCode::SUCCESS)
}
