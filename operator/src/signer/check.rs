//! What a certificate request of an agent must look like: pure, total, hostile input.
//!
//! Approved only if the token's username and node, the subject, the SANs and the Node's addresses all agree
//! (security.md, "Certificates"). The signer calls this; nothing here talks to the API server.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use dotgraft_api::common::{EXTRA_NODE_NAME, SERVICE_ACCOUNT_AGENT};
use k8s_openapi::api::certificates::v1::CertificateSigningRequest;
use k8s_openapi::api::core::v1::Node;
use rcgen::{
    CertificateParams, CertificateSigningRequestParams, DistinguishedName, DnType, DnValue, ExtendedKeyUsagePurpose, KeyUsagePurpose,
    PublicKey, SanType,
};

use crate::ca::MAX_LIFE;
use crate::names::PEER_PORT_ANNOTATION;

/// Shortest life that can be asked for; the API server has the same floor.
const MIN_LIFE: Duration = Duration::from_secs(600);
const MAX_REQUEST_BYTES: usize = 16 * 1024;
const USAGES: [&str; 3] = ["digital signature", "server auth", "client auth"];

/// Why a request is denied; shown in its `Denied` condition.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Denial {
    /// Not asked for by the agents' `ServiceAccount`.
    #[error("asked for by `{0}`, not by the agents' ServiceAccount: only an agent gets such a certificate")]
    Username(String),
    /// The token isn't bound to a node.
    #[error("the token is not bound to a node: create it with --bound-object-kind Node, or run the agent in a pod")]
    NoNode,
    /// Usages other than ours.
    #[error("usages must be exactly: digital signature, server auth, client auth")]
    Usages,
    /// The request can't be parsed, is too large or its signature is wrong.
    #[error("the request is not a valid PKCS #10 request of at most 16 KiB: {0}")]
    Malformed(String),
    /// The request asks for more than names.
    #[error("the request asks for {0}")]
    Extension(&'static str),
    /// The subject doesn't name the token's node.
    #[error("the subject must be exactly CN=dotgraft-agent:{node}, the node of the token, not {found}")]
    Subject {
        /// Node of the token.
        node: String,
        /// What was asked for.
        found: String,
    },
    /// A SAN doesn't name the token's node or its address.
    #[error("the alternative names must be DNS `{node}` and addresses of that Node, not {found}")]
    Names {
        /// Node of the token.
        node: String,
        /// What was asked for.
        found: String,
    },
    /// There is no such Node.
    #[error("there is no Node `{0}`")]
    NodeNotFound(String),
    /// The port annotation is missing or malformed.
    #[error("annotation {PEER_PORT_ANNOTATION} must be the port of the agent's peer service, 1 to 65535")]
    Port,
}

/// A request that may be signed.
#[derive(Debug)]
pub struct Approved {
    /// The token's node.
    pub node: String,
    /// Where the agent serves its peers.
    pub address: SocketAddr,
    /// Key to sign.
    pub key: PublicKey,
    /// Exactly the names and usages that were checked.
    pub params: CertificateParams,
    /// How long the leaf lives, before the signer's own limit.
    pub life: Duration,
}

/// Node that the requester's token is bound to, if it is the agents' `ServiceAccount` in `namespace`.
///
/// # Errors
///
/// A [`Denial`], with the reason that the request is given.
pub fn requester_node(csr: &CertificateSigningRequest, namespace: &str) -> Result<String, Denial> {
    let username = csr.spec.username.clone().unwrap_or_default();
    if username != format!("system:serviceaccount:{namespace}:{SERVICE_ACCOUNT_AGENT}") {
        return Err(Denial::Username(username));
    }
    match csr.spec.extra.as_ref().and_then(|e| e.get(EXTRA_NODE_NAME)).map(Vec::as_slice) {
        Some([node]) if !node.is_empty() => Ok(node.clone()),
        _ => Err(Denial::NoNode),
    }
}

/// Checks the whole request against the Node object of [`requester_node`].
///
/// # Errors
///
/// A [`Denial`], with the reason that the request is given.
pub fn check(csr: &CertificateSigningRequest, node_name: &str, node: Option<&Node>) -> Result<Approved, Denial> {
    let node = node.ok_or_else(|| Denial::NodeNotFound(node_name.to_owned()))?;
    check_usages(csr)?;
    let request = parse(&csr.spec.request.0)?;
    check_subject(&request.params.distinguished_name, node_name)?;
    check_extensions(&request.params)?;
    let ips = check_names(&request.params.subject_alt_names, node_name, node)?;
    let port = csr
        .metadata
        .annotations
        .as_ref()
        .and_then(|a| a.get(PEER_PORT_ANNOTATION))
        .and_then(|p| p.parse::<u16>().ok())
        .filter(|p| *p != 0)
        .ok_or(Denial::Port)?;
    let first = ips.first().copied().ok_or_else(|| names(node_name, &request.params.subject_alt_names))?;
    let params = leaf_params(node_name, &ips).map_err(|e| Denial::Malformed(e.to_string()))?;
    let asked = csr.spec.expiration_seconds.and_then(|s| u64::try_from(s).ok()).map_or(MAX_LIFE, Duration::from_secs);
    Ok(Approved {
        node: node_name.to_owned(),
        address: SocketAddr::new(first, port),
        key: request.public_key,
        params,
        life: asked.clamp(MIN_LIFE, MAX_LIFE),
    })
}

fn check_usages(csr: &CertificateSigningRequest) -> Result<(), Denial> {
    let mut usages: Vec<&str> = csr.spec.usages.iter().flatten().map(String::as_str).collect();
    usages.sort_unstable();
    usages.dedup();
    let mut wanted = USAGES;
    wanted.sort_unstable();
    if usages == wanted { Ok(()) } else { Err(Denial::Usages) }
}

fn parse(pem: &[u8]) -> Result<CertificateSigningRequestParams, Denial> {
    if pem.len() > MAX_REQUEST_BYTES {
        return Err(Denial::Malformed("too large".into()));
    }
    let text = std::str::from_utf8(pem).map_err(|e| Denial::Malformed(e.to_string()))?;
    CertificateSigningRequestParams::from_pem(text).map_err(|e| Denial::Malformed(e.to_string()))
}

fn check_subject(name: &DistinguishedName, node: &str) -> Result<(), Denial> {
    let parts: Vec<_> = name.iter().collect();
    let wanted = format!("dotgraft-agent:{node}");
    let found = match parts.as_slice() {
        [(DnType::CommonName, value)] => match value {
            DnValue::Utf8String(s) => s.clone(),
            DnValue::PrintableString(s) => s.as_str().to_owned(),
            _ => String::new(),
        },
        _ => String::new(),
    };
    if found == wanted { Ok(()) } else { Err(Denial::Subject { node: node.to_owned(), found: clip(&found) }) }
}

fn check_extensions(params: &CertificateParams) -> Result<(), Denial> {
    use rcgen::IsCa;
    if matches!(params.is_ca, IsCa::Ca(_)) {
        return Err(Denial::Extension("a CA certificate"));
    }
    let usual = |u: &KeyUsagePurpose| *u == KeyUsagePurpose::DigitalSignature;
    if !params.key_usages.iter().all(usual) {
        return Err(Denial::Extension("a key usage other than digital signature"));
    }
    let auth = |u: &ExtendedKeyUsagePurpose| matches!(u, ExtendedKeyUsagePurpose::ServerAuth | ExtendedKeyUsagePurpose::ClientAuth);
    if !params.extended_key_usages.iter().all(auth) {
        return Err(Denial::Extension("an extended key usage other than server and client auth"));
    }
    Ok(())
}

fn check_names(sans: &[SanType], node_name: &str, node: &Node) -> Result<Vec<IpAddr>, Denial> {
    let addresses: Vec<IpAddr> =
        node.status.iter().flat_map(|s| s.addresses.iter().flatten()).filter_map(|a| a.address.parse().ok()).collect();
    let (mut ips, mut dns) = (Vec::new(), 0);
    for san in sans {
        match san {
            SanType::DnsName(name) if name.as_str() == node_name => dns += 1,
            SanType::IpAddress(ip) if addresses.contains(ip) && !ips.contains(ip) => ips.push(*ip),
            _ => return Err(names(node_name, sans)),
        }
    }
    if dns == 1 && !ips.is_empty() { Ok(ips) } else { Err(names(node_name, sans)) }
}

fn names(node: &str, sans: &[SanType]) -> Denial {
    Denial::Names { node: node.to_owned(), found: clip(&format!("{sans:?}")) }
}

fn clip(text: &str) -> String {
    text.chars().filter(|c| !c.is_control()).take(200).collect()
}

fn leaf_params(node: &str, ips: &[IpAddr]) -> Result<CertificateParams, rcgen::Error> {
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, format!("dotgraft-agent:{node}"));
    params.subject_alt_names.push(SanType::DnsName(node.to_owned().try_into()?));
    params.subject_alt_names.extend(ips.iter().map(|ip| SanType::IpAddress(*ip)));
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
    Ok(params)
}

#[cfg(test)]
#[path = "check_tests.rs"]
pub(super) mod tests;
