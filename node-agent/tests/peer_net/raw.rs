//! A peer that does not play by the rules: raw TLS with any certificate, raw gRPC without our client.

use std::io;
use std::sync::Arc;

use dotgraft_proto::agent::v1::peer_client::PeerClient as Stub;
use hyper_util::rt::TokioIo;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::{ClientConfig, DigitallySignedStruct, Error, SignatureScheme};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tonic::transport::{Channel, Endpoint, Uri};

use crate::support::*;

/// Believes every server.
#[derive(Debug)]
struct Gullible(Arc<rustls::crypto::CryptoProvider>);

impl ServerCertVerifier for Gullible {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        Ok(ServerCertVerified::assertion())
    }
    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Ok(HandshakeSignatureValid::assertion())
    }
    fn verify_tls13_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Ok(HandshakeSignatureValid::assertion())
    }
    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}

/// Connects with that certificate, or none, by that version of TLS.
pub async fn tls(
    to: &Node,
    identity: Option<&(String, String)>,
    version: &'static rustls::SupportedProtocolVersion,
) -> io::Result<TlsStream<TcpStream>> {
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let builder = ClientConfig::builder_with_provider(Arc::clone(&provider))
        .with_protocol_versions(&[version])
        .unwrap()
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(Gullible(provider)));
    let mut config = match identity {
        None => builder.with_no_client_auth(),
        Some((key, chain)) => {
            let chain = CertificateDer::pem_slice_iter(chain.as_bytes()).collect::<Result<_, _>>().unwrap();
            builder.with_client_auth_cert(chain, PrivateKeyDer::from_pem_slice(key.as_bytes()).unwrap()).unwrap()
        }
    };
    config.alpn_protocols = vec![b"h2".to_vec()];
    let tcp = TcpStream::connect(to.address).await?;
    TlsConnector::from(Arc::new(config)).connect(ServerName::IpAddress(to.address.ip().into()), tcp).await
}

/// Whether the server lets that certificate in: its first bytes come, rather than an alert or the end.
pub async fn let_in(to: &Node, identity: Option<&(String, String)>) -> bool {
    let Ok(mut stream) = soon(tls(to, identity, &rustls::version::TLS13)).await else { return false };
    let mut first = [0; 1];
    matches!(soon(stream.read(&mut first)).await, Ok(1))
}

pub async fn channel(io: impl AsyncRead + AsyncWrite + Unpin + Send + 'static) -> Channel {
    let mut once = Some(TokioIo::new(io));
    let connector = tower::service_fn(move |_: Uri| std::future::ready(once.take().ok_or_else(|| io::Error::other("closed"))));
    Endpoint::from_static("http://localhost").connect_with_connector(connector).await.unwrap()
}

/// A stub at `to` with a good certificate and none of our client's manners.
pub async fn stub(to: &Node, identity: &(String, String)) -> Stub<Channel> {
    let stream = tls(to, Some(identity), &rustls::version::TLS13).await.unwrap();
    Stub::new(channel(stream).await).max_encoding_message_size(usize::MAX)
}
