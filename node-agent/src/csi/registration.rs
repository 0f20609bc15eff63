//! Makes the driver known to the kubelet: plugin registration v1, on a socket in `plugins_registry` that the kubelet watches.
//!
//! The kubelet reads the directory at its start and sees every socket that appears, asks it `GetInfo`, then asks the driver, and tells the
//! result. Removing the socket takes the driver out of `CSINode`, so it stays when the agent ends (csi.md §1).

use std::path::{Path, PathBuf};

use dotgraft_api::common::DRIVER_NAME;
use dotgraft_proto::registration::{
    InfoRequest, PluginInfo, RegistrationStatus, RegistrationStatusResponse, registration_server::Registration as Service,
};
use tonic::{Request, Response, Status};

use crate::readiness::Readiness;

/// CSI versions as the kubelet knows them: that of the registration, not of the specification.
const VERSIONS: [&str; 1] = ["1.0.0"];
const WHAT: &str = "csi registration";

/// Where the registration's socket is.
pub fn socket(registry: &Path) -> PathBuf {
    registry.join(format!("{DRIVER_NAME}-reg.sock"))
}

/// The service.
pub struct Registration {
    endpoint: PathBuf,
    ready: Readiness,
}

impl Registration {
    /// For a driver whose socket is `endpoint`.
    pub fn new(endpoint: PathBuf, ready: Readiness) -> Self {
        Self { endpoint, ready }
    }
}

#[tonic::async_trait]
impl Service for Registration {
    async fn get_info(&self, _: Request<InfoRequest>) -> Result<Response<PluginInfo>, Status> {
        Ok(Response::new(PluginInfo {
            r#type: "CSIPlugin".into(),
            name: DRIVER_NAME.into(),
            endpoint: self.endpoint.to_string_lossy().into_owned(),
            supported_versions: VERSIONS.map(str::to_owned).to_vec(),
        }))
    }

    async fn notify_registration_status(
        &self,
        request: Request<RegistrationStatus>,
    ) -> Result<Response<RegistrationStatusResponse>, Status> {
        let said = request.into_inner();
        if said.plugin_registered {
            tracing::info!("the kubelet has registered the driver");
            self.ready.done(WHAT);
        } else {
            tracing::warn!(error = said.error, "the kubelet refused the driver");
            let why: String = said.error.chars().take(256).collect();
            self.ready.wait(WHAT, &format!("the kubelet refused it: {why}"));
        }
        Ok(Response::new(RegistrationStatusResponse {}))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn the_kubelets_word_decides_about_readiness() {
        let ready = Readiness::default();
        let service = Registration::new("/plugins/csi.sock".into(), ready.clone());
        let info = service.get_info(Request::new(InfoRequest {})).await.unwrap().into_inner();
        assert_eq!((info.r#type.as_str(), info.endpoint.as_str()), ("CSIPlugin", "/plugins/csi.sock"));
        assert_eq!(info.supported_versions, ["1.0.0"]);
        assert!(ready.troubles().is_empty(), "a kubelet that is down doesn't make the agent unready");
        let say = |ok, error: &str| Request::new(RegistrationStatus { plugin_registered: ok, error: error.into() });
        service.notify_registration_status(say(false, "no")).await.unwrap();
        assert!(ready.troubles()[0].contains("refused it: no"));
        service.notify_registration_status(say(true, "")).await.unwrap();
        assert!(ready.troubles().is_empty());
    }
}
