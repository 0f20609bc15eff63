//! What the CSI sidecars prove themselves by: short-lived tokens of a `ServiceAccount` of their own, which the operator asks for and hands over as
//! files. A pod has one `ServiceAccount`, and that is the operator's: a sidecar that is taken must not be the operator (ADR 34).

use std::io::{self, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use k8s_openapi::api::authentication::v1::{TokenRequest, TokenRequestSpec};
use k8s_openapi::api::core::v1::ServiceAccount;
use kube::api::PostParams;
use kube::{Api, Client, Config};
use serde_json::json;

/// The sidecars' `ServiceAccount`, in the operator's namespace.
pub const ACCOUNT: &str = "dotgraft-csi";
/// Seconds that a token is asked for; the API server gives no less than 600, and may give other ones.
const LIFE: i64 = 3_600;
/// A token is replaced after this long: the sidecars' clients read the file once a minute, so three are valid at any time.
const RENEWAL: Duration = Duration::from_secs(1_200);
/// Until the next try after a failure.
const SOON: Duration = Duration::from_secs(5);

/// Why there is no new token.
#[derive(Debug, thiserror::Error)]
pub enum IdentityError {
    /// The API server refuses or doesn't answer.
    #[error("asking for a token of ServiceAccount {ACCOUNT}: {0}")]
    Api(#[from] kube::Error),
    /// The API server answered without one.
    #[error("the API server sent no token of ServiceAccount {ACCOUNT}")]
    NoToken,
    /// The directory can't be written.
    #[error("writing the sidecars' identity: {0}")]
    Io(#[from] io::Error),
}

/// Where the API server is, and what proves that it is the one.
#[derive(Debug, Clone)]
pub struct Server {
    url: String,
    name: Option<String>,
    /// PEM.
    authority: Option<String>,
}

impl Server {
    /// As the operator's own client has it.
    pub fn of(config: &Config) -> Self {
        let authority = config.root_cert.as_ref().map(|certificates| certificates.iter().map(|der| pem(der)).collect());
        Self { url: config.cluster_url.to_string(), name: config.tls_server_name.clone(), authority }
    }
}

/// RFC 7468: 64 characters a line.
fn pem(der: &[u8]) -> String {
    let text = STANDARD.encode(der);
    let lines: Vec<&str> = text.as_bytes().chunks(64).filter_map(|line| std::str::from_utf8(line).ok()).collect();
    format!("-----BEGIN CERTIFICATE-----\n{}\n-----END CERTIFICATE-----\n", lines.join("\n"))
}

/// A kubeconfig, which is YAML and so may be JSON, that names the token's file: clients read that again by themselves.
fn kubeconfig(server: &Server, token: &Path) -> String {
    let mut cluster = json!({ "server": server.url });
    if let Some(name) = &server.name {
        cluster["tls-server-name"] = json!(name);
    }
    if let Some(authority) = &server.authority {
        cluster["certificate-authority-data"] = json!(STANDARD.encode(authority));
    }
    let context = json!({ "cluster": "cluster", "user": ACCOUNT });
    json!({
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [{ "name": "cluster", "cluster": cluster }],
        "users": [{ "name": ACCOUNT, "user": { "tokenFile": token } }],
        "contexts": [{ "name": ACCOUNT, "context": context }],
        "current-context": ACCOUNT,
    })
    .to_string()
}

/// Replaces a file as a whole: who reads it sees the old one or the new one. Readable by the owner alone.
fn replace(file: &Path, text: &str) -> io::Result<()> {
    let new = file.with_extension("new");
    match std::fs::remove_file(&new) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
        _ => {}
    }
    let mut out = std::fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(&new)?;
    out.write_all(text.as_bytes())?;
    std::fs::rename(new, file)
}

/// Asks for a token and writes `token` and `kubeconfig` into the directory, which exists.
///
/// # Errors
///
/// The API server refuses or doesn't answer, or a file can't be written; the files stay as they were, or each is whole.
pub async fn make(dir: &Path, server: &Server, client: &Client, namespace: &str) -> Result<(), IdentityError> {
    let spec = TokenRequestSpec { expiration_seconds: Some(LIFE), ..TokenRequestSpec::default() };
    let request = TokenRequest { spec, ..TokenRequest::default() };
    let accounts: Api<ServiceAccount> = Api::namespaced(client.clone(), namespace);
    let answer = accounts.create_token_request(ACCOUNT, &PostParams::default(), &request).await?;
    let token = answer.status.map(|s| s.token).filter(|t| !t.is_empty()).ok_or(IdentityError::NoToken)?;
    let file = dir.join("token");
    replace(&file, &token)?;
    Ok(replace(&dir.join("kubeconfig"), &kubeconfig(server, &file))?)
}

/// Makes it once, trying until it works: what sidecars start after.
pub async fn begin(dir: &Path, server: &Server, client: &Client, namespace: &str) {
    while let Err(error) = make(dir, server, client, namespace).await {
        tracing::warn!(%error, "the sidecars have no identity yet");
        tokio::time::sleep(SOON).await;
    }
    tracing::info!(account = ACCOUNT, "the sidecars have an identity");
}

/// Keeps it valid, for ever.
pub async fn keep(dir: &Path, server: &Server, client: &Client, namespace: &str) {
    loop {
        begin(dir, server, client, namespace).await;
        tokio::time::sleep(RENEWAL).await;
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    #[test]
    fn a_file_is_replaced_as_a_whole_and_nobody_elses_to_read() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("token");
        std::fs::write(file.with_extension("new"), "left by one that was killed").unwrap();
        for text in ["first", "second"] {
            replace(&file, text).unwrap();
            assert_eq!(std::fs::read_to_string(&file).unwrap(), text);
        }
        assert_eq!(std::fs::metadata(&file).unwrap().permissions().mode() & 0o777, 0o600);
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1);
    }

    #[test]
    fn what_is_written_is_a_kubeconfig_with_the_servers_certificate() {
        let der: Vec<u8> = (0..100).collect();
        let mut config = Config::new("https://10.96.0.1/".parse().unwrap());
        config.root_cert = Some(vec![der.clone()]);
        config.tls_server_name = Some("kubernetes.default.svc".into());
        let text = kubeconfig(&Server::of(&config), Path::new("/identity/token"));
        let read: kube::config::Kubeconfig = serde_json::from_str(&text).unwrap();
        assert_eq!(read.current_context.as_deref(), Some(ACCOUNT));
        let cluster = read.clusters[0].cluster.clone().unwrap();
        assert_eq!(
            (cluster.server.as_deref(), cluster.tls_server_name.as_deref()),
            (Some("https://10.96.0.1/"), Some("kubernetes.default.svc"))
        );
        let pem = String::from_utf8(STANDARD.decode(cluster.certificate_authority_data.unwrap()).unwrap()).unwrap();
        let body: String = pem.lines().filter(|l| !l.starts_with("-----")).collect();
        assert!(pem.lines().all(|l| l.len() <= 64) && STANDARD.decode(body).unwrap() == der, "{pem}");
        assert_eq!(read.auth_infos[0].auth_info.as_ref().unwrap().token_file.as_deref(), Some("/identity/token"));
    }
}
