//! Stage, publish, and their undoing. What is mounted is read from the kernel's mount table each time; every change is a message to the
//! Filesystem's owner. Each call may come again, at any time, after any crash (failures.md, row 16).
//!
//! Staging mounts the head, or a commit for a read-only handle: the mount is what pins it. Publishing mounts the same at the pod's path.
//!
//! A reset waits until nothing has the head mounted, and may keep new mounts back meanwhile. The kubelet doesn't unstage a volume that a
//! new pod wants, so a publish that is kept back takes the staging mount away itself; the one that succeeds makes it again.

use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError};
use std::time::{Duration, Instant};

use dotgraft_engine::filesystem::RoleStatus;
use dotgraft_engine::handle::VolumeHandle;
use dotgraft_engine::ids::FsId;
use dotgraft_engine::model::Reason;
use dotgraft_proto::csi::v1::{NodePublishVolumeRequest, NodeStageVolumeRequest, NodeUnpublishVolumeRequest, NodeUnstageVolumeRequest};
use tonic::Code;
use tracing::Instrument;

use super::place::{self, Found, Place};
use super::refusal::Refusal;
use super::volume::{self, Access};
use super::{Csi, fsgroup};
use crate::actor::FsHandle;
use crate::btrfs::mounts::{self, MountLine};
use crate::driver::{DriverError, MountMode, MountWhat};

/// How long a mount waits for an owner that is about to open authority.
const PATIENCE: Duration = Duration::from_secs(5);
const ASK_EVERY: Duration = Duration::from_millis(100);
/// Inode number of a subvolume's root directory.
const SUBVOLUME_ROOT: u64 = 256;

/// Runs an operation to its end, also if the caller goes away: its turn is over only when it is.
///
/// # Errors
///
/// That of `operation`; `INTERNAL` if it panicked.
pub async fn finish<T: Send + 'static>(operation: impl Future<Output = Result<T, Refusal>> + Send + 'static) -> Result<T, Refusal> {
    match tokio::spawn(operation.in_current_span()).await {
        Ok(result) => result,
        Err(e) => Err(Refusal::new(Code::Internal, format!("the operation died: {e}"))),
    }
}

/// A field that a request must have.
///
/// # Errors
///
/// `INVALID_ARGUMENT` if it is empty.
pub fn required(field: &str, value: &str) -> Result<(), Refusal> {
    if value.is_empty() { Err(Refusal::invalid(format!("{field} is missing"))) } else { Ok(()) }
}

impl Csi {
    /// `NodeStageVolume`.
    ///
    /// # Errors
    ///
    /// `ABORTED` while another call has its turn or a reset holds, `ALREADY_EXISTS` if something else is mounted there,
    /// `FAILED_PRECONDITION` if this node doesn't own it (how-csi-works.md).
    pub async fn stage(self: &Arc<Self>, r: NodeStageVolumeRequest) -> Result<(), Refusal> {
        required("volume_id", &r.volume_id)?;
        required("staging_target_path", &r.staging_target_path)?;
        if r.volume_capability.is_none() {
            return Err(Refusal::invalid("volume_capability is missing"));
        }
        let volume = volume::parse(&r.volume_id)?;
        let access = Access::check(volume, r.volume_capability.as_ref())?;
        let place = self.place("staging_target_path", r.staging_target_path).await?.ok_or_else(no_parent)?;
        let turn = self.inflight.begin(&r.volume_id, place.path())?;
        let me = self.clone();
        finish(async move {
            let _turn = turn;
            let handle = me.handle(volume.fs())?;
            let what = me.what_to_stage(volume, &handle, place.path()).await?;
            place.make()?;
            // The group comes with each pod, when it is published.
            me.mount_here(volume, what, &place, MountMode { read_only: volume.is_read_only(), ..access.mode }, None).await
        })
        .await
    }

    /// `NodePublishVolume`.
    ///
    /// # Errors
    ///
    /// `FAILED_PRECONDITION` if it is not staged, `ALREADY_EXISTS` if something else is mounted there, `ABORTED` as [`stage`](Self::stage).
    pub async fn publish(self: &Arc<Self>, r: NodePublishVolumeRequest) -> Result<(), Refusal> {
        required("volume_id", &r.volume_id)?;
        required("target_path", &r.target_path)?;
        if r.volume_capability.is_none() {
            return Err(Refusal::invalid("volume_capability is missing"));
        }
        if r.staging_target_path.is_empty() {
            return Err(Refusal::precondition("staging_target_path is missing: this driver stages volumes"));
        }
        let volume = volume::parse(&r.volume_id)?;
        let access = Access::check(volume, r.volume_capability.as_ref())?;
        let staging = self.place("staging_target_path", r.staging_target_path).await?;
        let place = self.place("target_path", r.target_path).await?.ok_or_else(no_parent)?;
        let turn = self.inflight.begin(&r.volume_id, place.path())?;
        let read_only = r.readonly || access.mode.read_only || volume.is_read_only();
        let me = self.clone();
        finish(async move {
            let _turn = turn;
            let handle = me.handle(volume.fs())?;
            let (what, staging) = me.staged(volume, &handle, staging, place.path()).await?;
            if access.single_writer {
                me.only_there(volume, what, [staging.path(), place.path()]).await?;
            }
            let made = place.make()?;
            if let Err(refusal) = me.mount_here(volume, what, &place, MountMode { read_only, ..access.mode }, Some(&staging)).await {
                if made {
                    let _ = place.remove();
                }
                return Err(refusal);
            }
            if me.mounted(staging.path()).await?.is_none() {
                me.mount_here(volume, what, &staging, MountMode { read_only: volume.is_read_only(), ..access.mode }, None).await?;
            }
            me.give_to_group(volume, &place, access, read_only).await
        })
        .await
    }

    /// `NodeUnpublishVolume`: the mount goes, then the directory.
    ///
    /// # Errors
    ///
    /// `ABORTED` while another call has its turn; `FAILED_PRECONDITION` if something else is mounted there or is in the directory.
    pub async fn unpublish(self: &Arc<Self>, r: NodeUnpublishVolumeRequest) -> Result<(), Refusal> {
        required("volume_id", &r.volume_id)?;
        required("target_path", &r.target_path)?;
        self.undo(r.volume_id, "target_path", r.target_path, true).await
    }

    /// `NodeUnstageVolume`: the mount goes; the directory is the kubelet's.
    ///
    /// # Errors
    ///
    /// `ABORTED` while another call has its turn; `FAILED_PRECONDITION` if something else is mounted there.
    pub async fn unstage(self: &Arc<Self>, r: NodeUnstageVolumeRequest) -> Result<(), Refusal> {
        required("volume_id", &r.volume_id)?;
        required("staging_target_path", &r.staging_target_path)?;
        self.undo(r.volume_id, "staging_target_path", r.staging_target_path, false).await
    }

    /// What is gone already is success, whatever the handle says.
    async fn undo(self: &Arc<Self>, handle: String, field: &'static str, path: String, remove: bool) -> Result<(), Refusal> {
        let Some(place) = self.place(field, path).await? else { return Ok(()) };
        let turn = self.inflight.begin(&handle, place.path())?;
        let me = self.clone();
        finish(async move {
            let _turn = turn;
            match place.look()? {
                Found::Nothing => return Ok(()),
                Found::Other => return Err(Refusal::invalid(format!("{} is no directory: left alone", place.path().display()))),
                Found::Directory => {}
            }
            if let Some(line) = me.mounted(place.path()).await? {
                me.unmount_there(&handle, &place, &line).await?;
            }
            me.writable.lock().unwrap_or_else(PoisonError::into_inner).remove(place.path());
            if remove { place.remove() } else { Ok(()) }
        })
        .await
    }

    async fn unmount_there(&self, handle: &str, place: &Place, line: &MountLine) -> Result<(), Refusal> {
        let volume = volume::parse(handle)?;
        if line.filesystem(&self.pool_dev) != Some(volume.fs()) {
            return Err(Refusal::precondition(format!(
                "{} has {} mounted, not volume {volume}: left alone",
                place.path().display(),
                shown(line)
            )));
        }
        let target = place.target().clone();
        match self.node.registry.get(volume.fs()) {
            Some(owner) => Ok(owner.unmount(target).await?),
            // Without an owner nobody is in the way, and a pod's end must not wait for one.
            None => self.blocking(move |me| me.node.driver.unmount(target.as_path())).await,
        }
    }

    // ---- mounting ----

    /// A handle without a commit is pinned to the newest when it is staged, and stays so until it is unstaged.
    async fn what_to_stage(&self, volume: VolumeHandle, handle: &FsHandle, path: &Path) -> Result<MountWhat, Refusal> {
        match volume {
            VolumeHandle::Head(_) => Ok(MountWhat::Head),
            VolumeHandle::Commit(_, commit) | VolumeHandle::View(_, commit, _) => Ok(MountWhat::Commit(commit)),
            VolumeHandle::Newest(fs) => {
                if let Some(what) = self.mounted(path).await?.and_then(|line| self.what_is(volume, &line)) {
                    return Ok(what);
                }
                let newest = handle.current().head;
                newest
                    .map(MountWhat::Commit)
                    .ok_or_else(|| Refusal::precondition(format!("Filesystem {fs} has no commit on this node yet")))
            }
        }
    }

    /// What is staged, and where. The kubelet's directory without a mount is one that a reset, a reboot or a person has taken it away from: the
    /// kubelet doesn't stage again what it takes to be staged, so a refusal would stand for ever.
    async fn staged(
        self: &Arc<Self>,
        volume: VolumeHandle,
        handle: &FsHandle,
        staging: Option<Place>,
        target: &Path,
    ) -> Result<(MountWhat, Place), Refusal> {
        let refusal = || Refusal::precondition(format!("volume {volume} is not staged there: NodeStageVolume comes first"));
        let staging = staging.ok_or_else(refusal)?;
        let what = match self.mounted(staging.path()).await? {
            Some(line) => self.what_is(volume, &line),
            None if staging.look()? != Found::Directory => None,
            None => match self.published_elsewhere(volume, target).await? {
                Some(what) => Some(what),
                None => Some(self.what_to_stage(volume, handle, staging.path()).await?),
            },
        };
        Ok((what.ok_or_else(refusal)?, staging))
    }

    /// The commit that other pods of the same PV have on this node: what follows the newest doesn't follow it while one of them runs. The kubelet
    /// names the directory of a target after the PV.
    async fn published_elsewhere(self: &Arc<Self>, volume: VolumeHandle, target: &Path) -> Result<Option<MountWhat>, Refusal> {
        let VolumeHandle::Newest(_) = volume else { return Ok(None) };
        let table = self.blocking(|_| mounts::own()).await?;
        let is_alike = |m: &&MountLine| m.mount_point.file_name() == target.file_name() && pv_of(&m.mount_point) == pv_of(target);
        Ok(table.iter().filter(is_alike).find_map(|m| self.what_is(volume, m)))
    }

    /// `staging`: to be unmounted if a reset keeps the mount back.
    async fn mount_here(
        &self,
        volume: VolumeHandle,
        what: MountWhat,
        place: &Place,
        mode: MountMode,
        staging: Option<&Place>,
    ) -> Result<(), Refusal> {
        let read_only = mode.read_only;
        let shown_path = place.path().display();
        match self.mounted(place.path()).await? {
            Some(line) if line.what_is(&self.pool_dev) != Some((volume.fs(), what)) => {
                return Err(Refusal::exists(format!("{shown_path} has {} mounted", shown(&line))));
            }
            Some(line) if line.mode.read_only && !read_only => {
                return Err(Refusal::exists(format!("volume {volume} is published read-only at {shown_path}: unpublish it first")));
            }
            Some(line) if !line.mode.read_only && read_only && self.writable().contains(place.path()) => {
                return Err(Refusal::exists(format!("volume {volume} is published writable at {shown_path}: unpublish it first")));
            }
            // Nothing; the same; or what a crash left between mount and remount: the owner finishes it.
            _ => {}
        }
        self.ask(volume, what, place, mode, staging).await?;
        if !read_only {
            self.writable().insert(place.path().to_owned());
        }
        Ok(())
    }

    /// The owner opens authority when the operator's word arrives, which may be a moment after the kubelet's.
    async fn ask(
        &self,
        volume: VolumeHandle,
        what: MountWhat,
        place: &Place,
        mode: MountMode,
        staging: Option<&Place>,
    ) -> Result<(), Refusal> {
        let until = Instant::now() + PATIENCE;
        loop {
            let owner = self.handle(volume.fs())?;
            let Err(problem) = owner.mount(what, place.target().clone(), mode).await else { return Ok(()) };
            if let (Reason::Held, Some(staging)) = (problem.reason, staging)
                && self.mounted(staging.path()).await?.is_some()
                && let Ok(_turn) = self.inflight.begin(&volume.to_string(), staging.path())
            {
                let _ = owner.unmount(staging.target().clone()).await; // who is in its way is named by the reset
            }
            let may_pass = match problem.reason {
                Reason::NotPlaced | Reason::Busy | Reason::Held | Reason::StaleEpoch => true,
                Reason::NotOwner => !matches!(owner.current().role, RoleStatus::Replica | RoleStatus::Receiving),
                _ => false,
            };
            if !may_pass || Instant::now() >= until {
                return Err(problem.into());
            }
            tokio::time::sleep(ASK_EVERY).await;
        }
    }

    async fn give_to_group(self: &Arc<Self>, volume: VolumeHandle, place: &Place, access: Access, read_only: bool) -> Result<(), Refusal> {
        let Some(group) = access.group.filter(|_| !read_only) else { return Ok(()) };
        let _turn = self.inflight.begin(&format!("{volume}, its group"), Path::new("/"))?;
        let path = place.path().to_owned();
        let (me, began) = (self.clone(), Instant::now());
        let walk = move || -> Result<fsgroup::Walked, Refusal> {
            let failed = |e: std::io::Error| Refusal::new(Code::Internal, format!("opening {}: {e}", path.display()));
            let root = std::fs::File::open(&path).map_err(failed)?;
            let is_root = std::os::unix::fs::MetadataExt::ino(&root.metadata().map_err(failed)?) == SUBVOLUME_ROOT;
            if !is_root {
                return Err(Refusal::aborted(format!("{} was unmounted meanwhile", path.display())));
            }
            Ok(fsgroup::apply(&root.into(), group, &|| me.stop.is_cancelled())?)
        };
        let walked = joined(tokio::task::spawn_blocking(walk).await)??;
        self.metrics.group_changed(walked.changed);
        if walked.changed > 0 || walked.refused > 0 {
            let ms = began.elapsed().as_millis();
            tracing::info!(
                group,
                seen = walked.seen,
                changed = walked.changed,
                immutable = walked.refused,
                ms,
                "gave the volume to the pod's group"
            );
        }
        Ok(())
    }

    /// `ReadWriteOncePod`: nothing else of this node has it mounted through the agent.
    async fn only_there(self: &Arc<Self>, volume: VolumeHandle, what: MountWhat, own: [&Path; 2]) -> Result<(), Refusal> {
        let table = self.blocking(|_| mounts::own()).await?;
        let is_it = |m: &&MountLine| m.what_is(&self.pool_dev) == Some((volume.fs(), what));
        let other = table.iter().find(|m| is_it(m) && !own.contains(&m.mount_point.as_path()));
        match other {
            None => Ok(()),
            Some(m) => Err(Refusal::precondition(format!(
                "volume {volume} is for a single writer and is mounted at {} already",
                m.mount_point.display()
            ))),
        }
    }

    // ---- facts ----

    /// The owner on this node.
    ///
    /// # Errors
    ///
    /// `NOT_FOUND` if this node has no copy.
    pub fn handle(&self, fs: FsId) -> Result<FsHandle, Refusal> {
        self.node.registry.get(fs).ok_or_else(|| Refusal::not_found(format!("no copy of volume {fs} is on this node")))
    }

    /// Where a path of a request is; `None` if its parent directory is not there.
    ///
    /// # Errors
    ///
    /// `INVALID_ARGUMENT` for a path that is not absolute or not below the kubelet's directory.
    pub async fn place(self: &Arc<Self>, field: &'static str, path: String) -> Result<Option<Place>, Refusal> {
        let kubelet_dir = self.settings.kubelet_dir.clone();
        joined(tokio::task::spawn_blocking(move || place::find(kubelet_dir.as_deref(), field, &path)).await)?
    }

    /// The topmost mount at a path.
    ///
    /// # Errors
    ///
    /// The mount table can't be read.
    pub async fn mounted(&self, path: &Path) -> Result<Option<MountLine>, Refusal> {
        let path = path.to_owned();
        joined(tokio::task::spawn_blocking(move || mounts::at(&path)).await)?.map_err(|e| e.problem().into())
    }

    /// What of the volume is mounted there; `None` if it is another or not what the handle is for.
    fn what_is(&self, volume: VolumeHandle, line: &MountLine) -> Option<MountWhat> {
        let (fs, what) = line.what_is(&self.pool_dev)?;
        let fits = match (volume, what) {
            (VolumeHandle::Head(_), MountWhat::Head) | (VolumeHandle::Newest(_), MountWhat::Commit(_)) => true,
            (VolumeHandle::Commit(_, wanted) | VolumeHandle::View(_, wanted, _), MountWhat::Commit(there)) => wanted == there,
            (VolumeHandle::Head(_), MountWhat::Commit(_))
            | (VolumeHandle::Newest(_) | VolumeHandle::Commit(..) | VolumeHandle::View(..), MountWhat::Head) => false,
        };
        (fits && fs == volume.fs()).then_some(what)
    }

    fn writable(&self) -> std::sync::MutexGuard<'_, std::collections::HashSet<PathBuf>> {
        self.writable.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A look at the disk or the kernel's tables, on a thread that may block.
    ///
    /// # Errors
    ///
    /// That of `call`; `INTERNAL` if it panicked.
    pub async fn blocking<T: Send + 'static>(
        &self,
        call: impl FnOnce(&Looker) -> Result<T, DriverError> + Send + 'static,
    ) -> Result<T, Refusal> {
        let looker = Looker { node: self.node.clone() };
        joined(tokio::task::spawn_blocking(move || call(&looker)).await)?.map_err(|e| e.problem().into())
    }
}

/// What a blocking look has at hand.
pub struct Looker {
    /// The node, for its driver.
    pub node: Arc<crate::actor::Node>,
}

fn joined<T>(result: Result<T, tokio::task::JoinError>) -> Result<T, Refusal> {
    result.map_err(|e| Refusal::new(Code::Internal, format!("a call died: {e}")))
}

/// `…/<PV>/mount`.
fn pv_of(target: &Path) -> Option<&std::ffi::OsStr> {
    target.parent()?.file_name()
}

fn no_parent() -> Refusal {
    Refusal::invalid(
        "the parent directory of the path, which the kubelet has made, is not there for the agent: kubeletDir of the chart must be the \
         directory as the kubelet names it",
    )
}

fn shown(line: &MountLine) -> String {
    format!("{} ({})", line.root.display(), line.fs_type)
}
