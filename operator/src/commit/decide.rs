//! What becomes of a Commit object: pure. The Filesystem's plan sends the wish to the agents; here their answers
//! are turned into status and, on deletion, into the end of the object.

use std::sync::Arc;

use dotgraft_api::quantity::human;
use dotgraft_api::{
    Commit, CommitState, CommitStatus, ConditionType, DesiredState, Filesystem, FilesystemPhase, Place, Replica, ReplicaCommitStatus, Time,
    Word, condition,
};
use dotgraft_engine::copies::{Copies, Safety};
use dotgraft_engine::ids::CommitId;
use kube::ResourceExt;

use super::copies_named;
use crate::claim::ClaimView;
use crate::conditions::{self, Block, Wanted, wanted};
use crate::filesystem::kept;
use crate::names::COMMIT_FINALIZER;
use crate::pools::{self, PoolView};
use crate::write::has_finalizer;

/// Most nodes that `status.copies` names.
const MOST_COPIES: usize = 16;
/// What a Commit without a copy says.
const NO_COPY: &str = "no copy holds it any more: the disks that did are gone. It can't be restored; delete it, or bring such a disk back";

/// What the decision needs.
#[derive(Debug, Clone)]
pub struct View {
    /// The Commit.
    pub commit: Arc<Commit>,
    /// What it is of, if that exists.
    pub claim: Option<ClaimView>,
    /// The Filesystem of that.
    pub fs: Option<Arc<Filesystem>>,
    /// All its Replicas.
    pub replicas: Vec<Arc<Replica>>,
    /// All pools.
    pub pools: Vec<PoolView>,
    /// The `DotOperation` that it was made for, if that is gone.
    pub withdrawn: Option<String>,
    /// Who has a view of it: it stays for them.
    pub readers: Vec<String>,
}

/// What to do.
#[derive(Debug, Clone, PartialEq)]
pub enum Step {
    /// Finalizer and owner reference.
    Hold,
    /// The commit is gone everywhere, or nothing is left to keep.
    LetGo,
    /// Only the status.
    Show,
}

/// Decides.
pub fn decide(view: &View) -> Step {
    let held = has_finalizer(view.commit.as_ref(), COMMIT_FINALIZER);
    if view.commit.metadata.deletion_timestamp.is_none() {
        let can_hold = view.claim.as_ref().is_some_and(|c| !c.deleting);
        return if held || !can_hold { Step::Show } else { Step::Hold };
    }
    if held && is_gone(view) { Step::LetGo } else { Step::Show }
}

/// Nothing of the commit is left, or nobody is to delete it alone: its Filesystem goes whole, is kept after its
/// claim (`Retain` keeps commits too), or has never had data.
fn is_gone(view: &View) -> bool {
    let Some(fs) = &view.fs else { return true };
    let phase = fs.status.as_ref().map(|s| s.phase);
    if !view.readers.is_empty() && !matches!(phase, Some(FilesystemPhase::Deleting | FilesystemPhase::Released)) {
        return false;
    }
    // Without a head, snapshots still go one by one.
    if view.claim.is_none() && fs.status.as_ref().is_none_or(|s| s.phase != FilesystemPhase::Headless) {
        return true;
    }
    match &fs.status {
        Some(s) if matches!(s.phase, FilesystemPhase::Deleting | FilesystemPhase::Released) => true,
        Some(s) if s.phase == FilesystemPhase::New && s.authority.is_none() => true,
        _ => waiting(view).is_empty() && !view.replicas.is_empty(),
    }
}

/// Copies that haven't said `Removed`; those of pools that are gone are not asked.
fn waiting(view: &View) -> Vec<&Arc<Replica>> {
    let asked = |r: &&Arc<Replica>| {
        let place = Place { node: r.spec.node.clone(), pool: r.spec.pool.clone() };
        r.spec.desired.state == DesiredState::Present && !pools::is_gone(&view.pools, &place)
    };
    let removed = |r: &&Arc<Replica>| answer(r, &view.commit).is_some_and(|a| a.state == CommitState::Removed);
    view.replicas.iter().filter(asked).filter(|r| !removed(r)).collect()
}

fn answer<'a>(replica: &'a Replica, commit: &Commit) -> Option<&'a ReplicaCommitStatus> {
    let uid = commit.uid()?;
    replica.status.as_ref()?.commits.iter().find(|c| c.uid == uid)
}

fn owner(view: &View) -> Option<&Arc<Replica>> {
    let pool = &view.fs.as_ref()?.status.as_ref()?.authority.as_ref()?.owner.pool;
    view.replicas.iter().find(|r| r.spec.pool == *pool)
}

/// The agent is not asked for the commit any more, knows it, and has nothing of it in hand: it will not be made.
fn has_let_go(replica: &Replica, commit: &Commit) -> bool {
    let asked = commit.uid().is_none_or(|uid| replica.spec.desired.commits.iter().any(|w| w.uid == uid));
    !asked && replica.has_heard() && answer(replica, commit).is_none()
}

/// Whether a status says that the commit will not be made.
pub fn is_cancelled(status: &CommitStatus) -> bool {
    condition(&status.conditions, ConditionType::Ready).is_some_and(|c| c.reason == ConditionType::Cancelled.as_str())
}

/// The status to be. What was recorded once stays.
pub fn status(view: &View, now: &Time) -> CommitStatus {
    let old = view.commit.status.clone().unwrap_or_default();
    let mut new = old.clone();
    new.observed_generation = view.commit.metadata.generation;
    if let Some(a) = owner(view).and_then(|r| answer(r, &view.commit)).filter(|a| a.state == CommitState::Done) {
        new.id = old.id.or_else(|| a.id.clone());
        new.fs_id = old.fs_id.or_else(|| view.fs.as_ref().map(|f| f.name_any()));
        new.parent = old.parent.or_else(|| a.parent.clone());
        new.time = old.time.or_else(|| a.time.clone());
        new.changed_bytes = old.changed_bytes.or(a.changed_bytes);
        new.changed = new.changed_bytes.map(human);
    }
    let safety = safety(view, new.id.as_deref());
    new.copies = held(view, new.id.as_deref()).map(|(id, all)| nodes(&all, id)).unwrap_or_default();
    let wanted = verdicts(view, new.id.is_some(), safety);
    new.conditions = conditions::merge(&old.conditions, &wanted, view.commit.metadata.generation, now);
    new
}

/// The copies of a commit that is made; empty before that.
fn held(view: &View, id: Option<&str>) -> Option<(CommitId, Copies<Place>)> {
    Some((id?.parse().ok()?, kept::copies_of(&view.replicas, &view.pools)))
}

/// The nodes whose copies are known to hold it.
fn nodes(all: &Copies<Place>, id: CommitId) -> Vec<String> {
    let mut nodes: Vec<String> = all.holders(id).map(|p| p.node.clone()).collect();
    nodes.sort();
    nodes.truncate(MOST_COPIES);
    nodes
}

/// How well it is held. While no Replica is known nothing is: an empty cache proves no loss.
fn safety(view: &View, id: Option<&str>) -> Safety {
    held(view, id).filter(|_| !view.replicas.is_empty()).map_or(Safety::Unknown, |(id, all)| all.safety(id))
}

/// How many copies of a commit were asked for: those that its volume keeps, or those that its snapshot's class names.
fn asked_for(commit: &Commit, claim: Option<&ClaimView>) -> usize {
    let kept = claim.map_or(0, |c| c.placement.replicas).saturating_add(1);
    usize::try_from(kept).unwrap_or(usize::MAX).max(copies_named(commit))
}

/// Whether the copies are other ones than the status of a made commit says.
pub fn is_outdated(commit: &Commit, claim: Option<&ClaimView>, all: &Copies<Place>) -> bool {
    let Some(status) = commit.status.as_ref().filter(|_| commit.metadata.deletion_timestamp.is_none()) else { return false };
    let Some(id) = status.id.as_ref().and_then(|id| id.parse().ok()) else { return false };
    let risk = at_risk(all.safety(id), asked_for(commit, claim));
    let told = condition(&status.conditions, ConditionType::AtRisk).and_then(|c| c.reason.parse().ok());
    nodes(all, id) != status.copies || told != risk.reason()
}

/// Whether one copy, or none, holds it, and more were asked for.
fn at_risk(safety: Safety, asked: usize) -> Wanted {
    match safety {
        Safety::Nowhere => wanted(ConditionType::AtRisk, true, ConditionType::NoCopyLeft, NO_COPY),
        Safety::Copies(1) if asked > 1 => {
            wanted(ConditionType::AtRisk, true, Word::OneCopy, format!("one copy holds it, of {asked} that were asked for"))
        }
        _ => wanted(ConditionType::AtRisk, false, Word::AsExpected, ""),
    }
}

fn verdicts(view: &View, made: bool, safety: Safety) -> Vec<Wanted> {
    let pinned = view.replicas.iter().find_map(|r| {
        let a = answer(r, &view.commit).filter(|a| a.state == CommitState::Pinned)?;
        Some(format!("on node {}: {}", r.spec.node, a.message.clone().unwrap_or_default()))
    });
    let going = view.commit.metadata.deletion_timestamp.is_some();
    let read = (going && !view.readers.is_empty()).then(|| format!("{} has a view of it", view.readers.join(", ")));
    let pinned = read.or(pinned);
    let ready = match readiness(view, made.then_some(safety), pinned.as_deref()) {
        Ok(()) => wanted(ConditionType::Ready, true, Word::Committed, "durable on its owner"),
        Err(b) => wanted(ConditionType::Ready, false, b.reason, b.message),
    };
    let pinned = match pinned {
        Some(by) => wanted(ConditionType::Pinned, true, ConditionType::Pinned, by),
        None => wanted(ConditionType::Pinned, false, Word::NotPinned, ""),
    };
    let mut list = vec![ready, pinned];
    // What is being deleted has fewer and fewer copies, as it should.
    if made && view.commit.metadata.deletion_timestamp.is_none() {
        list.push(at_risk(safety, asked_for(&view.commit, view.claim.as_ref())));
        list.extend((safety == Safety::Nowhere).then(|| wanted(ConditionType::NoCopyLeft, true, ConditionType::NoCopyLeft, NO_COPY)));
    }
    list
}

/// `made`: how well it is held, once it is made.
fn readiness(view: &View, made: Option<Safety>, pinned: Option<&str>) -> Result<(), Block> {
    let source = &view.commit.spec.source;
    if view.commit.metadata.deletion_timestamp.is_some() {
        if let Some(by) = pinned {
            return Err(Block::new(ConditionType::Pinned, format!("it is deleted when nothing needs it any more: {by}")));
        }
        let nodes: Vec<&str> = waiting(view).iter().map(|r| r.spec.node.as_str()).collect();
        return Err(Block::new(ConditionType::Deleting, format!("waiting for the copies on: {}", nodes.join(", "))));
    }
    match made {
        Some(Safety::Nowhere) => return Err(Block::new(ConditionType::NoCopyLeft, NO_COPY)),
        Some(_) => return Ok(()),
        None => {}
    }
    let Some(claim) = &view.claim else {
        return Err(Block::new(
            ConditionType::SourceNotFound,
            format!("there is no {} `{}` in this namespace", source.kind.as_str(), source.name),
        ));
    };
    if claim.deleting {
        return Err(Block::new(ConditionType::SourceDeleting, format!("{} `{}` is being deleted", source.kind.as_str(), source.name)));
    }
    let Some(owner) = owner(view) else {
        return Err(Block::new(ConditionType::SourceNotReady, format!("{} `{}` has no owner yet", source.kind.as_str(), source.name)));
    };
    if let Some(operation) = &view.withdrawn
        && has_let_go(owner, &view.commit)
    {
        let text = format!(
            "DotOperation `{operation}`, for which it was to keep what the volume holds, was taken back: this Commit can be deleted"
        );
        return Err(Block::new(ConditionType::Cancelled, text));
    }
    match answer(owner, &view.commit) {
        Some(a) if a.state == CommitState::Refused => {
            Err(Block::new(ConditionType::Refused, a.message.clone().unwrap_or_else(|| "the owner refused".into())))
        }
        Some(a) => Err(Block::new(Word::Pending, a.message.clone().unwrap_or_else(|| format!("node `{}` is committing", owner.spec.node)))),
        None => Err(Block::new(Word::Pending, format!("waiting for the agent of node `{}`", owner.spec.node))),
    }
}

#[cfg(test)]
mod tests {
    use dotgraft_api::{Authority, Desired, DesiredRole, ReplicaSpec};
    use k8s_openapi::jiff::Timestamp;

    use super::*;
    use crate::filesystem::spare::Marks;
    use crate::pools::tests::{pool, pool_id};
    use crate::testing::{FS, claim, commit, deleted, filesystem, recorded, replica};

    fn copy(node: &str, state: Option<CommitState>) -> Arc<Replica> {
        let desired = Desired { role: Some(DesiredRole::Replica), ..Desired::default() };
        let spec = ReplicaSpec { fs_id: FS.into(), node: node.into(), pool: pool_id(node), desired };
        let mut r = replica(spec, Marks::default(), dotgraft_api::CopyRole::Replica);
        let uid = commit("c", 1).metadata.uid.unwrap();
        if let Some(state) = state {
            let id = (state == CommitState::Done).then(|| FS.to_owned());
            let message = Some("Branch x".to_owned());
            r.status.as_mut().unwrap().commits = vec![ReplicaCommitStatus { uid, id, state, message, ..ReplicaCommitStatus::default() }];
        }
        Arc::new(r)
    }
    fn view(c: Commit, replicas: Vec<Arc<Replica>>) -> View {
        let owner = Place { node: "n1".into(), pool: pool_id("n1") };
        let authority = Authority { owner, epoch: 1, ..Authority::default() };
        View {
            commit: Arc::new(c),
            claim: Some(claim()),
            fs: Some(Arc::new(filesystem(Some(FilesystemPhase::Active), Some(authority)))),
            replicas,
            pools: vec![pool("n1", 1), pool("n2", 1)],
            withdrawn: None,
            readers: vec![],
        }
    }
    fn now() -> Time {
        Time(Timestamp::UNIX_EPOCH)
    }
    fn ready(v: &View) -> (String, String) {
        let s = status(v, &now());
        let c = dotgraft_api::condition(&s.conditions, "Ready").unwrap();
        (c.status.clone(), c.reason.clone())
    }

    #[test]
    fn what_the_owner_made_is_recorded_once_and_stays() {
        let mut v = view(commit("c", 1), vec![copy("n1", Some(CommitState::Done))]);
        let s = status(&v, &now());
        assert_eq!((s.id.as_deref(), s.fs_id.as_deref()), (Some(FS), Some(FS)));
        v.commit = Arc::new(Commit { status: Some(s.clone()), ..commit("c", 1) });
        v.replicas = vec![copy("n1", None)];
        assert_eq!(status(&v, &now()), s, "the entry has left the Replica, the result stays");
    }

    #[test]
    fn only_the_owners_word_counts_for_making() {
        let v = view(commit("c", 1), vec![copy("n1", None), copy("n2", Some(CommitState::Done))]);
        assert_eq!(ready(&v), ("False".into(), "Pending".into()));
        let v = view(commit("c", 1), vec![copy("n1", Some(CommitState::Refused))]);
        assert_eq!(ready(&v).1, "Refused");
    }

    #[test]
    fn what_was_taken_back_is_cancelled_once_the_owner_has_heard_of_it() {
        let about = |edit: &dyn Fn(&mut Replica)| {
            let mut owner = (*copy("n1", None)).clone();
            owner.metadata.generation = Some(4);
            owner.status.as_mut().unwrap().observed_generation = Some(4);
            edit(&mut owner);
            let v = View { withdrawn: Some("reset-d".into()), ..view(commit("c", 1), vec![Arc::new(owner)]) };
            ready(&v).1
        };
        assert_eq!(about(&|_| ()), "Cancelled");
        assert_eq!(about(&|r| r.metadata.generation = Some(5)), "Pending", "it has not heard");
        let uid = commit("c", 1).metadata.uid.unwrap();
        let asked = dotgraft_api::CommitWish { uid: uid.clone(), ..Default::default() };
        assert_eq!(about(&|r| r.spec.desired.commits = vec![asked.clone()]), "Pending", "it is still asked for");
        let in_hand = ReplicaCommitStatus { uid: uid.clone(), ..ReplicaCommitStatus::default() };
        assert_eq!(about(&|r| r.status.as_mut().unwrap().commits = vec![in_hand.clone()]), "Pending", "it has it in hand");
    }

    #[test]
    fn a_commit_of_nothing_holds_nothing_and_says_so() {
        let mut c = commit("c", 1);
        c.metadata.finalizers = None;
        let mut v = view(c, vec![]);
        assert_eq!(decide(&v), Step::Hold);
        v.claim = None;
        assert_eq!(decide(&v), Step::Show);
        assert_eq!(ready(&v).1, "SourceNotFound");
    }

    #[test]
    fn a_deletion_waits_for_every_copy_that_can_answer() {
        let gone = || deleted(recorded(commit("c", 1)));
        let removed = Some(CommitState::Removed);
        assert_eq!(decide(&view(gone(), vec![copy("n1", removed), copy("n2", None)])), Step::Show);
        assert_eq!(decide(&view(gone(), vec![copy("n1", removed), copy("n2", removed)])), Step::LetGo);
        let mut v = view(gone(), vec![copy("n1", removed), copy("n2", None)]);
        v.pools.pop();
        assert_eq!(decide(&v), Step::LetGo, "n2 is gone for good");
        v.replicas.clear();
        assert_eq!(decide(&v), Step::Show, "no Replica in the cache proves nothing");
    }

    #[test]
    fn a_pin_is_named() {
        let v = view(deleted(recorded(commit("c", 1))), vec![copy("n1", Some(CommitState::Pinned))]);
        assert_eq!(decide(&v), Step::Show);
        assert_eq!(ready(&v).1, "Pinned");
        let s = status(&v, &now());
        assert!(dotgraft_api::condition(&s.conditions, "Pinned").unwrap().message.contains("Branch x"));
    }

    #[test]
    fn who_has_a_view_of_it_holds_it_also_after_its_dot_and_is_named() {
        let mut v = view(deleted(recorded(commit("c", 1))), vec![copy("n1", Some(CommitState::Removed))]);
        v.readers = vec!["PVC data".into()];
        assert_eq!((decide(&v), ready(&v).1.as_str()), (Step::Show, "Pinned"));
        v.claim = None;
        v.fs = Some(Arc::new(filesystem(Some(FilesystemPhase::Headless), None)));
        assert_eq!(decide(&v), Step::Show);
        let s = status(&v, &now());
        assert_eq!(dotgraft_api::condition(&s.conditions, "Pinned").unwrap().message, "PVC data has a view of it");
        v.fs = Some(Arc::new(filesystem(Some(FilesystemPhase::Deleting), None)));
        assert_eq!(decide(&v), Step::LetGo, "its data goes as a whole");
        let mut there = view(recorded(commit("c", 1)), vec![copy("n1", Some(CommitState::Done))]);
        there.readers = vec!["PVC data".into()];
        assert_ne!(ready(&there).1, "Pinned", "nobody deletes it");
    }

    #[test]
    fn a_snapshot_without_its_dot_is_deleted_like_any_other_commit() {
        let mut v = view(deleted(recorded(commit("c", 1))), vec![copy("n1", None)]);
        v.claim = None;
        v.fs = Some(Arc::new(filesystem(Some(FilesystemPhase::Headless), None)));
        assert_eq!(decide(&v), Step::Show, "the copy must say that it is gone");
        v.replicas = vec![copy("n1", Some(CommitState::Removed))];
        assert_eq!(decide(&v), Step::LetGo);
    }

    #[test]
    fn a_missing_source_does_not_hold_a_deletion() {
        let mut v = view(deleted(recorded(commit("c", 1))), vec![copy("n1", None)]);
        v.fs = Some(Arc::new(filesystem(Some(FilesystemPhase::Deleting), None)));
        assert_eq!(decide(&v), Step::LetGo);
        v.claim = None;
        v.fs = None;
        assert_eq!(decide(&v), Step::LetGo);
    }

    #[test]
    fn how_many_copies_hold_it_is_told_and_none_is_not_ready() {
        let id = "0198c2a5-7f00-7000-8000-0000000000c2";
        let made = |at: &[&str]| {
            let mut c = commit("c", 1);
            c.status.get_or_insert_default().id = Some(id.into());
            let holding = |node: &str| {
                let mut r = Arc::unwrap_or_clone(copy(node, None));
                let s = r.status.as_mut().unwrap();
                (s.kept_complete, s.kept) = (true, if at.contains(&node) { vec![id.to_owned()] } else { Vec::new() });
                Arc::new(r)
            };
            view(c, vec![holding("n1"), holding("n2")])
        };
        let told = |v: &View| {
            let s = status(v, &now());
            let risk = dotgraft_api::condition(&s.conditions, "AtRisk").unwrap();
            (s.copies.join(","), ready(v).0, risk.reason.clone())
        };
        let want = |copies: &str, ready: &str, why: &str| (copies.to_owned(), ready.to_owned(), why.to_owned());
        assert_eq!(told(&made(&["n1", "n2"])), want("n1,n2", "True", "AsExpected"));
        let mut v = made(&["n2"]);
        assert_eq!(told(&v), want("n2", "True", "AsExpected"), "one copy is what was asked for");
        v.claim.as_mut().unwrap().placement.replicas = 1;
        assert_eq!(told(&v), want("n2", "True", "OneCopy"));
        assert_eq!(told(&made(&[])), want("", "False", "NoCopyLeft"));
        let mut v = made(&["n2"]);
        v.pools[1].ready = false;
        assert_eq!(told(&v), want("", "True", "AsExpected"), "who has it is away: it isn't lost");
        v.pools.truncate(1);
        assert_eq!(told(&v), want("", "False", "NoCopyLeft"), "its disk is gone for good");
        v.replicas.clear();
        assert_eq!(told(&v).1, "True", "no Replica in the cache proves nothing");
        let mut v = made(&["n2"]);
        let copies = (crate::names::SNAPSHOT_COPIES_ANNOTATION.to_owned(), "2".to_owned());
        Arc::make_mut(&mut v.commit).metadata.annotations = Some([copies].into());
        assert_eq!(told(&v), want("n2", "True", "OneCopy"), "its class asks for two");
        // It is looked at again once one of these has changed, and only then.
        let mut v = made(&["n2"]);
        let outdated = |v: &View| is_outdated(&v.commit, v.claim.as_ref(), &kept::copies_of(&v.replicas, &v.pools));
        assert!(outdated(&v), "nothing is told yet");
        Arc::make_mut(&mut v.commit).status = Some(status(&v, &now()));
        assert!(!outdated(&v));
        v.claim.as_mut().unwrap().placement.replicas = 1;
        assert!(outdated(&v), "more are asked for");
        v.claim.as_mut().unwrap().placement.replicas = 0;
        v.replicas = made(&["n1", "n2"]).replicas;
        assert!(outdated(&v), "another node has it");
    }
}
