//! The agent's own key and certificate: made here, kept in `<state-dir>/tls/` (0600), swapped while everything runs.
//! `csr` obtains new ones; `tls` presents whatever is current (security.md, "Certificates").
//!
//! Key and chain are one file, so that a crash never leaves a key beside another key's certificate. The key of an
//! unanswered request is a second file: after a restart the same request is waited for, not another one made.

use std::io::Write;
use std::net::IpAddr;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use dotgraft_engine::ids::NodeName;
use rcgen::{CertificateParams, DnType, ExtendedKeyUsagePurpose, KeyPair, KeyUsagePurpose, SanType};
use rustls::RootCertStore;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::sign::CertifiedKey;
use serde::{Deserialize, Serialize};
use tokio::sync::watch;

use super::leaf::{self, Leaf, LeafError};

/// Certificates in a chain that are looked at: a leaf and the CAs of a rotation.
const MAX_CHAIN: usize = 8;
const CURRENT: &str = "agent.pem";
const PENDING: &str = "pending.json";

/// Why a key and chain are not an identity of this node, or could not be kept.
#[derive(Debug, thiserror::Error)]
pub enum IdentityError {
    /// A file of the state directory.
    #[error("{path}: {source}")]
    File {
        /// Which.
        path: PathBuf,
        /// The system's answer.
        source: std::io::Error,
    },
    /// No PEM where PEM should be.
    #[error("{what} can't be read")]
    Unreadable {
        /// The part.
        what: &'static str,
    },
    /// The leaf names no node.
    #[error(transparent)]
    Leaf(#[from] LeafError),
    /// The leaf is another node's.
    #[error("the certificate is that of node `{found}`, not of `{wanted}`")]
    OtherNode {
        /// In the certificate.
        found: NodeName,
        /// This node.
        wanted: NodeName,
    },
    /// The chain has no CA certificate: there is nothing to check peers by.
    #[error("the certificate chain contains no CA")]
    NoCa,
    /// Key and certificate don't belong together, or a CA is unusable.
    #[error("key and certificate: {0}")]
    Crypto(String),
}

/// A key, its certificate, and the CAs by which peers are checked. Immutable; a renewal makes another.
#[derive(Debug)]
pub struct Identity {
    /// What the certificate says.
    pub leaf: Leaf,
    /// What TLS presents: key and the chain as the signer gave it.
    pub certified: Arc<CertifiedKey>,
    /// CA certificates of our own chain.
    pub roots: Arc<RootCertStore>,
}

impl Identity {
    /// Takes a key and a chain (leaf first, then CAs), both PEM, if they are an identity of `node`. Expiry is not
    /// checked: an expired one is still good for saying when it expired.
    ///
    /// # Errors
    ///
    /// PEM that can't be read, another node's certificate, a chain without a CA, a key that isn't the certificate's.
    pub fn from_pem(node: &NodeName, key: &str, chain: &str) -> Result<Self, IdentityError> {
        let key = PrivateKeyDer::from_pem_slice(key.as_bytes()).map_err(|_| IdentityError::Unreadable { what: "the key" })?;
        let certs: Vec<CertificateDer<'static>> = CertificateDer::pem_slice_iter(chain.as_bytes())
            .take(MAX_CHAIN)
            .collect::<Result<_, _>>()
            .map_err(|_| IdentityError::Unreadable { what: "the certificate chain" })?;
        let first = certs.first().ok_or(IdentityError::Unreadable { what: "the certificate chain" })?;
        let leaf = Leaf::parse(first)?;
        if leaf.node != *node {
            return Err(IdentityError::OtherNode { found: leaf.node, wanted: node.clone() });
        }
        let mut roots = RootCertStore::empty();
        for ca in certs.iter().skip(1).filter(|c| leaf::is_ca(c)) {
            roots.add(ca.clone()).map_err(|e| IdentityError::Crypto(e.to_string()))?;
        }
        if roots.is_empty() {
            return Err(IdentityError::NoCa);
        }
        let provider = rustls::crypto::aws_lc_rs::default_provider();
        let certified = CertifiedKey::from_der(certs, key, &provider).map_err(|e| IdentityError::Crypto(e.to_string()))?;
        certified.keys_match().map_err(|e| IdentityError::Crypto(e.to_string()))?;
        Ok(Self { leaf, certified: Arc::new(certified), roots: Arc::new(roots) })
    }
}

/// A request that was sent and not answered yet.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Pending {
    /// Name of the `CertificateSigningRequest` object.
    pub name: String,
    /// The address that it asks for.
    pub address: IpAddr,
    /// Its key, PEM.
    pub key: String,
    /// The request itself, PEM.
    pub request: String,
}

impl Pending {
    /// Makes a P-256 key and a request for it: common name `dotgraft-agent:<node>`, the node as DNS name, and the address
    /// of the Peer service.
    ///
    /// # Errors
    ///
    /// The key or the request can't be made.
    pub fn generate(node: &NodeName, address: IpAddr, name: String) -> Result<Self, IdentityError> {
        let crypto = |e: rcgen::Error| IdentityError::Crypto(e.to_string());
        let key = KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256).map_err(crypto)?;
        let mut params = CertificateParams::default();
        params.distinguished_name = rcgen::DistinguishedName::new();
        params.distinguished_name.push(DnType::CommonName, format!("{}{node}", leaf::CN_PREFIX));
        let dns = node.as_str().try_into().map_err(crypto)?;
        params.subject_alt_names = vec![SanType::DnsName(dns), SanType::IpAddress(address)];
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        let request = params.serialize_request(&key).and_then(|r| r.pem()).map_err(crypto)?;
        Ok(Self { name, address, key: key.serialize_pem(), request })
    }
}

/// Holds the current identity and its files. A cheap clone; a renewal is seen by every clone at once.
#[derive(Debug, Clone)]
pub struct IdentityStore {
    node: NodeName,
    dir: Arc<PathBuf>,
    current: Arc<watch::Sender<Held>>,
}

/// The identity in use, and the one before it: until peers know of a renewal, the old one is still good.
#[derive(Debug, Clone, Default)]
struct Held {
    current: Option<Arc<Identity>>,
    previous: Option<Arc<Identity>>,
}

impl IdentityStore {
    /// Opens `<state-dir>/tls` (made 0700 if missing) and loads what is there. Files that can't be used are logged and
    /// treated as missing: the agent asks for a new certificate, and mounts volumes meanwhile.
    ///
    /// # Errors
    ///
    /// The directory can't be made or read.
    pub fn open(dir: &Path, node: NodeName) -> Result<Self, IdentityError> {
        std::fs::DirBuilder::new().recursive(true).mode(0o700).create(dir).map_err(|e| file_error(dir, e))?;
        let store = Self { node, dir: Arc::new(dir.to_owned()), current: Arc::default() };
        match read(&store.dir.join(CURRENT))? {
            None => {}
            Some(pem) => match Identity::from_pem(&store.node, &pem, &pem) {
                Ok(identity) => store.replace(Arc::new(identity)),
                Err(error) => tracing::warn!(%error, "the stored certificate can't be used; a new one will be requested"),
            },
        }
        Ok(store)
    }

    /// Whose identity it is.
    pub fn node(&self) -> &NodeName {
        &self.node
    }

    /// The identity in use; `None` before the first certificate.
    pub fn current(&self) -> Option<Arc<Identity>> {
        self.current.borrow().current.clone()
    }

    /// The identity before the last renewal of this process, if there was one.
    pub fn previous(&self) -> Option<Arc<Identity>> {
        self.current.borrow().previous.clone()
    }

    fn replace(&self, identity: Arc<Identity>) {
        self.current.send_modify(|held| held.previous = held.current.replace(identity));
    }

    /// Checks, stores durably, then uses a new identity. Connections that are open keep theirs.
    ///
    /// # Errors
    ///
    /// As [`Identity::from_pem`]; or it can't be stored: then the old one is still in use.
    pub fn install(&self, key: &str, chain: &str) -> Result<Arc<Identity>, IdentityError> {
        let identity = Arc::new(Identity::from_pem(&self.node, key, chain)?);
        write(&self.dir, CURRENT, format!("{}\n{}\n", key.trim_end(), chain.trim_end()).as_bytes())?;
        self.replace(Arc::clone(&identity));
        Ok(identity)
    }

    /// The request that waits for an answer.
    ///
    /// # Errors
    ///
    /// It can't be read.
    pub fn pending(&self) -> Result<Option<Pending>, IdentityError> {
        Ok(read(&self.dir.join(PENDING))?.and_then(|text| serde_json::from_str(&text).ok()))
    }

    /// Remembers a request before it is sent.
    ///
    /// # Errors
    ///
    /// It can't be stored.
    pub fn set_pending(&self, pending: &Pending) -> Result<(), IdentityError> {
        let text = serde_json::to_vec(pending).map_err(|_| IdentityError::Unreadable { what: "the pending request" })?;
        write(&self.dir, PENDING, &text)
    }

    /// Forgets the request; none is success.
    ///
    /// # Errors
    ///
    /// It can't be removed.
    pub fn clear_pending(&self) -> Result<(), IdentityError> {
        let path = self.dir.join(PENDING);
        match std::fs::remove_file(&path) {
            Err(e) if e.kind() != std::io::ErrorKind::NotFound => Err(file_error(&path, e)),
            _ => Ok(()),
        }
    }
}

fn file_error(path: &Path, source: std::io::Error) -> IdentityError {
    IdentityError::File { path: path.to_owned(), source }
}

/// A file's text; `None` if it is not there or is not text.
fn read(path: &Path) -> Result<Option<String>, IdentityError> {
    match std::fs::read(path) {
        Ok(bytes) => Ok(String::from_utf8(bytes).ok()),
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(e) => Err(file_error(path, e)),
    }
}

/// Replaces a file durably, 0600 from its first byte.
fn write(dir: &Path, name: &str, bytes: &[u8]) -> Result<(), IdentityError> {
    let temporary = dir.join(format!("{name}.new"));
    let at = |path: &Path| {
        let path = path.to_owned();
        move |e| file_error(&path, e)
    };
    match std::fs::remove_file(&temporary) {
        Err(e) if e.kind() != std::io::ErrorKind::NotFound => return Err(file_error(&temporary, e)),
        _ => {}
    }
    let mut options = std::fs::OpenOptions::new();
    let mut file = options.write(true).create_new(true).mode(0o600).open(&temporary).map_err(at(&temporary))?;
    file.write_all(bytes).and_then(|()| file.sync_all()).map_err(at(&temporary))?;
    let path = dir.join(name);
    std::fs::rename(&temporary, &path).map_err(at(&path))?;
    std::fs::File::open(dir).and_then(|d| d.sync_all()).map_err(at(dir))
}
