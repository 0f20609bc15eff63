//! TLS between agents: 1.3 only, mutual, by the aws-lc-rs provider. A peer is believed if its certificate chains to a CA
//! of our own chain, is not expired, names its node in common name *and* DNS name, and is listed for that node in the
//! [`PeerDirectory`] right now. Certificates are read at each handshake, so a renewal needs no restart.

use std::sync::Arc;

use dotgraft_engine::ids::NodeName;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{ResolvesClientCert, Resumption, verify_server_cert_signed_by_trust_anchor};
use rustls::crypto::{CryptoProvider, verify_tls13_signature};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::server::{ClientHello, NoServerSessionStorage, ParsedCertificate, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use rustls::{
    AlertDescription, CertificateError, ClientConfig, DigitallySignedStruct, DistinguishedName, Error, PeerIncompatible, ServerConfig,
    SignatureScheme,
};

use super::directory::PeerDirectory;
use super::identity::{Identity, IdentityStore};
use super::leaf::Leaf;
use super::unix_now;

/// The only protocol spoken over it.
const ALPN: &[u8] = b"h2";

/// What both ends of the agent's TLS need: who we are and who the others are. A cheap clone.
#[derive(Debug, Clone)]
pub struct TlsContext {
    /// Our key and certificate.
    pub identity: IdentityStore,
    /// Everyone else's.
    pub directory: PeerDirectory,
    provider: Arc<CryptoProvider>,
}

/// A peer whose certificate was accepted; what a connection remembers of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PeerIdentity {
    /// What its certificate said.
    pub leaf: Leaf,
}

impl TlsContext {
    /// Brings the two together.
    pub fn new(identity: IdentityStore, directory: PeerDirectory) -> Self {
        Self { identity, directory, provider: Arc::new(rustls::crypto::aws_lc_rs::default_provider()) }
    }

    /// Configuration of the Peer service, for as long as the agent lives.
    ///
    /// # Errors
    ///
    /// rustls refuses the protocol versions or the verifier.
    pub fn server_config(&self) -> Result<Arc<ServerConfig>, Error> {
        let verifier = Arc::new(Verifier { context: self.clone(), expected: None });
        let mut config = ServerConfig::builder_with_provider(Arc::clone(&self.provider))
            .with_protocol_versions(&[&rustls::version::TLS13])?
            .with_client_cert_verifier(verifier)
            .with_cert_resolver(Arc::new(Presented(self.clone())));
        config.alpn_protocols = vec![ALPN.to_vec()];
        // No resumption: every connection proves its certificate anew.
        config.send_tls13_tickets = 0;
        config.session_storage = Arc::new(NoServerSessionStorage {});
        Ok(Arc::new(config))
    }

    /// Configuration for one connection to `node` and nobody else.
    ///
    /// # Errors
    ///
    /// rustls refuses the protocol versions or the identity.
    pub fn client_config(&self, node: &NodeName) -> Result<Arc<ClientConfig>, Error> {
        let verifier = Arc::new(Verifier { context: self.clone(), expected: Some(node.clone()) });
        let mut config = ClientConfig::builder_with_provider(Arc::clone(&self.provider))
            .with_protocol_versions(&[&rustls::version::TLS13])?
            .dangerous() // stricter than the usual verifier, see `Verifier`
            .with_custom_certificate_verifier(verifier)
            .with_client_cert_resolver(Arc::new(Presented(self.clone())));
        config.alpn_protocols = vec![ALPN.to_vec()];
        config.resumption = Resumption::disabled();
        config.enable_sni = false;
        Ok(Arc::new(config))
    }

    /// The identity to show. After a renewal that is the one before, until the directory lists the new one: peers learn of
    /// a renewal from the same NodePool as we do.
    pub fn presented(&self) -> Option<Arc<Identity>> {
        let current = self.identity.current()?;
        let listed = |i: &Identity| self.directory.allows(&i.leaf.node, i.leaf.fingerprint);
        let previous = self.identity.previous().filter(|p| listed(p) && p.leaf.valid_at(unix_now()));
        match previous {
            Some(previous) if !listed(&current) => Some(previous),
            _ => Some(current),
        }
    }

    /// Whether that peer's certificate is still good: listed, and not expired at `now` (Unix seconds).
    pub fn still_good(&self, peer: &PeerIdentity, now: i64) -> bool {
        peer.leaf.valid_at(now) && self.directory.allows(&peer.leaf.node, peer.leaf.fingerprint)
    }
}

impl PeerIdentity {
    /// Of a finished handshake, whose verifier has accepted the first certificate.
    pub fn of_handshake(certificates: Option<&[CertificateDer<'_>]>) -> Option<Self> {
        Some(Self { leaf: Leaf::parse(certificates?.first()?).ok()? })
    }
}

/// Whether a handshake failed because one side does not believe the other, rather than by the network.
pub fn is_denial(error: &Error) -> bool {
    use AlertDescription as A;
    match error {
        Error::InvalidCertificate(_)
        | Error::NoCertificatesPresented
        | Error::PeerIncompatible(PeerIncompatible::NoCertificateRequestSignatureSchemesInCommon) => true,
        Error::AlertReceived(alert) => matches!(
            alert,
            A::BadCertificate
                | A::UnsupportedCertificate
                | A::CertificateRevoked
                | A::CertificateExpired
                | A::CertificateUnknown
                | A::UnknownCA
                | A::AccessDenied
                | A::CertificateRequired
                | A::DecryptError
        ),
        _ => false,
    }
}

/// Shows the certificate of the moment; without one the handshake fails.
#[derive(Debug)]
struct Presented(TlsContext);

impl ResolvesServerCert for Presented {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        self.0.presented().map(|i| Arc::clone(&i.certified))
    }
}

impl ResolvesClientCert for Presented {
    fn resolve(&self, _: &[&[u8]], _: &[SignatureScheme]) -> Option<Arc<CertifiedKey>> {
        self.0.presented().map(|i| Arc::clone(&i.certified))
    }
    fn has_certs(&self) -> bool {
        self.0.presented().is_some()
    }
}

/// Both directions' verifier.
#[derive(Debug)]
struct Verifier {
    context: TlsContext,
    /// The node that was dialled; a server takes any node that the directory lists.
    expected: Option<NodeName>,
}

impl Verifier {
    fn roots(&self) -> Result<Arc<rustls::RootCertStore>, Error> {
        let identity = self.context.identity.current();
        identity.map(|i| Arc::clone(&i.roots)).ok_or_else(|| Error::General("this agent has no certificate yet".into()))
    }

    /// The whole check, the same in both directions, as an agent has one certificate for both: the chain, its times, and its use for
    /// TLS (the signer gives `serverAuth` and `clientAuth` together, never one alone); then whose it is.
    fn verify(&self, leaf: &CertificateDer<'_>, others: &[CertificateDer<'_>], now: UnixTime) -> Result<(), Error> {
        let parsed = ParsedCertificate::try_from(leaf)?;
        let algorithms = self.context.provider.signature_verification_algorithms.all;
        verify_server_cert_signed_by_trust_anchor(&parsed, &*self.roots()?, others, now, algorithms)?;
        self.check_listed(leaf)
    }

    /// Everything beside the chain: the names agree, and the directory lists exactly this certificate.
    fn check_listed(&self, end_entity: &CertificateDer<'_>) -> Result<(), Error> {
        let leaf = Leaf::parse(end_entity).map_err(|_| Error::InvalidCertificate(CertificateError::NotValidForName))?;
        if self.expected.as_ref().is_some_and(|node| *node != leaf.node) {
            return Err(Error::InvalidCertificate(CertificateError::NotValidForName));
        }
        if self.context.directory.allows(&leaf.node, leaf.fingerprint) {
            Ok(())
        } else {
            Err(Error::InvalidCertificate(CertificateError::Revoked))
        }
    }

    fn signature(&self, message: &[u8], cert: &CertificateDer<'_>, dss: &DigitallySignedStruct) -> Signature {
        verify_tls13_signature(message, cert, dss, &self.context.provider.signature_verification_algorithms)
    }

    fn schemes(&self) -> Vec<SignatureScheme> {
        self.context.provider.signature_verification_algorithms.supported_schemes()
    }
}

type Signature = Result<HandshakeSignatureValid, Error>;

const NO_TLS12: Error = Error::PeerIncompatible(PeerIncompatible::Tls13RequiredForQuic);

impl ClientCertVerifier for Verifier {
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &[]
    }
    fn verify_client_cert(
        &self,
        leaf: &CertificateDer<'_>,
        others: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        self.verify(leaf, others, now).map(|()| ClientCertVerified::assertion())
    }
    fn verify_tls12_signature(&self, _: &[u8], _: &CertificateDer<'_>, _: &DigitallySignedStruct) -> Signature {
        Err(NO_TLS12)
    }
    fn verify_tls13_signature(&self, message: &[u8], cert: &CertificateDer<'_>, dss: &DigitallySignedStruct) -> Signature {
        self.signature(message, cert, dss)
    }
    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.schemes()
    }
}

impl ServerCertVerifier for Verifier {
    fn verify_server_cert(
        &self,
        leaf: &CertificateDer<'_>,
        others: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        self.verify(leaf, others, now).map(|()| ServerCertVerified::assertion())
    }
    fn verify_tls12_signature(&self, _: &[u8], _: &CertificateDer<'_>, _: &DigitallySignedStruct) -> Signature {
        Err(NO_TLS12)
    }
    fn verify_tls13_signature(&self, message: &[u8], cert: &CertificateDer<'_>, dss: &DigitallySignedStruct) -> Signature {
        self.signature(message, cert, dss)
    }
    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.schemes()
    }
}
