//! What wakes the controllers of PVCs and their PVs.

use std::sync::Arc;

use dotgraft_api::{Branch, Commit, Dot, Filesystem, FilesystemPhase};
use k8s_openapi::api::core::v1::{PersistentVolume, PersistentVolumeClaim};
use kube::ResourceExt;

use super::decide;
use crate::caches::{claim_term, fs_term};
use crate::context::Ctx;
use crate::csi;
use crate::handle;
use crate::triggers::{Triggers, on, refs};

/// PVCs that may be waiting for what they name, or for it to be free.
pub fn of_claims(ctx: &Arc<Ctx>) -> Triggers<PersistentVolumeClaim> {
    let c = &ctx.caches;
    let naming = |kind: &str, namespace: Option<String>, name: &str, ctx: &Ctx| {
        let mut list = ctx.caches.claims.with(&claim_term(kind, &namespace.unwrap_or_default(), name));
        list.retain(|p| decide::source(p).is_some());
        refs(&list)
    };
    vec![
        on(&c.dots, ctx, move |d: &Dot, ctx| naming("Dot", d.namespace(), &d.name_any(), ctx)),
        on(&c.branches, ctx, move |b: &Branch, ctx| naming("Branch", b.namespace(), &b.name_any(), ctx)),
        on(&c.commits, ctx, move |o: &Commit, ctx| naming("Commit", o.namespace(), &o.name_any(), ctx)),
        on(&c.volumes, ctx, move |v: &PersistentVolume, ctx| {
            let fs = handle::filesystem_of(v).and_then(|id| ctx.caches.filesystems.get(&id));
            fs.map(|f| f.spec.claim_ref.claim()).map(|c| naming(c.kind.as_str(), Some(c.namespace), &c.name, ctx)).unwrap_or_default()
        }),
    ]
}

/// The PV of a PVC, which may be gone, and those of a Filesystem, which may be released.
pub fn of_volumes(ctx: &Arc<Ctx>) -> Triggers<PersistentVolume> {
    let of_claim = on(&ctx.caches.claims, ctx, |p: &PersistentVolumeClaim, ctx| {
        let term = claim_term("PersistentVolumeClaim", &p.namespace().unwrap_or_default(), &p.name_any());
        refs(&ctx.caches.volumes.with(&term))
    });
    let released = |f: &Filesystem| f.status.as_ref().is_some_and(|s| s.phase == FilesystemPhase::Released);
    let of_filesystem =
        on(
            &ctx.caches.filesystems,
            ctx,
            move |f: &Filesystem, ctx| {
                if released(f) { refs(&ctx.caches.volumes.with(&fs_term(&f.name_any()))) } else { Vec::new() }
            },
        );
    // One that has lost its Filesystem to another goes.
    let of_dot = on(&ctx.caches.dots, ctx, |d: &Dot, ctx| {
        let names_it = d.spec.fs_id.as_ref().filter(|_| csi::find::csi_name(d).is_some());
        names_it.map(|id| refs(&ctx.caches.volumes.with(&fs_term(id)))).unwrap_or_default()
    });
    vec![of_claim, of_filesystem, of_dot]
}
