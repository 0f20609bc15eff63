//! The Controller service: each call goes to the file of its subject; here it is counted, and errors become codes.

use std::collections::HashMap;
use std::future::Future;
use std::sync::Arc;
use std::time::{Duration, Instant};

use dotgraft_proto::csi::v1 as wire;
use tonic::{Code, Request, Response, Status};
use wire::controller_service_capability::rpc::Type as Rpc;
use wire::controller_service_capability::{self, Type};
use wire::validate_volume_capabilities_response::Confirmed;

use super::error::{CsiError, code_name};
use super::ids::VolumeHandle;
use super::{capability, capacity, create, delete, find, ids, list, modify, params, publish, snapshot};
use crate::context::Ctx;

/// What this controller can do.
const CAPABILITIES: [Rpc; 15] = [
    Rpc::CreateDeleteVolume,
    Rpc::PublishUnpublishVolume,
    Rpc::ListVolumes,
    Rpc::ListVolumesPublishedNodes,
    Rpc::GetCapacity,
    Rpc::CreateDeleteSnapshot,
    Rpc::ListSnapshots,
    Rpc::GetSnapshot,
    Rpc::CloneVolume,
    Rpc::ExpandVolume,
    Rpc::PublishReadonly,
    Rpc::GetVolume,
    Rpc::VolumeCondition,
    Rpc::ModifyVolume,
    Rpc::SingleNodeMultiWriter,
];

/// See the module.
pub struct Controller {
    /// Client and caches.
    pub ctx: Arc<Ctx>,
    /// Most volumes that a node may have attached.
    pub attach_limit: usize,
}

/// Longest wait for the caches: of a program that just starts, or whose watch has just failed (`BROKEN_FOR`). A refusal would cost the sidecars'
/// back-off. With [`publish`]'s own wait it stays below the attacher's timeout.
const FILLED: Duration = Duration::from_secs(11);

type Answer<T> = Result<Response<T>, Status>;

impl Controller {
    /// Runs one call once the caches are filled and counts it by its code; refused if that takes too long.
    async fn call<T>(&self, method: &'static str, work: impl Future<Output = Result<T, CsiError>>) -> Answer<T> {
        let begin = Instant::now();
        let filled = find::until(FILLED, || self.ctx.caches.fresh().then_some(())).await;
        let result = if filled.is_some() {
            work.await
        } else {
            Err(CsiError::Unavailable("the operator's watches aren't filled yet: again".into()))
        };
        let code = result.as_ref().map_or_else(CsiError::code, |_| Code::Ok);
        self.ctx.metrics.csi(method, code_name(code), begin.elapsed());
        match result {
            Ok(answer) => Ok(Response::new(answer)),
            Err(error) => {
                // What is on its way or asked wrongly is told to the caller; what is ours to mend also stands in the log.
                let ours = matches!(code, Code::Internal | Code::Unavailable);
                if ours {
                    tracing::warn!(method, %error, code = code_name(code), "CSI call failed");
                } else {
                    tracing::debug!(method, %error, code = code_name(code), "CSI call refused");
                }
                Err(error.into())
            }
        }
    }
}

/// Whether an existing volume can be used so; `None`: yes.
async fn validate(r: &wire::ValidateVolumeCapabilitiesRequest, ctx: &Ctx) -> Result<Option<String>, CsiError> {
    ids::required("volume_id", &r.volume_id)?;
    if r.volume_capabilities.is_empty() {
        return Err(CsiError::Invalid("volume_capabilities are missing".into()));
    }
    let handle = ids::volume(&r.volume_id)?;
    find::published(&handle, ctx).await?;
    let parameters = params::Parameters::read(&r.parameters, &r.mutable_parameters).map(|_| ());
    let uses = r.volume_capabilities.iter().try_for_each(|c| match capability::check(c)? {
        capability::Use::ReadMany if !handle.is_read_only() => {
            Err(CsiError::Invalid(format!("to read on several nodes, use `{}`", VolumeHandle::Newest(handle.fs()))))
        }
        capability::Use::Write if handle.is_read_only() => Err(CsiError::Invalid("this handle is read-only".into())),
        _ => Ok(()),
    });
    Ok(parameters.and(uses).err().map(|e| e.to_string()))
}

#[tonic::async_trait]
impl wire::controller_server::Controller for Controller {
    async fn create_volume(&self, r: Request<wire::CreateVolumeRequest>) -> Answer<wire::CreateVolumeResponse> {
        let work = async {
            let volume = create::create(r.get_ref(), &self.ctx).await?;
            Ok(wire::CreateVolumeResponse { volume: Some(volume) })
        };
        self.call("CreateVolume", Box::pin(work)).await
    }

    async fn delete_volume(&self, r: Request<wire::DeleteVolumeRequest>) -> Answer<wire::DeleteVolumeResponse> {
        let work = async {
            delete::delete(&r.get_ref().volume_id, &self.ctx).await?;
            Ok(wire::DeleteVolumeResponse {})
        };
        self.call("DeleteVolume", work).await
    }

    async fn controller_publish_volume(
        &self,
        r: Request<wire::ControllerPublishVolumeRequest>,
    ) -> Answer<wire::ControllerPublishVolumeResponse> {
        let work = async {
            publish::publish(r.get_ref(), self.attach_limit, &self.ctx).await?;
            Ok(wire::ControllerPublishVolumeResponse { publish_context: HashMap::new() })
        };
        self.call("ControllerPublishVolume", work).await
    }

    async fn controller_unpublish_volume(
        &self,
        r: Request<wire::ControllerUnpublishVolumeRequest>,
    ) -> Answer<wire::ControllerUnpublishVolumeResponse> {
        let work = async {
            publish::unpublish(r.get_ref(), &self.ctx).await?;
            Ok(wire::ControllerUnpublishVolumeResponse {})
        };
        self.call("ControllerUnpublishVolume", work).await
    }

    async fn validate_volume_capabilities(
        &self,
        r: Request<wire::ValidateVolumeCapabilitiesRequest>,
    ) -> Answer<wire::ValidateVolumeCapabilitiesResponse> {
        let work = async {
            let r = r.get_ref();
            Ok(match validate(r, &self.ctx).await? {
                Some(message) => wire::ValidateVolumeCapabilitiesResponse { confirmed: None, message },
                None => wire::ValidateVolumeCapabilitiesResponse {
                    confirmed: Some(Confirmed {
                        volume_context: r.volume_context.clone(),
                        volume_capabilities: r.volume_capabilities.clone(),
                        parameters: r.parameters.clone(),
                        mutable_parameters: r.mutable_parameters.clone(),
                    }),
                    message: String::new(),
                },
            })
        };
        self.call("ValidateVolumeCapabilities", work).await
    }

    async fn list_volumes(&self, r: Request<wire::ListVolumesRequest>) -> Answer<wire::ListVolumesResponse> {
        self.call("ListVolumes", async { list::volumes(r.get_ref(), &self.ctx) }).await
    }

    async fn get_capacity(&self, r: Request<wire::GetCapacityRequest>) -> Answer<wire::GetCapacityResponse> {
        self.call("GetCapacity", async { capacity::get(r.get_ref(), &self.ctx) }).await
    }

    async fn controller_get_capabilities(
        &self,
        _: Request<wire::ControllerGetCapabilitiesRequest>,
    ) -> Answer<wire::ControllerGetCapabilitiesResponse> {
        let rpc = |kind: Rpc| wire::ControllerServiceCapability {
            r#type: Some(Type::Rpc(controller_service_capability::Rpc { r#type: kind.into() })),
        };
        Ok(Response::new(wire::ControllerGetCapabilitiesResponse { capabilities: CAPABILITIES.into_iter().map(rpc).collect() }))
    }

    async fn create_snapshot(&self, r: Request<wire::CreateSnapshotRequest>) -> Answer<wire::CreateSnapshotResponse> {
        let work = async {
            let snapshot = snapshot::create(r.get_ref(), &self.ctx).await?;
            Ok(wire::CreateSnapshotResponse { snapshot: Some(snapshot) })
        };
        self.call("CreateSnapshot", work).await
    }

    async fn delete_snapshot(&self, r: Request<wire::DeleteSnapshotRequest>) -> Answer<wire::DeleteSnapshotResponse> {
        let work = async {
            snapshot::delete(&r.get_ref().snapshot_id, &self.ctx).await?;
            Ok(wire::DeleteSnapshotResponse {})
        };
        self.call("DeleteSnapshot", work).await
    }

    async fn list_snapshots(&self, r: Request<wire::ListSnapshotsRequest>) -> Answer<wire::ListSnapshotsResponse> {
        self.call("ListSnapshots", async { list::snapshots(r.get_ref(), &self.ctx) }).await
    }

    async fn get_snapshot(&self, r: Request<wire::GetSnapshotRequest>) -> Answer<wire::GetSnapshotResponse> {
        let work = async {
            let snapshot = snapshot::get(&r.get_ref().snapshot_id, &self.ctx).await?;
            Ok(wire::GetSnapshotResponse { snapshot: Some(snapshot) })
        };
        self.call("GetSnapshot", work).await
    }

    async fn controller_expand_volume(
        &self,
        r: Request<wire::ControllerExpandVolumeRequest>,
    ) -> Answer<wire::ControllerExpandVolumeResponse> {
        let work = async {
            let modify::Expanded { bytes, done } = modify::expand(r.get_ref(), &self.ctx).await?;
            Ok(wire::ControllerExpandVolumeResponse { capacity_bytes: bytes, node_expansion_required: !done })
        };
        self.call("ControllerExpandVolume", work).await
    }

    async fn controller_get_volume(&self, r: Request<wire::ControllerGetVolumeRequest>) -> Answer<wire::ControllerGetVolumeResponse> {
        self.call("ControllerGetVolume", list::volume(&r.get_ref().volume_id, &self.ctx)).await
    }

    async fn controller_modify_volume(
        &self,
        r: Request<wire::ControllerModifyVolumeRequest>,
    ) -> Answer<wire::ControllerModifyVolumeResponse> {
        let work = async {
            modify::modify(&r.get_ref().volume_id, &r.get_ref().mutable_parameters, &self.ctx).await?;
            Ok(wire::ControllerModifyVolumeResponse {})
        };
        self.call("ControllerModifyVolume", work).await
    }
}
