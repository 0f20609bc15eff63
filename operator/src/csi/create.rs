//! `CreateVolume`: a Dot with the name of the call in an annotation. Nothing is remembered here: a call that is repeated finds the
//! Dot by its name (failures.md rows 9 and 16).

use std::collections::{BTreeMap, HashMap};

use dotgraft_api::common::{ANNOTATION_CSI_NAME, ANNOTATION_INITIAL_NODE, DRIVER_NAME};
use dotgraft_api::{Dot, DotSpec, Filesystem, FilesystemPhase, Origin, Placement};
use dotgraft_proto::csi::v1 as wire;
use k8s_openapi::api::storage::v1::StorageClass;
use kube::api::{ListParams, ObjectMeta, PostParams};
use kube::{Api, ResourceExt};
use wire::volume_content_source::Type as Source;

use super::capability::{self, New};
use super::error::CsiError;
use super::find::{self, PATIENCE, amount, csi_name, until};
use super::ids::{SnapshotId, VolumeHandle, required};
use super::params::{Parameters, SIZE_DEFAULT, Sizes};
use super::{snapshot, topology, view};
use crate::claim::{ClaimObject, own};
use crate::context::Ctx;
use crate::names;
use crate::pools::{self, PoolView};

/// On Dots that CSI made: what must be the same in every call of that name ([`Parameters::fixed`]).
const ANNOTATION_PARAMETERS: &str = "dotgraft.dev/csi-parameters";

/// A call, validated.
pub(super) struct Wanted<'a> {
    pub name: &'a str,
    pub params: Parameters,
    pub sizes: Sizes,
    pub topology: Option<&'a wire::TopologyRequirement>,
    pub source: Option<Source>,
    namespace: String,
    new: New,
    /// Names for the Dot: the one for people, and one that nobody else has.
    names: (Option<String>, String),
}

impl<'a> Wanted<'a> {
    fn read(request: &'a wire::CreateVolumeRequest, ctx: &Ctx) -> Result<Self, CsiError> {
        let name = required("name", &request.name)?;
        let new = capability::check_new(&request.volume_capabilities)?;
        let params = Parameters::read(&request.parameters, &request.mutable_parameters)?;
        let sizes = Sizes::read(request.capacity_range.as_ref())?;
        let source = match &request.volume_content_source {
            Some(wire::VolumeContentSource { r#type: Some(source) }) => Some(source.clone()),
            Some(_) => return Err(CsiError::Invalid("volume_content_source names nothing".into())),
            None => None,
        };
        let (namespace, names) = match &params.pvc {
            Some((namespace, pvc)) => (namespace.clone(), (Some(pvc.clone()), names::dot_of_call(pvc, name))),
            None => (params.namespace.clone().unwrap_or_else(|| ctx.namespace.clone()), (None, names::dot_of_call("csi", name))),
        };
        Ok(Self { name, params, sizes, topology: request.accessibility_requirements.as_ref(), source, namespace, new, names })
    }

    fn source_id(&self) -> Option<&str> {
        self.source.as_ref().map(|s| match s {
            Source::Snapshot(s) => s.snapshot_id.as_str(),
            Source::Volume(v) => v.volume_id.as_str(),
        })
    }

    /// Same name, other parameters or size.
    fn check_same(&self, dot: &Dot) -> Result<(), CsiError> {
        let name = self.name;
        if dot.metadata.deletion_timestamp.is_some() {
            return Err(CsiError::InProgress(format!("the volume `{name}` of before is being deleted")));
        }
        let fixed = self.params.fixed(self.source_id());
        if dot.annotations().get(ANNOTATION_PARAMETERS) != Some(&fixed) {
            return Err(CsiError::Exists(format!("there is a volume `{name}` with other parameters or another source")));
        }
        let size = dot.view(None).capacity.unwrap_or_default();
        if !self.sizes.fits(size) {
            return Err(CsiError::Exists(format!("there is a volume `{name}` of {size} bytes, which isn't what is asked for")));
        }
        Ok(())
    }
}

/// Makes the volume, or finds the one that a call of that name has made.
///
/// # Errors
///
/// `INVALID_ARGUMENT`, `OUT_OF_RANGE` or `RESOURCE_EXHAUSTED` for what can't be, `ALREADY_EXISTS` if another volume has the name,
/// `NOT_FOUND` without its source, `ABORTED` while it is made.
pub async fn create(request: &wire::CreateVolumeRequest, ctx: &Ctx) -> Result<wire::Volume, CsiError> {
    let wanted = Wanted::read(request, ctx)?;
    if wanted.new == New::View {
        let view = view::create(&wanted, ctx).await?;
        return Ok(wire::Volume { content_source: request.volume_content_source.clone(), ..view });
    }
    let dot = match existing(&wanted, ctx).await? {
        Found::Ours(dot) => *dot,
        Found::Free(name) => make(&wanted, name, ctx).await?,
    };
    wanted.check_same(&dot)?;
    let volume = settle(&dot, ctx).await?;
    if let Some(Source::Volume(_)) = wanted.source {
        snapshot::drop_transient(wanted.name, &wanted.namespace, ctx).await?;
    }
    Ok(wire::Volume { content_source: request.volume_content_source.clone(), ..volume })
}

enum Found {
    Ours(Box<Dot>),
    Free(String),
}

/// The Dot that a call of that name has made; or the name for a new one.
///
/// The PVC's name is taken if it is free. Where an earlier volume of that name is still there (a `StatefulSet` makes its claims
/// anew under the same names), the new one gets a name of its own; a Dot that a user made is never touched.
async fn existing(wanted: &Wanted<'_>, ctx: &Ctx) -> Result<Found, CsiError> {
    let api: Api<Dot> = Api::namespaced(ctx.client.clone(), &wanted.namespace);
    let (preferred, own) = &wanted.names;
    if let Some(dot) = api.get_opt(own).await? {
        return if csi_name(&dot) == Some(wanted.name) {
            Ok(Found::Ours(Box::new(dot)))
        } else {
            Err(CsiError::Exists(format!("the name of Dot `{own}` is taken")))
        };
    }
    let Some(preferred) = preferred else { return Ok(Found::Free(own.clone())) };
    match api.get_opt(preferred).await? {
        Some(dot) if csi_name(&dot) == Some(wanted.name) => Ok(Found::Ours(Box::new(dot))),
        Some(dot) if csi_name(&dot).is_none() => Err(CsiError::Exists(format!(
            "Dot `{preferred}` is there already and was not made for this PVC: to use it, name it in the PVC's dataSourceRef; else give the PVC another name"
        ))),
        Some(_) => Ok(Found::Free(own.clone())),
        None if has_data(&wanted.namespace, preferred, ctx).await? => Ok(Found::Free(own.clone())),
        None => Ok(Found::Free(preferred.clone())),
    }
}

/// Whether a Filesystem that was kept carries the name: a Dot of that name would mean its data.
async fn has_data(namespace: &str, name: &str, ctx: &Ctx) -> Result<bool, CsiError> {
    let label = format!("{}={}", names::CLAIM_LABEL, names::claim_hash("Dot", namespace, name));
    let list = Api::<Filesystem>::all(ctx.client.clone()).list(&ListParams::default().labels(&label)).await?;
    let kept = |f: &Filesystem| !matches!(f.status.as_ref().map(|s| s.phase), Some(FilesystemPhase::Deleting | FilesystemPhase::Headless));
    Ok(list.items.iter().any(kept))
}

/// What a new volume starts from.
pub(super) struct Start {
    pub origin: Origin,
    /// Size of what it is a copy of.
    pub size: u64,
    /// Where that is.
    pub node: Option<String>,
}

impl Start {
    /// The pool of what it is a copy of, where that is known and allowed.
    ///
    /// # Errors
    ///
    /// `RESOURCE_EXHAUSTED` if no pool of its group is asked for.
    pub(super) fn pool<'p>(&self, wanted: &Wanted<'_>, pools: &'p [PoolView]) -> Result<Option<&'p PoolView>, CsiError> {
        let allowed = topology::allowed(pools, wanted.params.pool_group.as_deref(), wanted.topology)?;
        let source = pools.iter().find(|p| Some(&p.node) == self.node.as_ref());
        match source.filter(|s| !allowed.iter().any(|p| p.group == s.group)) {
            Some(source) => {
                let text = format!("the source is in pool group `{}`, outside of what is asked for", source.group);
                Err(CsiError::Exhausted(text))
            }
            None => Ok(source),
        }
    }
}

async fn make(wanted: &Wanted<'_>, name: String, ctx: &Ctx) -> Result<Dot, CsiError> {
    let start = start(wanted, ctx).await?;
    let capacity = wanted.sizes.choose(start.as_ref().map_or(SIZE_DEFAULT, |s| s.size));
    if let Some(s) = start.as_ref().filter(|s| capacity < s.size) {
        return Err(CsiError::OutOfRange(format!("{capacity} bytes are less than the {} bytes of what it is a copy of", s.size)));
    }
    let pools = pools::all(&ctx.caches);
    let group = wanted.params.pool_group.as_deref();
    let node = match &start {
        // A clone begins where its source is, and follows its pod from there.
        Some(s) => {
            let source = s.pool(wanted, &pools)?;
            if source.is_some() {
                topology::check_size(source.into_iter(), capacity)?;
            }
            None
        }
        None => topology::choose(&pools, group, wanted.topology, capacity)?,
    };
    let dot = new_dot(wanted, name, capacity, node, start.map(|s| s.origin));
    let api: Api<Dot> = Api::namespaced(ctx.client.clone(), &wanted.namespace);
    let params = PostParams { field_manager: Some(names::FIELD_MANAGER.into()), ..PostParams::default() };
    match api.create(&params, &dot).await {
        Ok(dot) => Ok(dot),
        Err(kube::Error::Api(s)) if s.is_already_exists() => match existing(wanted, ctx).await? {
            Found::Ours(dot) => Ok(*dot),
            Found::Free(_) => Err(CsiError::InProgress("its name was just taken; again".into())),
        },
        Err(kube::Error::Api(s)) if s.is_not_found() => {
            Err(CsiError::Invalid(format!("there is no namespace `{}` for the volume's Dot", wanted.namespace)))
        }
        Err(e) => Err(e.into()),
    }
}

fn new_dot(wanted: &Wanted<'_>, name: String, capacity: u64, node: Option<String>, origin: Option<Origin>) -> Dot {
    let mut annotations = BTreeMap::from([
        (ANNOTATION_CSI_NAME.to_owned(), wanted.name.to_owned()),
        (ANNOTATION_PARAMETERS.to_owned(), wanted.params.fixed(wanted.source_id())),
        (names::AWAITED_ANNOTATION.to_owned(), "true".to_owned()),
    ]);
    if let Some(node) = node {
        annotations.insert(ANNOTATION_INITIAL_NODE.to_owned(), node);
    }
    Dot {
        metadata: ObjectMeta {
            name: Some(name),
            namespace: Some(wanted.namespace.clone()),
            annotations: Some(annotations),
            ..ObjectMeta::default()
        },
        spec: DotSpec { capacity: amount(capacity), origin, ..spec_of(&wanted.params) },
        status: None,
    }
}

/// What parameters say of a Dot.
fn spec_of(params: &Parameters) -> DotSpec {
    let mutable = &params.mutable;
    DotSpec {
        history_limit: mutable.history_limit.clone(),
        placement: mutable.replicas.map(|replicas| Placement { replicas, ..Placement::default() }),
        deletion_policy: params.deletion_policy,
        fencing: params.fencing,
        ..DotSpec::default()
    }
}

/// What a `StorageClass` says of a Dot; what the kind says itself, without a class that can be read.
pub fn of_class(class: Option<&StorageClass>) -> DotSpec {
    let parameters = class.filter(|c| c.provisioner == DRIVER_NAME).and_then(|c| c.parameters.clone()).unwrap_or_default();
    let read = Parameters::read(&parameters.into_iter().collect(), &HashMap::new());
    read.map(|p| spec_of(&p)).unwrap_or_default()
}

/// What it starts from, if anything, and if that is there for its namespace.
///
/// # Errors
///
/// `NOT_FOUND` if it isn't, `ABORTED` while the commit to clone from is made.
pub(super) async fn start(wanted: &Wanted<'_>, ctx: &Ctx) -> Result<Option<Start>, CsiError> {
    let owner = |f: &Filesystem| f.status.as_ref().and_then(|s| s.authority.as_ref()).map(|a| a.owner.node.clone());
    match &wanted.source {
        None => Ok(None),
        Some(Source::Snapshot(s)) => {
            let missing = || CsiError::NotFound(format!("there is no snapshot `{}`", s.snapshot_id));
            let id = SnapshotId::parse(&s.snapshot_id).ok_or_else(missing)?;
            let found = snapshot::find(&id, ctx).await?.ok_or_else(missing)?;
            // What another namespace has isn't there for this one, unless an administrator says so.
            let uid = own::live_namespace_uid(&wanted.namespace, ctx).await?;
            if !own::may_start_from(&found.fs, &id.commit.to_string(), (&wanted.namespace, uid.as_deref()), ctx).await? {
                return Err(missing());
            }
            let origin = Origin { fs_id: id.fs.to_string(), commit: id.commit.to_string() };
            Ok(Some(Start { origin, size: snapshot::size(&found.commit, ctx), node: owner(&found.fs) }))
        }
        Some(Source::Volume(v)) => {
            let missing = || CsiError::NotFound(format!("there is no volume `{}`", v.volume_id));
            let handle = v.volume_id.parse().ok().filter(|h: &VolumeHandle| !h.is_read_only()).ok_or_else(missing)?;
            let volume = find::volume(&handle, ctx).await?;
            if volume.claim.namespace != wanted.namespace {
                return Err(missing());
            }
            let commit = snapshot::transient(wanted.name, &volume, ctx).await?;
            let origin = Origin { fs_id: handle.fs().to_string(), commit };
            Ok(Some(Start { origin, size: volume.claim.capacity.unwrap_or_default(), node: owner(&volume.fs) }))
        }
    }
}

/// Waits until the volume has an owner and is there; what stands in the way is in the message.
async fn settle(dot: &Dot, ctx: &Ctx) -> Result<wire::Volume, CsiError> {
    let (namespace, name) = (dot.namespace().unwrap_or_default(), dot.name_any());
    let cached = || ctx.caches.dots.get_in(&namespace, &name).filter(|d| d.uid() == dot.uid());
    let ready = until(PATIENCE, || {
        let dot = cached()?;
        let fs = own::filesystem(&dot.view(None), ctx)?;
        let status = fs.status.as_ref().filter(|s| s.phase == FilesystemPhase::Active)?;
        let owner = status.authority.as_ref()?.owner.node.clone();
        Some((dot, fs, owner))
    })
    .await;
    let Some((dot, fs, owner)) = ready else {
        let why = cached().and_then(|d| find::trouble(d.as_ref())).unwrap_or_else(|| "the operator has not looked at it yet".into());
        return Err(CsiError::InProgress(format!("Dot {namespace}/{name} is not there yet: {why}")));
    };
    let pool = ctx.caches.pools.get(&owner);
    Ok(wire::Volume {
        capacity_bytes: i64::try_from(dot.view(None).capacity.unwrap_or_default()).unwrap_or(i64::MAX),
        volume_id: fs.name_any(),
        accessible_topology: pool.iter().map(|p| topology::of_group(&p.spec.pool_group)).collect(),
        ..wire::Volume::default()
    })
}
