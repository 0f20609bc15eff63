//! The next step of a Dot or Branch: pure, one step at a time, each safe to repeat.
//!
//! Intents first (design §2, "Finalizers"): the finalizer and the id stand in the claim before there is a
//! Filesystem; the Filesystem is durably `Deleting` or `Released` before the claim goes.

use dotgraft_api::{ClaimKind, ConditionType, DeletionPolicy, Filesystem, FilesystemPhase, Origin, Reason};
use dotgraft_engine::words::OF_COMMIT;

use super::ClaimView;
use super::own::{self, Holding};
use crate::conditions::Block;

/// A Branch that depends on this claim.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Child {
    /// Its name.
    pub name: String,
    /// It is being deleted already.
    pub deleting: bool,
}

/// What the decision needs.
#[derive(Debug, Clone)]
pub struct View {
    /// The claim.
    pub claim: ClaimView,
    /// UID of its namespace, where it is looked at.
    pub namespace: Option<String>,
    /// The Filesystem of `spec.fsId`, if it exists and isn't somebody else's.
    pub fs: Option<Filesystem>,
    /// The Filesystem of `spec.fsId` is somebody else's.
    pub foreign: bool,
    /// Filesystems of its namespace, not in deletion, that carry the claim's name, while the claim has no id.
    pub namesakes: Vec<String>,
    /// There are such Filesystems of an earlier namespace, or of one that isn't known.
    pub strangers: bool,
    /// For a Branch, or a Dot with an origin, without Filesystem: what it starts from.
    pub origin: Option<Result<Origin, Block>>,
    /// Branches that start from this.
    pub children: Vec<Child>,
    /// Who has it mounted, on nodes that can be reached.
    pub mounts: Vec<String>,
    /// Nodes that have not confirmed the deletion, and can be reached.
    pub unconfirmed: Vec<String>,
    /// Snapshots that outlive the claim.
    pub snapshots: usize,
    /// PVCs that are bound to it.
    pub bound: Vec<String>,
    /// A PV says `Retain`: its data outlives it.
    pub kept: bool,
    /// It has no Filesystem yet, and the namespace's limit leaves no room for one.
    pub over: Option<Block>,
}

impl View {
    /// A claim of which nothing else is known.
    pub fn of(claim: ClaimView) -> Self {
        let (namesakes, children, mounts, unconfirmed, bound) = Default::default();
        let (namespace, strangers, foreign, kept, fs, origin, over) = Default::default();
        Self { claim, namespace, fs, foreign, namesakes, strangers, origin, children, mounts, unconfirmed, snapshots: 0, bound, kept, over }
    }

    /// Takes the Filesystem of `spec.fsId` into view, if it is any business of this claim.
    pub fn look_at(&mut self, named: Option<Filesystem>) {
        let is_foreign = |fs: &Filesystem| own::holding(&self.claim, fs, self.namespace.as_deref()) == Holding::Foreign;
        self.foreign = named.as_ref().is_some_and(is_foreign);
        self.fs = named.filter(|_| !self.foreign);
    }
}

/// One step.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Step {
    /// Finalizer and a new id into the claim.
    Allocate,
    /// Only the finalizer: the id is there.
    Hold,
    /// Make the Filesystem.
    Create(Option<Origin>),
    /// Record phase New in what was just made.
    Start,
    /// Put our UID into the Filesystem's claimRef, and back to Active if it was released.
    Bind,
    /// Delete these Branches.
    DeleteChildren(Vec<String>),
    /// Set the phase: a durable intent.
    Mark(FilesystemPhase),
    /// Take the finalizer off.
    LetGo,
}

/// A step, or what it waits for; neither: all is well.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Decision {
    /// What to do now.
    pub step: Option<Step>,
    /// What stands in the way.
    pub block: Option<Block>,
}

fn step(step: Step) -> Decision {
    Decision { step: Some(step), block: None }
}
fn block(reason: impl Into<Reason>, message: impl Into<String>) -> Decision {
    Decision { step: None, block: Some(Block::new(reason, message)) }
}

/// Decides.
pub fn decide(view: &View) -> Decision {
    let claim = &view.claim;
    if claim.deleting {
        return if claim.held { tear_down(view) } else { Decision::default() };
    }
    if let Err(e) = claim.capacity.as_ref().and(claim.history_limit.as_ref())
        && view.fs.is_none()
    {
        return block(ConditionType::InvalidCapacity, e.to_string());
    }
    let Some(fs_id) = &claim.fs_id else { return allocate(view) };
    if view.foreign {
        return block(
            ConditionType::ClaimMismatch,
            "the Filesystem of spec.fsId isn't this object's: delete the object and make it without fsId, or an administrator hands it over",
        );
    }
    if !claim.held {
        return step(Step::Hold);
    }
    match &view.fs {
        None => create(view, fs_id),
        Some(fs) => bind(claim, fs),
    }
}

fn origin_blocked(view: &View) -> Option<Decision> {
    match &view.origin {
        Some(Err(b)) => Some(Decision { step: None, block: Some(b.clone()) }),
        _ => None,
    }
}

fn allocate(view: &View) -> Decision {
    if let Some(found) = view.namesakes.first() {
        return block(
            ConditionType::NameHasData,
            format!(
                "Filesystem `{found}` holds data under this name: who may claim it sets spec.fsId to `{found}` to use it, or an administrator \
                 deletes that Filesystem to start empty"
            ),
        );
    }
    if view.strangers {
        return block(
            ConditionType::NameHasData,
            "what an earlier namespace of this name had under this name is kept: an administrator hands it over, or deletes it",
        );
    }
    // A Branch of nothing waits before it holds anything, so that it can be deleted freely.
    let over = || view.over.clone().map(|b| Decision { step: None, block: Some(b) });
    origin_blocked(view).or_else(over).unwrap_or_else(|| step(Step::Allocate))
}

fn create(view: &View, fs_id: &str) -> Decision {
    let claim = &view.claim;
    if !claim.allocated || claim.had_filesystem {
        return block(
            ConditionType::FilesystemNotFound,
            format!(
                "there is no Filesystem `{fs_id}`: if its data is on a node, `kubectl dot adopt`; an empty one is never made in its place"
            ),
        );
    }
    if let Some(blocked) = origin_blocked(view) {
        return blocked;
    }
    match (claim.kind, &view.origin) {
        (kind, None) if kind == ClaimKind::Branch || claim.origin.is_some() => {
            block(ConditionType::SourceNotReady, "what it starts from is not known yet")
        }
        (_, origin) => step(Step::Create(origin.clone().and_then(Result::ok))),
    }
}

fn bind(claim: &ClaimView, fs: &Filesystem) -> Decision {
    let phase = fs.status.as_ref().map(|s| s.phase);
    if phase == Some(FilesystemPhase::Deleting) || fs.metadata.deletion_timestamp.is_some() {
        return block(
            ConditionType::FilesystemDeleting,
            "the Filesystem of spec.fsId is being deleted: delete this object and make a new one",
        );
    }
    if phase == Some(FilesystemPhase::Headless) {
        return block(
            ConditionType::Headless,
            "only snapshots are left of the Filesystem of spec.fsId: restore one of them to a new volume",
        );
    }
    let ours = own::is_bound(claim, fs);
    if phase.is_none() && ours && claim.allocated && !claim.had_filesystem {
        return step(Step::Start);
    }
    if !ours || phase == Some(FilesystemPhase::Released) {
        return step(Step::Bind);
    }
    Decision::default()
}

fn tear_down(view: &View) -> Decision {
    let claim = &view.claim;
    // A dependency that is missing counts as done; data that an agent may still hold is an orphan, never lost.
    let Some(fs) = &view.fs else { return step(Step::LetGo) };
    if !own::is_bound(claim, fs) {
        return step(Step::LetGo);
    }
    let phase = fs.status.as_ref().map(|s| s.phase);
    let goal = match claim.deletion_policy {
        _ if view.kept => FilesystemPhase::Released,
        DeletionPolicy::Retain => FilesystemPhase::Released,
        DeletionPolicy::Delete | DeletionPolicy::Cascade if view.snapshots > 0 => FilesystemPhase::Headless,
        DeletionPolicy::Delete | DeletionPolicy::Cascade => FilesystemPhase::Deleting,
    };
    if phase == Some(goal) || phase == Some(FilesystemPhase::Deleting) {
        // Who reads a commit that is kept doesn't need the head.
        let holds = |m: &&String| goal != FilesystemPhase::Headless || !m.contains(OF_COMMIT);
        let mounts: Vec<&str> = view.mounts.iter().filter(holds).map(String::as_str).collect();
        // Pods of the PV that keeps it may be those of another namespace.
        if !mounts.is_empty() && !view.kept {
            return block(ConditionType::Mounted, format!("mounted by {}", mounts.join("; ")));
        }
        // Only the agents can see the mounts of all namespaces of their nodes; under `Retain` the data stays and so may mounts.
        if phase == Some(FilesystemPhase::Deleting) && !view.unconfirmed.is_empty() {
            return block(ConditionType::Deleting, format!("the copies on {} are being deleted", view.unconfirmed.join(", ")));
        }
        return step(Step::LetGo);
    }
    // A PVC of another namespace has it by an administrator's PV, whose data stays.
    let of_here = |pvc: &&String| !view.kept || pvc.split_once('/').is_some_and(|(namespace, _)| namespace == claim.namespace);
    let bound: Vec<&str> = view.bound.iter().filter(of_here).map(String::as_str).collect();
    if !bound.is_empty() {
        return block(ConditionType::ClaimBound, format!("PVC {} is bound to it: delete that first", bound.join(", ")));
    }
    match (goal, children(view)) {
        (FilesystemPhase::Released, _) | (_, None) => step(Step::Mark(goal)),
        (_, Some(decision)) => decision,
    }
}

fn children(view: &View) -> Option<Decision> {
    if view.children.is_empty() {
        return None;
    }
    let names = |list: &[Child]| {
        let mut text: Vec<&str> = list.iter().take(10).map(|c| c.name.as_str()).collect();
        if list.len() > 10 {
            text.push("…");
        }
        text.join(", ")
    };
    let alive: Vec<String> = view.children.iter().filter(|c| !c.deleting).map(|c| c.name.clone()).collect();
    if view.claim.deletion_policy == DeletionPolicy::Cascade {
        let wait = Block::new(ConditionType::BranchesExist, format!("its Branches are being deleted: {}", names(&view.children)));
        let step = (!alive.is_empty()).then_some(Step::DeleteChildren(alive));
        return Some(Decision { step, block: Some(wait) });
    }
    Some(block(
        ConditionType::BranchesExist,
        format!("Branches start from it: {}; delete them, or set deletionPolicy: Cascade", names(&view.children)),
    ))
}

#[cfg(test)]
#[path = "decide_tests.rs"]
mod tests;
