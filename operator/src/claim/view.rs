//! A Dot or Branch, seen alike: what both kinds say of themselves, parsed once.

use std::collections::BTreeMap;
use std::fmt::Debug;

use dotgraft_api::common::{ANNOTATION_CSI_NAME, ANNOTATION_INITIAL_NODE};
use dotgraft_api::{Branch, ClaimKind, DeletionPolicy, Dot, DotStatus, Fencing, Origin, Placement, QuantityError, parse_quantity};
use kube::core::NamespaceResourceScope;
use kube::{Resource, ResourceExt};
use serde::de::DeserializeOwned;

use crate::context::Ctx;
use crate::names::{ALLOCATED_ANNOTATION, AWAITED_ANNOTATION, CLAIM_FINALIZER};
use crate::write::has_finalizer;

/// The two kinds that claim a Filesystem.
pub trait ClaimObject:
    Resource<DynamicType = (), Scope = NamespaceResourceScope> + Clone + Debug + DeserializeOwned + Send + Sync + 'static
{
    /// Which of both.
    const KIND: ClaimKind;
    /// What it says of itself; a Branch without capacity takes that of `dot`.
    fn view(&self, dot: Option<&Dot>) -> ClaimView;
    /// Its status as last written.
    fn status(&self) -> DotStatus;
}

/// What is known of a claim.
// Four independent facts read off one object, not the states of a machine.
#[allow(clippy::struct_excessive_bools)]
#[derive(Debug, Clone, PartialEq)]
pub struct ClaimView {
    /// Dot or Branch.
    pub kind: ClaimKind,
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// Its UID.
    pub uid: String,
    /// Its generation.
    pub generation: Option<i64>,
    /// It is being deleted.
    pub deleting: bool,
    /// Our finalizer is on it.
    pub held: bool,
    /// The Filesystem that it names: no more than a wish, whosever that is. [`super::own`] says what it has.
    pub(in crate::claim) fs_id: Option<String>,
    /// The id was allocated for exactly this object, which was not restored from a copy.
    pub allocated: bool,
    /// Its Filesystem has been there before.
    pub had_filesystem: bool,
    /// Most that the files may take, in bytes.
    pub capacity: Result<u64, QuantityError>,
    /// Most that commits may take beyond the files, in bytes.
    pub history_limit: Result<u64, QuantityError>,
    /// Where the copies should be.
    pub placement: Placement,
    /// What happens to the data on deletion.
    pub deletion_policy: DeletionPolicy,
    /// When authority may leave a lost owner.
    pub fencing: Fencing,
    /// Name of the Dot of a Branch.
    pub dot: Option<String>,
    /// Its labels.
    pub labels: BTreeMap<String, String>,
    /// The commit that a Dot is to start from.
    pub origin: Option<Origin>,
    /// The node to begin on, if it fits; it asks for nothing later.
    pub initial_node: Option<String>,
    /// The name in the CSI call that made it.
    pub csi_name: Option<String>,
    /// CSI made it, and nobody has had it yet ([`super::forsaken`]).
    pub awaited: bool,
}

struct Common<'a> {
    kind: ClaimKind,
    capacity: Option<&'a str>,
    history_limit: Option<&'a str>,
    fs_id: Option<&'a String>,
    placement: Option<&'a Placement>,
    deletion_policy: DeletionPolicy,
    fencing: Fencing,
    status: Option<&'a DotStatus>,
}

fn view<K: Resource>(object: &K, c: &Common<'_>) -> ClaimView {
    let uid = object.uid().unwrap_or_default();
    let capacity = c.capacity.ok_or_else(|| QuantityError::Malformed("no capacity: the Dot is not there".into())).and_then(parse_quantity);
    ClaimView {
        kind: c.kind,
        namespace: object.namespace().unwrap_or_default(),
        name: object.name_any(),
        generation: object.meta().generation,
        deleting: object.meta().deletion_timestamp.is_some(),
        held: has_finalizer(object, CLAIM_FINALIZER),
        fs_id: c.fs_id.cloned(),
        allocated: object.annotations().get(ALLOCATED_ANNOTATION) == Some(&uid),
        had_filesystem: c.status.is_some_and(|s| s.fs_id.is_some()),
        history_limit: c.history_limit.map_or_else(|| capacity.clone(), parse_quantity),
        capacity,
        placement: c.placement.cloned().unwrap_or_default(),
        deletion_policy: c.deletion_policy,
        fencing: c.fencing,
        dot: None,
        labels: object.labels().clone(),
        origin: None,
        initial_node: object.annotations().get(ANNOTATION_INITIAL_NODE).cloned(),
        // The CSI specification bounds it; longer, a person wrote it.
        csi_name: object.annotations().get(ANNOTATION_CSI_NAME).filter(|n| n.len() <= 128).cloned(),
        awaited: object.annotations().contains_key(AWAITED_ANNOTATION),
        uid,
    }
}

impl ClaimObject for Dot {
    const KIND: ClaimKind = ClaimKind::Dot;
    fn view(&self, _: Option<&Dot>) -> ClaimView {
        let common = view(
            self,
            &Common {
                kind: ClaimKind::Dot,
                capacity: Some(&self.spec.capacity),
                history_limit: self.spec.history_limit.as_deref(),
                fs_id: self.spec.fs_id.as_ref(),
                placement: self.spec.placement.as_ref(),
                deletion_policy: self.spec.deletion_policy,
                fencing: self.spec.fencing,
                status: self.status.as_ref(),
            },
        );
        ClaimView { origin: self.spec.origin.clone(), ..common }
    }
    fn status(&self) -> DotStatus {
        self.status.clone().unwrap_or_default()
    }
}

impl ClaimObject for Branch {
    const KIND: ClaimKind = ClaimKind::Branch;
    fn view(&self, dot: Option<&Dot>) -> ClaimView {
        let mut v = view(
            self,
            &Common {
                kind: ClaimKind::Branch,
                capacity: self.spec.capacity.as_deref().or_else(|| dot.map(|d| d.spec.capacity.as_str())),
                history_limit: self.spec.history_limit.as_deref(),
                fs_id: self.spec.fs_id.as_ref(),
                placement: self.spec.placement.as_ref(),
                deletion_policy: self.spec.deletion_policy,
                fencing: self.spec.fencing,
                status: self.status.as_ref(),
            },
        );
        v.dot = Some(self.spec.dot.clone());
        v
    }
    fn status(&self) -> DotStatus {
        self.status.clone().unwrap_or_default()
    }
}

/// The claim of that name as the caches have it.
pub fn cached(ctx: &Ctx, kind: ClaimKind, namespace: &str, name: &str) -> Option<ClaimView> {
    match kind {
        ClaimKind::Dot => ctx.caches.dots.get_in(namespace, name).map(|d| d.view(None)),
        ClaimKind::Branch => ctx.caches.branches.get_in(namespace, name).map(|b| {
            let dot = ctx.caches.dots.get_in(namespace, &b.spec.dot);
            b.view(dot.as_deref())
        }),
    }
}
