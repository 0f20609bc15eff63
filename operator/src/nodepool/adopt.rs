//! What becomes of an orphan: pure, over all pools that hold it.

use std::cmp::Reverse;
use std::collections::BTreeMap;
use std::sync::Arc;

use dotgraft_api::authority::read;
use dotgraft_api::{
    Authority, Claim, ConditionType, CopyRole, Desired, DesiredRole, DesiredState, Filesystem, FilesystemPhase, Orphan, OrphanActionKind,
    Place, Reason, Replica, ReplicaSpec, Word,
};
use dotgraft_engine::authority::take::{self, CompleteTo, Copy, Newest};
use dotgraft_engine::authority::{Read, Refusal};
use dotgraft_engine::ids::{Epoch, Timestamp};

use crate::conditions::Block;
use crate::filesystem::authority::complete_to;
use crate::pools::{self, PoolView};

/// One pool that holds the orphan.
#[derive(Debug, Clone)]
pub struct Holder {
    /// Node.
    pub node: String,
    /// UUID of its pool.
    pub pool: String,
    /// What the pool says of it.
    pub orphan: Orphan,
    /// What a person wants there.
    pub wanted: Option<OrphanActionKind>,
}

impl Holder {
    fn place(&self) -> Place {
        Place { node: self.node.clone(), pool: self.pool.clone() }
    }
    /// As the rules of authority see it.
    fn copy(&self) -> Option<Copy> {
        Some(Copy {
            place: (&self.place()).try_into().ok()?,
            role: match self.orphan.role {
                CopyRole::Owner => take::CopyRole::Owner,
                CopyRole::Replica | CopyRole::Receiving => take::CopyRole::Replica,
                CopyRole::Absent | CopyRole::Creating | CopyRole::Deleting => take::CopyRole::None,
            },
            epoch: Epoch(self.orphan.epoch),
            complete_to: self.complete_to(),
            newest: self.newest(),
            import_start: None,
            handed_over: None,
            wanted: true,
            ready: true,
            lost: false,
        })
    }
    fn complete_to(&self) -> Option<CompleteTo> {
        complete_to(self.orphan.complete_to.as_ref())
    }
    fn newest(&self) -> Option<Newest> {
        let id = self.orphan.head.as_ref()?.parse().ok()?;
        Some(Newest { id, epoch: self.complete_to().map_or(Epoch(self.orphan.epoch), |to| to.epoch), time: Timestamp::default() })
    }
    fn adopts(&self) -> bool {
        self.wanted != Some(OrphanActionKind::Drop)
    }
}

/// All that concerns one Filesystem.
#[derive(Debug, Clone)]
pub struct View {
    /// The Filesystem.
    pub fs_id: String,
    /// Pools that hold it as orphan.
    pub holders: Vec<Holder>,
    /// Its object, if there is one.
    pub fs: Option<Filesystem>,
    /// Its Replicas, if there are any.
    pub replicas: Vec<Arc<Replica>>,
    /// All pools, those that are gone confirmed by live reads.
    pub pools: Vec<PoolView>,
    /// Every orphan of any pool, by id: where a Branch came from may be an orphan too.
    pub orphans: BTreeMap<String, Orphan>,
}

impl View {
    /// The Replica that the pool of a holder had under another node's name.
    pub fn before(&self, h: &Holder) -> Option<&Arc<Replica>> {
        self.replicas.iter().find(|r| r.spec.pool == h.pool && r.spec.node != h.node)
    }

    /// Two nodes may hold a pool of that UUID: one is a copy of the other's disk, or the old one has not been given up.
    fn is_elsewhere(&self, h: &Holder) -> Option<Block> {
        let at = |node: &str| Place { node: node.to_owned(), pool: h.pool.clone() };
        let nodes = self.pools.iter().filter(|p| p.node != h.node && p.pool.as_ref() == Some(&h.pool)).map(|p| p.node.as_str());
        let old = self.before(h).map(|r| r.spec.node.as_str()).filter(|node| !pools::is_gone(&self.pools, &at(node)));
        let node = nodes.chain(old).next()?;
        let why = format!(
            "pool {} is on node `{}` and still recorded for node `{node}`: make sure that no machine of that name has the disk or a copy of it, then \
             `kubectl delete node {node}` and `kubectl delete nodepool {node}`",
            h.pool, h.node
        );
        Some(Block::new(Word::PoolOfAnotherNode, why))
    }
}

/// What to make anew.
#[derive(Debug, Clone, PartialEq)]
pub struct Restore {
    /// The object that it belonged to.
    pub claim: Claim,
    /// Who owns it, with an epoch that no pool has passed.
    pub authority: Authority,
    /// One per pool that holds it, and isn't known yet.
    pub replicas: Vec<ReplicaSpec>,
    /// What the owner's files say of sizes and origin.
    pub facts: Orphan,
    /// A copy says that it holds more than the owner: it stays as it is, and a person is told.
    pub ahead: Option<String>,
}

/// Outcome of `Adopt`.
#[derive(Debug, Clone, PartialEq)]
pub enum Decision {
    /// No pool reports it as orphan any more.
    Nothing,
    /// A person must do something first.
    Wait(Block),
    /// Make the objects.
    Restore(Box<Restore>),
}

fn wait(reason: impl Into<Reason>, message: impl Into<String>) -> Decision {
    Decision::Wait(Block::new(reason, message))
}

/// The claim that the pools name; the word of the highest epoch counts.
pub fn claim_of(holders: &[Holder]) -> Option<Claim> {
    holders.iter().filter(|h| h.orphan.claim.is_some()).max_by_key(|h| h.orphan.epoch)?.orphan.claim.clone()
}

/// Who owns it is decided as for `kubectl dot accept` ([`take::accept`]): the highest claim, of two owners in one epoch the one that is complete to
/// more; in an epoch past all that a pool has seen.
pub fn decide(view: &View) -> Decision {
    let holders: Vec<&Holder> = view.holders.iter().filter(|h| h.adopts()).collect();
    if holders.is_empty() {
        return Decision::Nothing;
    }
    if view.fs.as_ref().and_then(|f| f.status.as_ref()).is_some_and(|s| s.phase == FilesystemPhase::Deleting) {
        return wait(ConditionType::FilesystemDeleting, "its Filesystem is being deleted: wait until that is done");
    }
    let Some(claim) = claim_of(&view.holders) else {
        return wait(Word::ClaimUnknown, "no copy says which object it belonged to");
    };
    if let Some(block) = holders.iter().find_map(|h| view.is_elsewhere(h)) {
        return Decision::Wait(block);
    }
    let recorded = view.fs.as_ref().and_then(|f| f.status.as_ref()).and_then(|s| s.authority.clone());
    let moved = recorded.as_ref().and_then(|a| holders.iter().find(|h| h.pool == a.owner.pool && h.node != a.owner.node));
    let owner = match moved {
        Some(moved) => rehomed(view, moved).map(|authority| (authority, moved.orphan.clone())),
        None => owner(&holders, recorded),
    };
    match owner {
        Ok((authority, facts)) => Decision::Restore(Box::new(restore(view, &holders, claim, authority, facts))),
        Err(block) => Decision::Wait(block),
    }
}

/// The owner's pool under another node's name.
fn rehomed(view: &View, h: &Holder) -> Result<Authority, Block> {
    let stays =
        |why: &dyn std::fmt::Display| Block::new(Word::OwnerMissing, format!("the copy on node `{}` doesn't take over: {why}", h.node));
    let fs = view.fs.as_ref().ok_or_else(|| stays(&"its Filesystem is not there"))?;
    let read = read(fs).map_err(|e| stays(&e))?;
    let copy = h.copy().ok_or_else(|| stays(&"its pool or node has no usable name"))?;
    // That nobody holds it under its old name was seen before.
    take::rehome(&read, &copy, true).map(|a| Authority::from(&a)).map_err(|e| stays(&e))
}

fn owner(holders: &[&Holder], recorded: Option<Authority>) -> Result<(Authority, Orphan), Block> {
    if let Some(authority) = recorded {
        let facts = holders.iter().find(|h| h.place() == authority.owner).or(holders.first());
        let facts = facts.map(|h| h.orphan.clone()).unwrap_or_default();
        return Ok((authority, facts));
    }
    let copies: Vec<Copy> = holders.iter().filter_map(|h| h.copy()).collect();
    let accepted = take::accept(&Read::default(), Epoch(0), &copies).map_err(|refusal| blocked(&refusal, holders))?;
    let authority = Authority::from(&accepted);
    let facts = holders.iter().find(|h| h.place() == authority.owner).map(|h| h.orphan.clone()).unwrap_or_default();
    // More than the rule asks for: here nobody has accepted that something may be lost.
    if let Some(ahead) = holders.iter().find(|h| h.orphan.epoch > facts.epoch) {
        let why = format!(
            "node `{}` has seen epoch {}, after the owner's {}: the last owner isn't here; bring its node back, or `kubectl dot accept`",
            ahead.node, ahead.orphan.epoch, facts.epoch
        );
        return Err(Block::new(Word::OwnerMissing, why));
    }
    let attempt = holders.iter().map(|h| h.orphan.attempt).max().unwrap_or(0).saturating_add(1);
    Ok((Authority { attempt, ..authority }, facts))
}

fn blocked(refusal: &Refusal, holders: &[&Holder]) -> Block {
    if matches!(refusal, Refusal::EqualClaims(..)) {
        return Block::new(ConditionType::EqualOwners, refusal.to_string());
    }
    let best = holders.iter().filter_map(|h| Some((h.complete_to()?, h))).max_by_key(|(to, h)| (*to, Reverse(&h.node)));
    let best = best.map_or_else(String::new, |(to, h)| format!(", the most complete one, with {}, on node `{}`", shown(to), h.node));
    let why =
        format!("only read-only copies are here{best}: bring the owner's node back; without a recorded owner no copy can be promoted");
    Block::new(Word::OwnerMissing, why)
}

/// What a copy is complete to, for people.
fn shown(to: CompleteTo) -> String {
    format!("every commit up to number {} of epoch {}", to.seq, to.epoch)
}

/// A copy that says it is complete to more than the owner. Either the owner has removed its newest commit since, which its head still has, or its
/// disk has lost some: only a person can tell.
fn ahead(holders: &[&Holder], owner: &Place) -> Option<String> {
    let held = holders.iter().find(|h| h.place() == *owner)?.complete_to()?;
    let (most, copy) = holders.iter().filter_map(|h| Some((h.complete_to()?, h))).max_by_key(|(to, _)| *to).filter(|(to, _)| *to > held)?;
    let node = &copy.node;
    let (more, has) = (shown(most), shown(held));
    Some(format!("the copy on node `{node}` has {more}, the owner's has {has}: look what the owner lacks before that copy goes"))
}

fn restore(view: &View, holders: &[&Holder], claim: Claim, authority: Authority, facts: Orphan) -> Restore {
    let places: Vec<Place> = holders.iter().map(|h| h.place()).collect();
    let ahead = ahead(holders, &authority.owner);
    let replicas = holders
        .iter()
        .filter(|h| !view.replicas.iter().any(|r| r.spec.pool == h.pool && r.spec.node == h.node))
        .map(|h| {
            let place = h.place();
            let role = if place == authority.owner { DesiredRole::Owner } else { DesiredRole::Replica };
            let desired = Desired {
                state: DesiredState::Present,
                role: Some(role),
                epoch: authority.epoch,
                owner: (place != authority.owner).then(|| authority.owner.clone()),
                claim: Some(claim.clone()),
                origin: facts.origin.clone(),
                capacity: facts.capacity.max(1),
                history_limit: facts.history_limit,
                peers: places.iter().filter(|p| **p != place).take(32).cloned().collect(),
                ..Desired::default()
            };
            ReplicaSpec { fs_id: view.fs_id.clone(), node: place.node, pool: place.pool, desired }
        })
        .collect();
    Restore { claim, authority, replicas, facts, ahead }
}

/// What to record for a copy that is dropped though no Filesystem knows of it.
#[derive(Debug, Clone, PartialEq)]
pub struct Burial {
    /// The object that it belonged to.
    pub claim: Claim,
    /// Who owned it, for the record.
    pub authority: Authority,
    /// The Replica with `Absent`.
    pub replica: ReplicaSpec,
}

/// Outcome of `Drop`.
#[derive(Debug, Clone, PartialEq)]
pub enum Drop {
    /// Nothing of it is there.
    Done,
    /// A Filesystem exists: its plan sends the copy away.
    ByPlan,
    /// Not this one.
    Refused(Block),
    /// Record the intent in objects of its own.
    Bury(Box<Burial>),
}

/// A copy of a living Filesystem goes with its plan, but never the owner's; an orphan is buried.
pub fn drop_decision(view: &View, pool: &str) -> Drop {
    let authority = view.fs.as_ref().and_then(|f| f.status.as_ref()).and_then(|s| s.authority.as_ref());
    let holder = view.holders.iter().find(|h| h.pool == pool);
    let known = view.replicas.iter().any(|r| r.spec.pool == pool && holder.is_none_or(|h| h.node == r.spec.node));
    if let Some(block) = holder.and_then(|h| view.is_elsewhere(h)) {
        return Drop::Refused(block);
    }
    match (&view.fs, holder, known) {
        (Some(_), _, _) if authority.is_some_and(|a| a.owner.pool == pool) => {
            Drop::Refused(Block::new(Word::OwnerNotDropped, "this copy is the owner's: delete its Dot or Branch instead"))
        }
        (Some(fs), _, true) if fs.status.as_ref().is_some_and(|s| s.phase != FilesystemPhase::Deleting) => Drop::ByPlan,
        (_, None, _) | (Some(_), _, true) => Drop::Done,
        (_, Some(h), _) => Drop::Bury(Box::new(burial(view, h))),
    }
}

fn burial(view: &View, h: &Holder) -> Burial {
    let claim = h.orphan.claim.clone().or_else(|| claim_of(&view.holders));
    let claim = claim.unwrap_or_else(|| Claim { namespace: "default".into(), name: "unknown".into(), ..Claim::default() });
    let epoch = h.orphan.epoch.max(1);
    let desired = Desired {
        state: DesiredState::Absent,
        epoch,
        claim: Some(claim.clone()),
        origin: h.orphan.origin.clone(),
        capacity: h.orphan.capacity,
        history_limit: h.orphan.history_limit,
        ..Desired::default()
    };
    let replica = ReplicaSpec { fs_id: view.fs_id.clone(), node: h.node.clone(), pool: h.pool.clone(), desired };
    Burial { claim, authority: Authority { owner: h.place(), epoch, attempt: h.orphan.attempt, ..Authority::default() }, replica }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pools::tests::pool_id;
    use crate::testing::{FS, filesystem};

    fn holder(node: &str, role: CopyRole, epoch: u64) -> Holder {
        let claim = Some(Claim { namespace: "team".into(), name: "db".into(), ..Claim::default() });
        let orphan = Orphan { fs_id: FS.into(), role, epoch, claim, capacity: 5, history_limit: 6, ..Orphan::default() };
        Holder { node: node.into(), pool: pool_id(node), orphan, wanted: Some(OrphanActionKind::Adopt) }
    }
    fn view(holders: Vec<Holder>) -> View {
        View { fs_id: FS.into(), holders, fs: None, replicas: vec![], pools: vec![], orphans: BTreeMap::new() }
    }
    fn reason(v: &View) -> &'static str {
        match decide(v) {
            Decision::Wait(b) => b.reason.as_str(),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn the_owner_with_the_highest_epoch_owns_and_every_pool_gets_its_replica() {
        let v = view(vec![holder("n1", CopyRole::Owner, 3), holder("n2", CopyRole::Owner, 5), holder("n3", CopyRole::Replica, 5)]);
        let Decision::Restore(r) = decide(&v) else { panic!() };
        assert_eq!((r.authority.owner.node.as_str(), r.authority.epoch), ("n2", 6), "past all that a pool has seen");
        let roles: Vec<_> = r.replicas.iter().map(|s| (s.node.as_str(), s.desired.role.unwrap())).collect();
        assert_eq!(roles, [("n1", DesiredRole::Replica), ("n2", DesiredRole::Owner), ("n3", DesiredRole::Replica)]);
        assert!(r.replicas.iter().all(|s| s.desired.state == DesiredState::Present && s.desired.capacity == 5));
        let owners: Vec<_> = r.replicas.iter().map(|s| s.desired.owner.as_ref().map(|o| o.node.as_str())).collect();
        assert_eq!(owners, [Some("n2"), None, Some("n2")], "each copy but the owner's knows who may send to it");
    }

    /// Its agent says that it has everything up to that.
    fn with(mut h: Holder, epoch: u64, seq: u64) -> Holder {
        let time = dotgraft_api::Time(k8s_openapi::jiff::Timestamp::UNIX_EPOCH);
        h.orphan.complete_to = Some(dotgraft_api::CompleteTo { epoch, seq, time, commit: FS.into() });
        h.orphan.head = Some(FS.into());
        h
    }

    #[test]
    fn of_two_owners_in_one_epoch_the_more_complete_one_owns() {
        let (n1, n2) = (holder("n1", CopyRole::Owner, 3), holder("n2", CopyRole::Owner, 3));
        let Decision::Restore(r) = decide(&view(vec![with(n1.clone(), 3, 4), with(n2.clone(), 3, 7)])) else { panic!() };
        assert_eq!((r.authority.owner.node.as_str(), r.authority.epoch, r.ahead), ("n2", 4, None));
        let Decision::Restore(r) = decide(&view(vec![with(n1.clone(), 3, 4), n2.clone()])) else { panic!() };
        assert_eq!(r.authority.owner.node, "n1", "the other has no commit at all");
        let mut silent = n2;
        silent.orphan.head = Some(FS.into());
        assert_eq!(reason(&view(vec![with(n1.clone(), 3, 4), silent])), "EqualOwners", "its agent doesn't say");
        assert_eq!(reason(&view(vec![with(n1.clone(), 3, 4), with(holder("n2", CopyRole::Owner, 3), 3, 4)])), "EqualOwners");
    }

    #[test]
    fn a_copy_with_more_than_the_owner_is_told_of() {
        let (owner, copy) = (with(holder("n1", CopyRole::Owner, 3), 3, 4), with(holder("n2", CopyRole::Replica, 3), 3, 6));
        let Decision::Restore(r) = decide(&view(vec![owner.clone(), copy.clone()])) else { panic!() };
        assert_eq!(r.authority.owner.node, "n1", "its head has what it wrote");
        let said = r.ahead.unwrap();
        assert!(said.contains("`n2`") && said.contains("number 6 of epoch 3") && said.contains("number 4 of epoch 3"), "{said}");
        let Decision::Restore(r) = decide(&view(vec![owner, with(copy, 3, 4)])) else { panic!() };
        assert_eq!(r.ahead, None);
    }

    #[test]
    fn without_an_owner_the_most_complete_copy_is_named() {
        let copies = vec![with(holder("n1", CopyRole::Replica, 3), 3, 4), with(holder("n2", CopyRole::Replica, 3), 2, 9)];
        let Decision::Wait(block) = decide(&view(copies)) else { panic!() };
        assert!(
            block.reason.as_str() == "OwnerMissing" && block.message.contains("number 4 of epoch 3, on node `n1`"),
            "{}",
            block.message
        );
    }

    #[test]
    fn what_only_a_person_can_decide_waits() {
        assert_eq!(reason(&view(vec![holder("n1", CopyRole::Owner, 3), holder("n2", CopyRole::Owner, 3)])), "EqualOwners");
        assert_eq!(reason(&view(vec![holder("n1", CopyRole::Replica, 3)])), "OwnerMissing");
        assert_eq!(reason(&view(vec![holder("n1", CopyRole::Owner, 3), holder("n2", CopyRole::Replica, 4)])), "OwnerMissing");
        let mut v = view(vec![holder("n1", CopyRole::Owner, 3)]);
        v.fs = Some(filesystem(Some(FilesystemPhase::Deleting), None));
        assert_eq!(reason(&v), "FilesystemDeleting");
    }

    #[test]
    fn a_tie_ends_when_one_side_is_dropped() {
        let mut v = view(vec![holder("n1", CopyRole::Owner, 3), holder("n2", CopyRole::Owner, 3)]);
        v.holders[0].wanted = Some(OrphanActionKind::Drop);
        let Decision::Restore(r) = decide(&v) else { panic!() };
        assert_eq!(r.authority.owner.node, "n2");
        assert_eq!(r.replicas.len(), 1);
    }

    #[test]
    fn an_authority_that_is_recorded_is_kept() {
        let mut v = view(vec![holder("n1", CopyRole::Owner, 3)]);
        let authority = Authority { owner: Place { node: "n9".into(), pool: pool_id("n9") }, epoch: 9, ..Authority::default() };
        v.fs = Some(filesystem(Some(FilesystemPhase::Active), Some(authority.clone())));
        let Decision::Restore(r) = decide(&v) else { panic!() };
        assert_eq!(r.authority, authority);
        assert_eq!(r.replicas[0].desired.role, Some(DesiredRole::Replica));
    }

    /// The pool of `n1`, whose owner it is in epoch 4, came up on `n9`.
    fn moved(role: CopyRole, epoch: u64) -> View {
        let mut v = view(vec![Holder { node: "n9".into(), ..holder("n1", role, epoch) }]);
        let owner = Place { node: "n1".into(), pool: pool_id("n1") };
        let to = Place { node: "n2".into(), pool: pool_id("n2") };
        let pending = dotgraft_api::Pending { mig: FS.into(), attempt: 2, to, final_commit: FS.into() };
        let authority = Authority { owner, epoch: 4, attempt: 2, pending: Some(pending), ..Authority::default() };
        v.fs = Some(filesystem(Some(FilesystemPhase::Active), Some(authority)));
        let spec = ReplicaSpec { fs_id: FS.into(), node: "n1".into(), pool: pool_id("n1"), ..ReplicaSpec::default() };
        v.replicas = vec![Arc::new(Replica::new("r", spec))];
        v
    }

    #[test]
    fn an_owners_pool_under_another_name_owns_on_one_epoch_later() {
        let v = moved(CopyRole::Owner, 4);
        let Decision::Restore(r) = decide(&v) else { panic!("{:?}", decide(&v)) };
        let a = &r.authority;
        assert_eq!((a.owner.node.as_str(), a.owner.pool.clone(), a.epoch, a.attempt), ("n9", pool_id("n1"), 5, 3));
        assert!(a.pending.is_none() && a.opened.is_none(), "{a:?}");
        let made: Vec<_> = r.replicas.iter().map(|s| (s.node.as_str(), s.desired.role, s.desired.epoch)).collect();
        assert_eq!(made, [("n9", Some(DesiredRole::Owner), 5)]);
        assert_eq!(v.before(&v.holders[0]).unwrap().spec.node, "n1", "it makes way");
        // Adopted half-way: authority is there, the old object is gone.
        let mut half = moved(CopyRole::Owner, 4);
        half.replicas.clear();
        half.fs = Some(filesystem(Some(FilesystemPhase::Active), Some(a.clone())));
        let Decision::Restore(again) = decide(&half) else { panic!() };
        assert_eq!((again.authority.epoch, again.replicas.len()), (5, 1));
    }

    #[test]
    fn a_pool_that_two_nodes_may_hold_is_neither_adopted_nor_dropped() {
        let mut v = moved(CopyRole::Owner, 4);
        v.pools = vec![PoolView { node: "n1".into(), pool: Some(pool_id("n1")), node_exists: true, ..PoolView::default() }];
        assert_eq!(reason(&v), "PoolOfAnotherNode");
        assert!(matches!(drop_decision(&v, &pool_id("n1")), Drop::Refused(b) if b.reason.as_str() == "PoolOfAnotherNode"));
        // No object of ours names the other one, and its machine is up with a copy of the disk.
        v.replicas.clear();
        v.pools[0].node_exists = false;
        assert_eq!(reason(&v), "PoolOfAnotherNode");
        v.pools[0].pool = Some(pool_id("n7"));
        assert!(matches!(decide(&v), Decision::Restore(_)), "another disk is there now");
    }

    #[test]
    fn what_the_pool_no_longer_owns_stays_another_nodes() {
        assert_eq!(reason(&moved(CopyRole::Owner, 3)), "OwnerMissing", "the disk is of before the last move");
        assert_eq!(reason(&moved(CopyRole::Replica, 4)), "OwnerMissing");
        let mut copy = moved(CopyRole::Replica, 4);
        let elsewhere = Authority { owner: Place { node: "n2".into(), pool: pool_id("n2") }, epoch: 4, ..Authority::default() };
        copy.fs = Some(filesystem(Some(FilesystemPhase::Active), Some(elsewhere.clone())));
        let Decision::Restore(r) = decide(&copy) else { panic!() };
        assert_eq!(r.authority, elsewhere, "a read-only copy comes back as one");
        assert_eq!(r.replicas[0].node, "n9");
        assert!(matches!(drop_decision(&copy, &pool_id("n1")), Drop::Bury(b) if b.replica.node == "n9"));
    }

    #[test]
    fn adopting_what_no_pool_reports_is_done() {
        assert_eq!(decide(&view(vec![])), Decision::Nothing);
    }

    #[test]
    fn a_drop_never_takes_a_living_owner_and_buries_an_orphan() {
        let mut v = view(vec![holder("n1", CopyRole::Owner, 3)]);
        let Drop::Bury(b) = drop_decision(&v, &pool_id("n1")) else { panic!() };
        assert_eq!((b.replica.desired.state, b.replica.desired.epoch), (DesiredState::Absent, 3));
        assert_eq!(drop_decision(&v, &pool_id("n2")), Drop::Done);
        let authority = Authority { owner: Place { node: "n1".into(), pool: pool_id("n1") }, epoch: 3, ..Authority::default() };
        v.fs = Some(filesystem(Some(FilesystemPhase::Active), Some(authority)));
        assert!(matches!(drop_decision(&v, &pool_id("n1")), Drop::Refused(_)));
    }
}
