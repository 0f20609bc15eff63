//! What a leaf certificate says of itself: which node, until when, which key. Called by `identity` for our own and by
//! `tls` for a peer's; nothing here trusts the certificate, it only reads it.

use dotgraft_engine::ids::NodeName;
use rustls::pki_types::CertificateDer;
use x509_parser::extensions::GeneralName;
use x509_parser::prelude::{FromDer, X509Certificate};

use super::directory::Fingerprint;

/// What the common name of an agent's certificate starts with; the node's name follows.
pub const CN_PREFIX: &str = "dotgraft-agent:";

/// Why a certificate does not name a node.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum LeafError {
    /// Not X.509.
    #[error("the certificate can't be parsed")]
    Unreadable,
    /// Not exactly one common name of the form `dotgraft-agent:<node>`.
    #[error("the certificate's subject is not `{CN_PREFIX}<node>`")]
    Subject,
    /// The DNS names are not exactly the node's.
    #[error("the certificate's DNS name is not that of its node")]
    DnsName,
}

/// The facts of a leaf.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Leaf {
    /// Whose it says it is: common name and DNS name agree.
    pub node: NodeName,
    /// SHA-256 of its DER.
    pub fingerprint: Fingerprint,
    /// Not valid before, Unix seconds.
    pub not_before: i64,
    /// Not valid after, Unix seconds.
    pub not_after: i64,
    /// Addresses it is for.
    pub addresses: Vec<std::net::IpAddr>,
}

impl Leaf {
    /// Reads a leaf. The chain is not checked here.
    ///
    /// # Errors
    ///
    /// No certificate, or one without the names of an agent's.
    pub fn parse(der: &CertificateDer<'_>) -> Result<Self, LeafError> {
        let (rest, cert) = X509Certificate::from_der(der).map_err(|_| LeafError::Unreadable)?;
        if !rest.is_empty() {
            return Err(LeafError::Unreadable);
        }
        let node = node_of_subject(&cert)?;
        let mut dns_names = Vec::new();
        let mut addresses = Vec::new();
        if let Some(san) = cert.subject_alternative_name().map_err(|_| LeafError::Unreadable)? {
            for name in &san.value.general_names {
                match name {
                    GeneralName::DNSName(dns) => dns_names.push(*dns),
                    GeneralName::IPAddress(bytes) => addresses.extend(ip_of(bytes)),
                    _ => {}
                }
            }
        }
        if dns_names != [node.as_str()] {
            return Err(LeafError::DnsName);
        }
        let validity = cert.validity();
        Ok(Self {
            node,
            fingerprint: Fingerprint::of(der),
            not_before: validity.not_before.timestamp(),
            not_after: validity.not_after.timestamp(),
            addresses,
        })
    }

    /// Whether `now` (Unix seconds) is inside its validity.
    pub fn valid_at(&self, now: i64) -> bool {
        (self.not_before..=self.not_after).contains(&now)
    }
}

fn node_of_subject(cert: &X509Certificate<'_>) -> Result<NodeName, LeafError> {
    let mut names = cert.subject().iter_common_name();
    let (Some(only), None) = (names.next(), names.next()) else {
        return Err(LeafError::Subject);
    };
    let text = only.as_str().map_err(|_| LeafError::Subject)?;
    text.strip_prefix(CN_PREFIX).and_then(|n| n.parse().ok()).ok_or(LeafError::Subject)
}

fn ip_of(bytes: &[u8]) -> Option<std::net::IpAddr> {
    if let Ok(v4) = <[u8; 4]>::try_from(bytes) {
        return Some(v4.into());
    }
    <[u8; 16]>::try_from(bytes).ok().map(Into::into)
}

/// Whether a certificate says that it is a CA (basic constraints).
pub fn is_ca(der: &CertificateDer<'_>) -> bool {
    X509Certificate::from_der(der).is_ok_and(|(_, cert)| cert.is_ca())
}
