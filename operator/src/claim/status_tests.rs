//! The table of a claim's conditions.

use dotgraft_api::{ConditionType, CopyRole, Desired, DesiredRole, Migration, ReplicaSpec, Word};
use k8s_openapi::jiff::Timestamp;

use super::*;
use crate::filesystem::spare::Marks;
use crate::pools::tests::{pool, pool_id};
use crate::testing::{self, FS, claim, filesystem};

struct Case {
    view: View,
    replicas: Vec<Arc<Replica>>,
    pools: Vec<PoolView>,
}

fn copy(node: &str, role: CopyRole) -> Replica {
    let desired = Desired { role: Some(DesiredRole::Owner), epoch: 1, capacity: 1, ..Desired::default() };
    let spec = ReplicaSpec { fs_id: FS.into(), node: node.into(), pool: pool_id(node), desired };
    testing::replica(spec, Marks::default(), role)
}
fn case() -> Case {
    let owner = Place { node: "n1".into(), pool: pool_id("n1") };
    let authority = Authority { owner, epoch: 1, ..Authority::default() };
    let fs = filesystem(Some(FilesystemPhase::Active), Some(authority));
    let view = View { fs: Some(fs), ..View::of(claim()) };
    Case { view, replicas: vec![Arc::new(copy("n1", CopyRole::Owner))], pools: vec![pool("n1", 1), pool("n2", 1)] }
}
fn of(case: &Case, block: Option<&Block>) -> DotStatus {
    let fs = case.view.fs.as_ref();
    let authority = fs.and_then(|f| f.status.as_ref()).and_then(|s| s.authority.as_ref());
    let input = Input {
        view: &case.view,
        block,
        authority,
        replicas: &case.replicas,
        pools: &case.pools,
        claims: vec!["data".into()],
        stays: Vec::new(),
        limited: None,
    };
    compute(&input, &DotStatus::default(), &Time(Timestamp::UNIX_EPOCH))
}
fn reason(s: &DotStatus, type_: &str) -> (String, String) {
    let c = condition(&s.conditions, type_).unwrap();
    (c.status.clone(), c.reason.clone())
}
fn says(s: &DotStatus, type_: &str, status: &str, why: &str) {
    assert_eq!(reason(s, type_), (status.to_owned(), why.to_owned()));
}

#[test]
fn ready_when_the_owner_says_so() {
    let mut c = case();
    says(&of(&c, None), "Ready", "True", "Ready");
    c.replicas = vec![Arc::new(copy("n1", CopyRole::Creating))];
    says(&of(&c, None), "Ready", "False", "Creating");
    c.replicas.clear();
    says(&of(&c, None), "Ready", "False", "Creating");
}

#[test]
fn an_owner_that_is_down_or_gone_is_named() {
    let mut c = case();
    c.pools[0].ready = false;
    says(&of(&c, None), "Ready", "False", "OwnerNotReady");
    c.pools[0].node_exists = false;
    says(&of(&c, None), "Ready", "False", "OwnerLost");
}

#[test]
fn a_block_stands_in_ready_and_as_its_own_condition() {
    let b = Block::new(ConditionType::BranchesExist, "b1, b2");
    let s = of(&case(), Some(&b));
    says(&s, "Ready", "False", "BranchesExist");
    says(&s, "BranchesExist", "True", "BranchesExist");
}

#[test]
fn what_the_owners_agent_says_of_authority_is_mirrored() {
    let mut c = case();
    let mut r = copy("n1", CopyRole::Owner);
    let list = [wanted(ConditionType::EpochRegression, true, ConditionType::EpochRegression, "accept")];
    r.status.as_mut().unwrap().conditions = conditions::merge(&[], &list, None, &Time(Timestamp::UNIX_EPOCH));
    c.replicas = vec![Arc::new(r)];
    let s = of(&c, None);
    says(&s, "EpochRegression", "True", "EpochRegression");
    says(&s, "Ready", "False", "EpochRegression");
}

/// Tenants read no Replicas (issue 12, 2.7).
#[test]
fn whatever_stands_in_the_way_of_any_copy_stands_on_the_claim() {
    let said_by = |node: &str, type_: ConditionType| {
        let mut c = case();
        let (mut owner, mut other) = (copy("n1", CopyRole::Owner), copy("n2", CopyRole::Replica));
        let list = [wanted(type_, type_ != ConditionType::Opened, ConditionType::NoSpace, "why")];
        let who = if node == "n1" { &mut owner } else { &mut other };
        who.status.as_mut().unwrap().conditions = conditions::merge(&[], &list, None, &Time(Timestamp::UNIX_EPOCH));
        c.replicas = vec![Arc::new(owner), Arc::new(other)];
        c
    };
    let also = [ConditionType::Opened, ConditionType::Mounted];
    for type_ in ConditionType::OF_COPIES.iter().chain(&also) {
        for (node, message) in [("n1", "why"), ("n2", "on node `n2`: why")] {
            let s = of(&said_by(node, *type_), None);
            let c = condition(&s.conditions, *type_).unwrap_or_else(|| panic!("{type_} of {node} doesn't reach the claim"));
            assert_eq!((c.reason.as_str(), c.message.as_str()), ("NoSpace", message), "{type_}");
        }
    }
    let mut deleting = said_by("n2", ConditionType::DeletionBlocked);
    deleting.view.claim.deleting = true;
    let ready = condition(&of(&deleting, None).conditions, "Ready").unwrap().clone();
    assert_eq!((ready.reason.as_str(), ready.message.as_str()), ("Deleting", "the data is being deleted; on node `n2`: why"));
}

#[test]
fn a_copy_that_is_missing_says_why_it_does_not_come() {
    let mut c = case();
    c.view.claim.placement.replicas = 1;
    let mut owner = copy("n1", CopyRole::Owner);
    let peer = Place { node: "n2".into(), pool: pool_id("n2") };
    owner.spec.desired.jobs = vec![dotgraft_api::JobWish { uid: FS.into(), peer, ..Default::default() }];
    let report = serde_json::json!({"state": "WorkingWait", "attempt": 1, "startedAt": 1, "stepsDone": 0, "stepsTotal": 1, "replicatedBytes": 0,
        "imprecise": false, "attempts": [], "problem": {"reason": "NoSpace", "message": "the pool is full"}});
    let job = serde_json::json!({"uid": FS, "report": report});
    owner.status.as_mut().unwrap().jobs = vec![serde_json::from_value(job).unwrap()];
    c.replicas = vec![Arc::new(owner)];
    let degraded = condition(&of(&c, None).conditions, "Degraded").unwrap().clone();
    assert!(degraded.message.ends_with("; to node `n2`: the pool is full (NoSpace)"), "{}", degraded.message);
}

#[test]
fn a_move_that_can_t_be_is_refused_aloud_and_one_that_can_be_is_told() {
    let mut c = case();
    c.view.claim.placement.node = Some("n9".into());
    let s = of(&c, None);
    says(&s, "PlacementRefused", "True", "NodeCantTakeIt");
    says(&s, "Ready", "True", "Ready");
    c.view.claim.placement.node = Some("n2".into());
    says(&of(&c, None), "Migrating", "True", "Waiting");
    let mut owner = copy("n1", CopyRole::Owner);
    let told = Migration { to: "n2".into(), phase: "WaitingForPods".into(), message: "sleep (pid 7)".into(), ..Migration::default() };
    owner.status.as_mut().unwrap().migration = Some(told);
    c.replicas = vec![Arc::new(owner)];
    let s = of(&c, None);
    says(&s, "Migrating", "True", "WaitingForPods");
    assert!(condition(&s.conditions, "Migrating").unwrap().message.contains("sleep (pid 7)"));
}

#[test]
fn of_two_moves_in_one_second_the_later_is_told() {
    let mut c = case();
    let at = dotgraft_api::Time(k8s_openapi::jiff::Timestamp::UNIX_EPOCH);
    let moved = |id: &str, to: &str| Migration { id: id.into(), to: to.into(), started_at: Some(at.clone()), ..Migration::default() };
    for swap in [false, true] {
        let (mut a, mut b) = (copy("n1", CopyRole::Owner), copy("n2", CopyRole::Replica));
        a.status.as_mut().unwrap().migration = Some(moved("01a1fe0e-c522-76bb-9e7c-11d16a3ab9e3", "n2"));
        b.status.as_mut().unwrap().migration = Some(moved("01a1fe0e-c5f0-7000-8000-000000000000", "n1"));
        c.replicas = if swap { vec![Arc::new(b), Arc::new(a)] } else { vec![Arc::new(a), Arc::new(b)] };
        assert_eq!(of(&c, None).migration.unwrap().to, "n1");
    }
}

#[test]
fn between_two_tries_a_move_says_what_ended_the_last_one_or_what_keeps_the_next() {
    let mut c = case();
    c.view.claim.placement.node = Some("n2".into());
    let mut owner = copy("n1", CopyRole::Owner);
    let at = dotgraft_api::Time(k8s_openapi::jiff::Timestamp::UNIX_EPOCH);
    let (phase, message) = ("Cancelled".to_owned(), "it has diverged".to_owned());
    let told = Migration { to: "n2".into(), phase, message, finished_at: Some(at.clone()), ..Migration::default() };
    owner.status.as_mut().unwrap().migration = Some(told);
    c.replicas = vec![Arc::new(owner)];
    let message = |c: &Case| condition(&of(c, None).conditions, "Migrating").unwrap().message.clone();
    says(&of(&c, None), "Migrating", "True", "Waiting");
    assert!(message(&c).contains("given up: it has diverged"), "{}", message(&c));
    let mut kept = copy("n2", CopyRole::Owner);
    kept.status.as_mut().unwrap().conditions.push(Condition {
        type_: "Superseded".into(),
        status: "True".into(),
        reason: "NotOwner".into(),
        message: String::new(),
        last_transition_time: at,
        observed_generation: None,
    });
    c.replicas.push(Arc::new(kept));
    assert!(message(&c).contains(&format!("kubectl dot drop {FS} --node n2")), "{}", message(&c));
}

#[test]
fn missing_copies_degrade() {
    let mut c = case();
    c.view.claim.placement.replicas = 1;
    says(&of(&c, None), "Degraded", "True", "CopiesMissing");
    let mut r = copy("n2", CopyRole::Replica);
    r.status.as_mut().unwrap().head = Some(FS.into());
    c.replicas.push(Arc::new(r));
    says(&of(&c, None), "Degraded", "False", "AsExpected");
    c.pools.iter_mut().filter(|p| p.node == "n2").for_each(|p| p.ready = false);
    says(&of(&c, None), "Degraded", "True", "CopiesMissing");
}

#[test]
fn one_line_per_node_the_owner_first_a_tombstone_hidden() {
    let mut c = case();
    let mut old = copy("n2", CopyRole::Replica);
    (old.spec.pool, old.spec.desired.state) = (pool_id("n9"), DesiredState::Absent);
    c.replicas.insert(0, Arc::new(old));
    c.replicas.insert(0, Arc::new(copy("n2", CopyRole::Receiving)));
    let lines: Vec<_> = of(&c, None).replicas.into_iter().map(|r| (r.node, r.state)).collect();
    assert_eq!(lines, [("n1".into(), "Owner".into()), ("n2".to_owned(), "Receiving".to_owned())]);
}

#[test]
fn the_id_stays_when_the_filesystem_is_lost() {
    let mut c = case();
    c.view.fs = None;
    let input = Input {
        view: &c.view,
        block: None,
        authority: None,
        replicas: &[],
        pools: &[],
        claims: Vec::new(),
        stays: Vec::new(),
        limited: None,
    };
    let old = DotStatus { fs_id: Some(FS.into()), ..DotStatus::default() };
    assert_eq!(compute(&input, &old, &Time(Timestamp::UNIX_EPOCH)).fs_id.as_deref(), Some(FS));
    assert_eq!(compute(&input, &DotStatus::default(), &Time(Timestamp::UNIX_EPOCH)).fs_id, None);
}

#[test]
fn a_copy_that_may_not_go_is_told_of() {
    assert!(staying(&[]).is_none());
    let stay =
        |node: &str| Stay { at: Place { node: node.into(), pool: String::new() }, why: "no other copy is known to hold `s2`".into() };
    let told = staying(&[stay("n2"), stay("n3")]).unwrap();
    assert_eq!((told.type_(), told.reason()), ("CopyStays", Some(Word::LastCopyOfCommit.into())));
    assert!(told.message().contains("n2") && told.message().contains("`s2`") && told.message().contains("1 more"), "{}", told.message());
}
