//! Between the engine's base row and `fs.json`.

use dotgraft_engine::filesystem::{Base, Life, Opened, Role};
use dotgraft_engine::format::Kind;
use dotgraft_engine::ids::PoolId;

use crate::driver::{FsMeta, FsState};

/// What goes to disk.
pub fn meta_of(base: &Base, pool: PoolId) -> FsMeta {
    FsMeta {
        version: Kind::FsFile.newest(),
        fs_id: base.fs_id,
        pool,
        role: base.role,
        state: match base.life {
            Life::Deleting | Life::Gone => FsState::Deleting,
            Life::Creating | Life::Active => FsState::Active,
        },
        claim: base.claim.clone(),
        capacity: base.capacity,
        history_limit: base.history_limit,
        origin_bytes: base.origin_bytes,
        shares_origin: base.shares_origin,
        fencing: base.fencing.clone(),
        reclaim_policy: base.reclaim_policy.clone(),
        origin: base.origin,
        qgroup: base.qgroup,
        epoch: base.epoch,
        attempt: base.attempt,
        opened: base.opened.map(|o| o.boot),
        headless: base.headless,
    }
}

/// What comes from disk when the journal knows nothing. An owner without a head is one whose creation did not end, or one that
/// only keeps its commits.
pub fn base_of(meta: &FsMeta, head: bool) -> Base {
    let life = match meta.state {
        FsState::Deleting => Life::Deleting,
        FsState::Active if meta.role == Role::Owner && !head && !meta.headless => Life::Creating,
        FsState::Active => Life::Active,
    };
    Base {
        version: Kind::Base.newest(),
        fs_id: meta.fs_id,
        role: meta.role,
        life,
        qgroup: meta.qgroup,
        claim: meta.claim.clone(),
        origin: meta.origin,
        capacity: meta.capacity,
        history_limit: meta.history_limit,
        origin_bytes: meta.origin_bytes,
        shares_origin: meta.shares_origin,
        fencing: meta.fencing.clone(),
        reclaim_policy: meta.reclaim_policy.clone(),
        epoch: meta.epoch,
        attempt: meta.attempt,
        opened: meta.opened.map(|boot| Opened { epoch: meta.epoch, boot, used: false }),
        frozen: None,
        head_from: None,
        reset_to: None,
        seen_version: None,
        superseded: false,
        unsure: false,
        headless: meta.headless,
    }
}
