//! Opening pools: by identity, once, never over something else (storage.md §1; failures.md rows 24, 25, 28).

mod btrfs_support;

use std::fs;

use btrfs_support::*;
use dotgraft_agent::btrfs::PoolError;
use dotgraft_agent::driver::{Driver, MountWhat};
use dotgraft_engine::model::Origin;

#[test]
fn a_new_pool_goes_through_a_whole_life() {
    let t = TestPool::new(2048);
    let v = t.volume(512);
    fs::write(t.head(v.fs).join("a"), b"one").unwrap();
    let c1 = v.next(None);
    t.commit(v.n, &c1).unwrap();
    assert!(!t.head_changed_since(v.fs, c1.id).unwrap());
    fs::write(t.head(v.fs).join("a"), b"two").unwrap();
    assert!(t.head_changed_since(v.fs, c1.id).unwrap());
    let c2 = v.next(Some(c1.id));
    t.commit(v.n, &c2).unwrap();

    let target = t.target("pod");
    t.mount(v.fs, MountWhat::Head, &target, false).unwrap();
    assert_eq!(fs::read(target.join("a")).unwrap(), b"two");
    t.unmount(&target).unwrap();

    let branch = t.meta(512 * MIB);
    t.prepare(&branch).unwrap();
    t.create_head(branch.fs_id, branch.qgroup, Some(Origin { fs_id: v.fs, commit: c1.id })).unwrap();
    assert_eq!(fs::read(t.head(branch.fs_id).join("a")).unwrap(), b"one");

    let found = t.inspect(v.fs).unwrap();
    assert_eq!(found.commits.iter().map(|c| c.id).collect::<Vec<_>>(), [c1.id, c2.id]);
    assert!(found.head && found.broken.is_empty());
    assert_eq!(found.meta, Some(v.meta.clone()));

    let c3 = v.next(Some(c2.id));
    t.fence(v.n, &c3).unwrap();
    assert!(t.is_fenced(v.fs).unwrap());
    assert!(fs::write(t.head(v.fs).join("a"), b"no").is_err());
    t.thaw(v.fs).unwrap();
    fs::write(t.head(v.fs).join("a"), b"three").unwrap();

    t.delete_commit(v.fs, c1.id).unwrap();
    t.destroy(v.fs, v.n).unwrap();
    assert!(!t.path(v.fs, "").exists());
    assert_eq!(t.list().unwrap(), [branch.fs_id]);
}

#[test]
fn an_empty_pool_is_refused_to_the_second_agent() {
    let t = TestPool::new(512);
    let second = t.place.open(None);
    assert!(matches!(second, Err(PoolError::InUse(_))), "{second:?}");
    assert_eq!(t.place.loops().len(), 1);
}
