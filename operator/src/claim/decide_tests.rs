//! The table of steps of a claim.

use dotgraft_api::{ConditionType, Time};
use k8s_openapi::jiff::Timestamp;

use super::*;
use crate::testing::{FS, claim, filesystem};

fn view(edit: impl FnOnce(&mut View)) -> View {
    let mut v = View::of(claim());
    v.fs = Some(filesystem(Some(FilesystemPhase::Active), None));
    edit(&mut v);
    v
}
fn new(edit: impl FnOnce(&mut View)) -> View {
    view(|v| {
        (v.fs, v.claim.fs_id, v.claim.held, v.claim.allocated, v.claim.had_filesystem) = (None, None, false, false, false);
        edit(v);
    })
}
fn going(edit: impl FnOnce(&mut View)) -> View {
    view(|v| {
        v.claim.deleting = true;
        edit(v);
    })
}
fn step_of(v: &View) -> Step {
    let d = decide(v);
    assert_eq!(d.block, None);
    d.step.expect("a step")
}
fn reason(v: &View) -> &'static str {
    let d = decide(v);
    assert_eq!(d.step, None);
    d.block.expect("a block").reason.as_str()
}
fn child(name: &str, deleting: bool) -> Child {
    Child { name: name.into(), deleting }
}

#[test]
fn a_new_claim_gets_an_id_then_a_filesystem_then_its_phase() {
    assert_eq!(step_of(&new(|_| {})), Step::Allocate);
    let mut v = new(|v| {
        (v.claim.fs_id, v.claim.held, v.claim.allocated) = (Some(FS.into()), true, true);
    });
    assert_eq!(step_of(&v), Step::Create(None));
    v.fs = Some(filesystem(None, None));
    assert_eq!(step_of(&v), Step::Start);
    v.fs = Some(filesystem(Some(FilesystemPhase::New), None));
    assert_eq!(decide(&v), Decision::default());
}

#[test]
fn a_new_claim_waits_while_its_namespace_may_take_no_more() {
    let over = || Some(Block::new(ConditionType::CapacityLimit, "full"));
    assert_eq!(reason(&new(|v| v.over = over())), "CapacityLimit");
    assert_eq!(decide(&view(|v| v.over = over())), Decision::default(), "one that is there goes on");
}

#[test]
fn a_name_that_has_data_never_gets_an_empty_filesystem() {
    assert_eq!(reason(&new(|v| v.namesakes = vec![FS.into()])), "NameHasData");
    assert_eq!(reason(&new(|v| v.strangers = true)), "NameHasData");
}

#[test]
fn a_restored_object_never_gets_an_empty_filesystem() {
    // Restored: it carries an id, but not one that was allocated for this very object.
    let v = new(|v| (v.claim.fs_id, v.claim.held) = (Some(FS.into()), true));
    assert_eq!(reason(&v), "FilesystemNotFound");
    // The Filesystem object was lost while the claim stayed.
    assert_eq!(reason(&view(|v| v.fs = None)), "FilesystemNotFound");
    // Both were restored without status: what looks new is not.
    let v = view(|v| {
        v.fs = Some(filesystem(None, None));
        v.claim.uid = "another".into();
        v.claim.allocated = false;
    });
    assert_eq!(step_of(&v), Step::Bind);
    let v = view(|v| v.fs = Some(filesystem(None, None)));
    assert_eq!(decide(&v), Decision::default(), "it had a Filesystem before: phase New is not written");
}

#[test]
fn a_restored_object_binds_to_its_own_filesystem_only() {
    let restored = |v: &mut View| (v.claim.uid, v.claim.allocated) = ("another".into(), false);
    assert_eq!(step_of(&view(restored)), Step::Bind);
    let v = view(|v| {
        restored(v);
        let named = v.fs.take();
        v.look_at(named);
    });
    assert!(v.fs.is_none(), "nobody knows which namespace it is in: it sees nothing");
    assert_eq!(reason(&v), "ClaimMismatch");
    assert_eq!(step_of(&View { claim: going(|_| {}).claim, ..v.clone() }), Step::LetGo);
    let mut unheld = v;
    unheld.claim.held = false;
    assert_eq!(reason(&unheld), "ClaimMismatch", "it isn't held for what it doesn't have");
    let v = view(|v| {
        restored(v);
        v.fs = Some(filesystem(Some(FilesystemPhase::Deleting), None));
    });
    assert_eq!(reason(&v), "FilesystemDeleting");
    let v = view(|v| v.fs = Some(filesystem(Some(FilesystemPhase::Released), None)));
    assert_eq!(step_of(&v), Step::Bind);
}

#[test]
fn a_branch_waits_for_its_source_without_holding_anything() {
    let mut v = new(|v| v.claim.kind = ClaimKind::Branch);
    v.origin = Some(Err(Block::new(ConditionType::NoCommits, "x")));
    assert_eq!(reason(&v), "NoCommits");
    v.origin = Some(Ok(Origin { fs_id: FS.into(), commit: FS.into() }));
    assert_eq!(step_of(&v), Step::Allocate);
    (v.claim.fs_id, v.claim.held, v.claim.allocated) = (Some(FS.into()), true, true);
    assert!(matches!(step_of(&v), Step::Create(Some(_))));
    v.origin = None;
    assert_eq!(reason(&v), "SourceNotReady");
}

#[test]
fn deletion_is_recorded_before_the_claim_goes() {
    assert_eq!(step_of(&going(|_| {})), Step::Mark(FilesystemPhase::Deleting));
    let deleting = |v: &mut View| v.fs = Some(filesystem(Some(FilesystemPhase::Deleting), None));
    assert_eq!(step_of(&going(deleting)), Step::LetGo);
    let v = going(|v| {
        deleting(v);
        v.mounts = vec!["pod x".into()];
    });
    assert_eq!(reason(&v), "Mounted");
    assert!(decide(&v).block.unwrap().message.contains("pod x"));
}

#[test]
fn retain_releases_and_keeps_branches() {
    let retain = |v: &mut View| {
        v.claim.deletion_policy = DeletionPolicy::Retain;
        v.children = vec![child("b", false)];
    };
    assert_eq!(step_of(&going(retain)), Step::Mark(FilesystemPhase::Released));
    let v = going(|v| {
        retain(v);
        v.fs = Some(filesystem(Some(FilesystemPhase::Released), None));
    });
    assert_eq!(step_of(&v), Step::LetGo);
}

#[test]
fn branches_hold_a_dot_under_delete_and_go_first_under_cascade() {
    let v = going(|v| v.children = vec![child("b1", false), child("b2", true)]);
    assert_eq!(reason(&v), "BranchesExist");
    assert!(decide(&v).block.unwrap().message.contains("b1, b2"));
    let mut v = going(|v| {
        v.claim.deletion_policy = DeletionPolicy::Cascade;
        v.children = vec![child("b1", false), child("b2", true)];
    });
    let d = decide(&v);
    assert_eq!(d.step, Some(Step::DeleteChildren(vec!["b1".into()])));
    assert_eq!(d.block.unwrap().reason, ConditionType::BranchesExist.into());
    v.children = vec![child("b1", true)];
    assert_eq!(reason(&v), "BranchesExist");
    v.children.clear();
    assert_eq!(step_of(&v), Step::Mark(FilesystemPhase::Deleting));
}

#[test]
fn what_is_missing_or_another_ones_does_not_hold_a_deletion() {
    assert_eq!(step_of(&going(|v| v.fs = None)), Step::LetGo);
    assert_eq!(step_of(&going(|v| v.claim.uid = "another".into())), Step::LetGo);
    assert_eq!(decide(&going(|v| v.claim.held = false)), Decision::default());
}

#[test]
fn a_filesystem_in_deletion_is_not_rescued_by_retain() {
    let v = going(|v| {
        v.claim.deletion_policy = DeletionPolicy::Retain;
        v.fs = Some(filesystem(Some(FilesystemPhase::Deleting), None));
    });
    assert_eq!(step_of(&v), Step::LetGo);
    let _ = Time(Timestamp::UNIX_EPOCH);
}

#[test]
fn a_dot_with_snapshots_goes_and_leaves_them_their_filesystem() {
    let mut v = going(|v| v.snapshots = 1);
    assert_eq!(step_of(&v), Step::Mark(FilesystemPhase::Headless));
    v.fs = Some(filesystem(Some(FilesystemPhase::Headless), None));
    v.mounts = vec!["x".into()];
    assert_eq!(reason(&v), "Mounted");
    v.mounts.clear();
    v.unconfirmed = vec!["n1".into()];
    assert_eq!(step_of(&v), Step::LetGo, "no copy goes now");
    v.snapshots = 0;
    assert_eq!(step_of(&v), Step::Mark(FilesystemPhase::Deleting), "the last one went meanwhile");
    assert_eq!(
        step_of(&going(|v| (v.snapshots, v.claim.deletion_policy) = (1, DeletionPolicy::Retain))),
        Step::Mark(FilesystemPhase::Released)
    );
}

#[test]
fn nobody_takes_up_a_filesystem_without_a_head() {
    let v = view(|v| v.fs = Some(filesystem(Some(FilesystemPhase::Headless), None)));
    assert_eq!(reason(&v), "Headless");
}

#[test]
fn a_dot_with_an_origin_is_never_made_empty() {
    let origin = Origin { fs_id: FS.into(), commit: FS.into() };
    let mut v = new(|v| {
        (v.claim.fs_id, v.claim.held, v.claim.allocated) = (Some(FS.into()), true, true);
        v.claim.origin = Some(origin.clone());
    });
    assert_eq!(reason(&v), "SourceNotReady");
    v.origin = Some(Err(Block::new(ConditionType::SourceNotFound, "x")));
    assert_eq!(reason(&v), "SourceNotFound");
    v.origin = Some(Ok(origin.clone()));
    assert_eq!(step_of(&v), Step::Create(Some(origin)));
}

#[test]
fn a_bound_pvc_holds_a_deletion_up_and_is_named() {
    for policy in [DeletionPolicy::Delete, DeletionPolicy::Retain] {
        let v = going(|v| (v.bound, v.claim.deletion_policy) = (vec!["team/data".into()], policy));
        assert_eq!(reason(&v), "ClaimBound");
        assert!(decide(&v).block.unwrap().message.contains("team/data"));
    }
}

#[test]
fn who_reads_a_snapshot_holds_no_dot_that_leaves_it() {
    let held = |mounts: &[&str], snapshots| {
        going(|v| {
            v.mounts = mounts.iter().map(|m| format!("{m} on node n1")).collect();
            v.snapshots = snapshots;
            v.fs = Some(filesystem(Some(if snapshots > 0 { FilesystemPhase::Headless } else { FilesystemPhase::Deleting }), None));
        })
    };
    assert_eq!(step_of(&held(&["/x (commit)"], 1)), Step::LetGo);
    assert_eq!(reason(&held(&["/x (commit)", "/y"], 1)), "Mounted");
    assert_eq!(reason(&held(&["/x (commit)"], 0)), "Mounted", "nothing is kept for it");
}

#[test]
fn what_a_persistent_volume_keeps_outlives_the_claim_and_no_other_namespace_holds_that_up() {
    let kept = |edit: &dyn Fn(&mut View)| {
        going(|v| {
            v.kept = true;
            edit(v);
        })
    };
    assert_eq!(step_of(&kept(&|v| v.children = vec![child("b", false)])), Step::Mark(FilesystemPhase::Released));
    assert_eq!(step_of(&kept(&|v| v.snapshots = 1)), Step::Mark(FilesystemPhase::Released));
    assert_eq!(step_of(&kept(&|v| v.bound = vec!["other/data".into()])), Step::Mark(FilesystemPhase::Released));
    let v = kept(&|v| v.bound = vec!["other/data".into(), "team/data".into()]);
    assert_eq!(reason(&v), "ClaimBound");
    assert!(!decide(&v).block.unwrap().message.contains("other"), "it learns nothing of other namespaces");
    let mut v = kept(&|v| v.fs = Some(filesystem(Some(FilesystemPhase::Released), None)));
    v.mounts = vec!["a pod of another namespace".into()];
    assert_eq!(step_of(&v), Step::LetGo);
}
