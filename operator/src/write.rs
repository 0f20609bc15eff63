//! The few ways in which this program writes: guarded by resourceVersion, or applied by its one field manager.

use std::fmt::Debug;

use dotgraft_api::{Authority, Filesystem, FilesystemPhase, FilesystemStatus};
use kube::api::{DeleteParams, Patch, PatchParams, PostParams, Preconditions};
use kube::core::NamespaceResourceScope;
use kube::{Api, Client, Resource, ResourceExt};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

use crate::error::Error;
use crate::names::FIELD_MANAGER;

/// Parameters of every apply: the operator owns what it writes.
pub fn apply_params() -> PatchParams {
    PatchParams::apply(FIELD_MANAGER).force()
}

/// API of a namespaced kind, for the object's own namespace.
pub fn namespaced<K>(client: &Client, object: &K) -> Api<K>
where
    K: Resource<Scope = NamespaceResourceScope, DynamicType = ()>,
{
    Api::namespaced(client.clone(), &object.namespace().unwrap_or_default())
}

/// Writes the whole status by apply: what is left out goes.
///
/// # Errors
///
/// A conflict of fields with another writer; the API server refuses or doesn't answer.
pub async fn status<K, S>(api: &Api<K>, object: &K, status: &S) -> Result<(), Error>
where
    K: Resource<DynamicType = ()> + Clone + DeserializeOwned + Debug,
    S: Serialize,
{
    let patch = json!({
        "apiVersion": K::api_version(&()),
        "kind": K::kind(&()),
        "metadata": { "name": object.name_any() },
        "status": status,
    });
    api.patch_status(&object.name_any(), &apply_params(), &Patch::Apply(&patch)).await?;
    Ok(())
}

/// Merges `patch` into exactly the version that was read; somebody else's write in between is a conflict.
///
/// # Errors
///
/// A conflict if somebody else wrote since it was read; the API server refuses or doesn't answer.
pub async fn guarded<K>(api: &Api<K>, object: &K, mut patch: Value) -> Result<K, Error>
where
    K: Resource<DynamicType = ()> + Clone + DeserializeOwned + Debug,
{
    let version = object.resource_version().ok_or(Error::Incomplete(object.name_any(), "resourceVersion"))?;
    if let Some(map) = patch.as_object_mut() {
        let metadata = map.entry("metadata").or_insert_with(|| json!({}));
        if let Some(metadata) = metadata.as_object_mut() {
            metadata.insert("resourceVersion".into(), Value::String(version));
        }
    }
    let params = PatchParams { field_manager: Some(FIELD_MANAGER.into()), ..PatchParams::default() };
    Ok(api.patch(&object.name_any(), &params, &Patch::Merge(&patch)).await?)
}

/// Compare-and-swap of a Filesystem's phase and authority; never an apply (design §2).
///
/// # Errors
///
/// A conflict if somebody else wrote since it was read; the API server refuses or doesn't answer.
pub async fn phase(client: &Client, fs: &Filesystem, phase: FilesystemPhase, authority: Option<Authority>) -> Result<(), Error> {
    let api: Api<Filesystem> = Api::all(client.clone());
    let mut next = fs.clone();
    tracing::info!(fs = fs.name_any(), ?phase, ?authority, "deciding about a Filesystem");
    next.status = Some(FilesystemStatus { phase, authority });
    let params = PostParams { field_manager: Some(FIELD_MANAGER.into()), ..PostParams::default() };
    api.replace_status(&fs.name_any(), &params, &next).await?;
    Ok(())
}

/// The object's finalizers with `ours` added or taken away.
pub fn finalizers<K: Resource>(object: &K, ours: &str, present: bool) -> Vec<String> {
    let mut list: Vec<String> = object.finalizers().iter().filter(|f| *f != ours).cloned().collect();
    if present {
        list.push(ours.to_owned());
    }
    list
}

/// Whether `ours` is among the object's finalizers.
pub fn has_finalizer<K: Resource>(object: &K, ours: &str) -> bool {
    object.finalizers().iter().any(|f| f == ours)
}

/// Takes our finalizer off, and nobody else's. An object that is gone counts as done.
///
/// # Errors
///
/// A conflict if somebody else wrote since it was read; the API server refuses or doesn't answer.
pub async fn let_go<K>(api: &Api<K>, object: &K, ours: &str) -> Result<(), Error>
where
    K: Resource<DynamicType = ()> + Clone + DeserializeOwned + Debug,
{
    if !has_finalizer(object, ours) {
        return Ok(());
    }
    let patch = json!({ "metadata": { "finalizers": finalizers(object, ours, false) } });
    match guarded(api, object, patch).await {
        Err(Error::Api(e)) if Error::is_not_found(&e) => Ok(()),
        other => other.map(|_| ()),
    }
}

/// Deletes exactly this object (not another of the same name). Gone counts as done.
///
/// # Errors
///
/// The API server refuses or doesn't answer.
pub async fn delete<K>(api: &Api<K>, object: &K) -> Result<(), Error>
where
    K: Resource<DynamicType = ()> + Clone + DeserializeOwned + Debug,
{
    let preconditions = Preconditions { uid: object.uid(), resource_version: None };
    let params = DeleteParams { preconditions: Some(preconditions), ..DeleteParams::default() };
    match api.delete(&object.name_any(), &params).await {
        Ok(_) => Ok(()),
        Err(e) if Error::is_not_found(&e) => Ok(()),
        Err(e) => Err(e.into()),
    }
}
