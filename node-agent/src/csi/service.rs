//! The RPCs of Identity and Node: each is handed to the file that owns its subject, counted, and logged.

use std::convert::Infallible;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Instant;

use dotgraft_api::common::DRIVER_NAME;
use dotgraft_proto::csi::v1 as csi;
use dotgraft_proto::csi::v1::identity_server::{Identity, IdentityServer};
use dotgraft_proto::csi::v1::node_server::{Node, NodeServer};
use tonic::codegen::{BoxFuture, http};
use tonic::{Code, Request, Response, Status};
use tracing::Instrument;

use super::Csi;
use super::refusal::Refusal;

type Answer<T> = Result<Response<T>, Status>;

/// Largest request, bytes: paths and a context of strings.
const MAX_REQUEST: usize = 256 << 10;

/// Identity and Node on one socket: a request goes by the name in its path.
#[derive(Clone)]
pub struct Both {
    identity: IdentityServer<Service>,
    node: NodeServer<Service>,
}

impl Both {
    /// Both services of a driver.
    pub fn new(csi: Arc<Csi>) -> Self {
        let service = Service(csi);
        Self {
            identity: IdentityServer::new(service.clone()).max_decoding_message_size(MAX_REQUEST),
            node: NodeServer::new(service).max_decoding_message_size(MAX_REQUEST),
        }
    }
}

impl tower::Service<http::Request<tonic::body::Body>> for Both {
    type Response = http::Response<tonic::body::Body>;
    type Error = Infallible;
    type Future = BoxFuture<Self::Response, Infallible>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: http::Request<tonic::body::Body>) -> Self::Future {
        if request.uri().path().starts_with("/csi.v1.Identity/") { self.identity.call(request) } else { self.node.call(request) }
    }
}

/// The calls of both services. A cheap clone.
#[derive(Clone)]
pub struct Service(Arc<Csi>);

impl Service {
    /// Runs a call in a span of its own, counts it and says how it ended.
    async fn call<T>(&self, method: &'static str, volume: &str, work: impl Future<Output = Result<T, Refusal>>) -> Answer<T> {
        let volume: String = volume.chars().take(128).collect();
        let span = tracing::info_span!("csi", method, volume);
        let began = Instant::now();
        let result = work.instrument(span.clone()).await;
        let took = began.elapsed();
        let code = result.as_ref().map_or_else(|r| r.code, |_| Code::Ok);
        self.0.metrics.csi_call(method, &format!("{code:?}"), took);
        let _in = span.enter();
        match &result {
            Ok(_) => tracing::debug!(ms = took.as_millis(), "answered"),
            Err(r) if r.code == Code::Aborted => tracing::info!(ms = took.as_millis(), "not yet: {}", r.message),
            Err(r) => tracing::warn!(code = ?r.code, ms = took.as_millis(), "refused: {}", r.message),
        }
        result.map(Response::new).map_err(Status::from)
    }
}

#[tonic::async_trait]
impl Identity for Service {
    async fn get_plugin_info(&self, _: Request<csi::GetPluginInfoRequest>) -> Answer<csi::GetPluginInfoResponse> {
        let answer = csi::GetPluginInfoResponse {
            name: DRIVER_NAME.into(),
            vendor_version: env!("CARGO_PKG_VERSION").into(),
            manifest: std::collections::HashMap::default(),
        };
        self.call("GetPluginInfo", "", async { Ok(answer) }).await
    }

    async fn get_plugin_capabilities(&self, _: Request<csi::GetPluginCapabilitiesRequest>) -> Answer<csi::GetPluginCapabilitiesResponse> {
        use csi::plugin_capability::{Service as Has, Type, service};
        let capabilities = [service::Type::ControllerService, service::Type::VolumeAccessibilityConstraints]
            .map(|t| csi::PluginCapability { r#type: Some(Type::Service(Has { r#type: t.into() })) });
        self.call("GetPluginCapabilities", "", async { Ok(csi::GetPluginCapabilitiesResponse { capabilities: capabilities.into() }) }).await
    }

    async fn probe(&self, _: Request<csi::ProbeRequest>) -> Answer<csi::ProbeResponse> {
        let troubles = self.0.ready.troubles();
        self.call("Probe", "", async {
            if !troubles.is_empty() {
                tracing::info!("not ready: {}", troubles.join("; "));
            }
            Ok(csi::ProbeResponse { ready: Some(troubles.is_empty()) })
        })
        .await
    }
}

#[tonic::async_trait]
impl Node for Service {
    async fn node_get_info(&self, _: Request<csi::NodeGetInfoRequest>) -> Answer<csi::NodeGetInfoResponse> {
        self.call("NodeGetInfo", "", async { self.0.info() }).await
    }

    async fn node_get_capabilities(&self, _: Request<csi::NodeGetCapabilitiesRequest>) -> Answer<csi::NodeGetCapabilitiesResponse> {
        use csi::node_service_capability::{Rpc, Type, rpc};
        let capabilities = [
            rpc::Type::StageUnstageVolume,
            rpc::Type::GetVolumeStats,
            rpc::Type::VolumeCondition,
            rpc::Type::ExpandVolume,
            rpc::Type::VolumeMountGroup,
            rpc::Type::SingleNodeMultiWriter,
        ]
        .map(|t| csi::NodeServiceCapability { r#type: Some(Type::Rpc(Rpc { r#type: t.into() })) });
        self.call("NodeGetCapabilities", "", async { Ok(csi::NodeGetCapabilitiesResponse { capabilities: capabilities.into() }) }).await
    }

    async fn node_stage_volume(&self, request: Request<csi::NodeStageVolumeRequest>) -> Answer<csi::NodeStageVolumeResponse> {
        let r = request.into_inner();
        let volume = r.volume_id.clone();
        self.call("NodeStageVolume", &volume, async { self.0.stage(r).await.map(|()| csi::NodeStageVolumeResponse {}) }).await
    }

    async fn node_unstage_volume(&self, request: Request<csi::NodeUnstageVolumeRequest>) -> Answer<csi::NodeUnstageVolumeResponse> {
        let r = request.into_inner();
        let volume = r.volume_id.clone();
        self.call("NodeUnstageVolume", &volume, async { self.0.unstage(r).await.map(|()| csi::NodeUnstageVolumeResponse {}) }).await
    }

    async fn node_publish_volume(&self, request: Request<csi::NodePublishVolumeRequest>) -> Answer<csi::NodePublishVolumeResponse> {
        let r = request.into_inner();
        let volume = r.volume_id.clone();
        self.call("NodePublishVolume", &volume, async { self.0.publish(r).await.map(|()| csi::NodePublishVolumeResponse {}) }).await
    }

    async fn node_unpublish_volume(&self, request: Request<csi::NodeUnpublishVolumeRequest>) -> Answer<csi::NodeUnpublishVolumeResponse> {
        let r = request.into_inner();
        let volume = r.volume_id.clone();
        self.call("NodeUnpublishVolume", &volume, async { self.0.unpublish(r).await.map(|()| csi::NodeUnpublishVolumeResponse {}) }).await
    }

    async fn node_get_volume_stats(&self, request: Request<csi::NodeGetVolumeStatsRequest>) -> Answer<csi::NodeGetVolumeStatsResponse> {
        let r = request.into_inner();
        let volume = r.volume_id.clone();
        self.call("NodeGetVolumeStats", &volume, self.0.stats(r)).await
    }

    async fn node_expand_volume(&self, request: Request<csi::NodeExpandVolumeRequest>) -> Answer<csi::NodeExpandVolumeResponse> {
        let r = request.into_inner();
        let volume = r.volume_id.clone();
        self.call("NodeExpandVolume", &volume, self.0.expand(r)).await
    }
}
