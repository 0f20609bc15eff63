//! The Identity service: who we are, what we can do, whether we are ready.

use std::sync::Arc;

use dotgraft_api::common::DRIVER_NAME;
use dotgraft_proto::csi::v1 as wire;
use tonic::{Request, Response, Status};
use wire::plugin_capability::{Service, Type, VolumeExpansion, service, volume_expansion};

use crate::context::Ctx;

/// See the module.
pub struct Identity(pub Arc<Ctx>);

fn service(kind: service::Type) -> wire::PluginCapability {
    wire::PluginCapability { r#type: Some(Type::Service(Service { r#type: kind.into() })) }
}

#[tonic::async_trait]
impl wire::identity_server::Identity for Identity {
    async fn get_plugin_info(&self, _: Request<wire::GetPluginInfoRequest>) -> Result<Response<wire::GetPluginInfoResponse>, Status> {
        Ok(Response::new(wire::GetPluginInfoResponse {
            name: DRIVER_NAME.into(),
            vendor_version: env!("CARGO_PKG_VERSION").into(),
            ..wire::GetPluginInfoResponse::default()
        }))
    }

    async fn get_plugin_capabilities(
        &self,
        _: Request<wire::GetPluginCapabilitiesRequest>,
    ) -> Result<Response<wire::GetPluginCapabilitiesResponse>, Status> {
        let online = VolumeExpansion { r#type: volume_expansion::Type::Online.into() };
        let capabilities = vec![
            service(service::Type::ControllerService),
            service(service::Type::VolumeAccessibilityConstraints),
            wire::PluginCapability { r#type: Some(Type::VolumeExpansion(online)) },
        ];
        Ok(Response::new(wire::GetPluginCapabilitiesResponse { capabilities }))
    }

    async fn probe(&self, _: Request<wire::ProbeRequest>) -> Result<Response<wire::ProbeResponse>, Status> {
        Ok(Response::new(wire::ProbeResponse { ready: Some(self.0.caches.fresh()) }))
    }
}
