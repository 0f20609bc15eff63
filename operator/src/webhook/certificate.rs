//! What the webhook serves with: a leaf for its names, signed by a CA whose key is thrown away at once, so nobody who reads the Secret can
//! sign anything with it. Each renewal is a new CA. The one before stays in the bundle, so the API server believes whichever of two
//! processes answers while they change over.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use k8s_openapi::ByteString;
use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose, PKCS_ECDSA_P256_SHA256,
};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::sign::CertifiedKey;
use x509_parser::prelude::{FromDer as _, GeneralName, X509Certificate};

const CA_CERT: &str = "ca.crt";
const CERT: &str = "tls.crt";
const KEY: &str = "tls.key";

/// Why there is nothing to serve with.
#[derive(Debug, thiserror::Error)]
pub enum CertificateError {
    /// The Secret lacks something, or it is no PEM, or key and certificate are no pair.
    #[error("`{0}` in the Secret is missing or damaged")]
    Damaged(&'static str),
    /// Making a key or a certificate failed.
    #[error("making a certificate: {0}")]
    Crypto(#[from] rcgen::Error),
}

/// All that the Secret holds.
#[derive(Debug, Clone)]
pub struct Kit {
    /// What the API server is to trust: PEM, the newest CA first, at most two.
    pub bundle: String,
    /// What TLS presents.
    pub certified: Arc<CertifiedKey>,
    /// DNS names and addresses in the leaf.
    names: BTreeSet<String>,
    /// Seconds since 1970.
    valid: (i64, i64),
    data: BTreeMap<String, ByteString>,
}

impl Kit {
    /// Reads it from the Secret's data.
    ///
    /// # Errors
    ///
    /// [`CertificateError`]: a field is missing or can't be read.
    pub fn read(data: &BTreeMap<String, ByteString>) -> Result<Self, CertificateError> {
        let text = |key| data.get(key).and_then(|b| std::str::from_utf8(&b.0).ok()).ok_or(CertificateError::Damaged(key));
        let (bundle, chain, key) = (text(CA_CERT)?, text(CERT)?, text(KEY)?);
        if certificates(bundle).is_empty() {
            return Err(CertificateError::Damaged(CA_CERT));
        }
        let chain = certificates(chain);
        let leaf = chain.first().ok_or(CertificateError::Damaged(CERT))?;
        let (names, valid) = facts(leaf).ok_or(CertificateError::Damaged(CERT))?;
        let key = PrivateKeyDer::from_pem_slice(key.as_bytes()).map_err(|_| CertificateError::Damaged(KEY))?;
        let provider = rustls::crypto::aws_lc_rs::default_provider();
        let certified = CertifiedKey::from_der(chain, key, &provider).map_err(|_| CertificateError::Damaged(KEY))?;
        Ok(Self { bundle: bundle.to_owned(), certified: Arc::new(certified), names, valid, data: data.clone() })
    }

    /// Makes a new one, for `names`, that is valid for `life`. What `old` trusted first stays trusted.
    ///
    /// # Errors
    ///
    /// [`CertificateError`]: the certificates can't be made.
    pub fn make(names: &[String], life: Duration, now: SystemTime, old: Option<&Self>) -> Result<Self, CertificateError> {
        let ca_key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)?;
        let mut ca = params(&[], "dotgraft webhook CA", life, now)?;
        ca.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        ca.key_usages = vec![KeyUsagePurpose::KeyCertSign];
        let ca_cert = ca.self_signed(&ca_key)?;
        let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)?;
        let mut leaf = params(names, "dotgraft webhook", life, now)?;
        leaf.is_ca = IsCa::ExplicitNoCa;
        leaf.use_authority_key_identifier_extension = true;
        leaf.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        leaf.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        let leaf = leaf.signed_by(&key, &Issuer::from_params(&ca, &ca_key))?;
        let before = old.and_then(|o| first_block(&o.bundle)).unwrap_or_default();
        let entry = |key: &str, text: String| (key.to_owned(), ByteString(text.into_bytes()));
        Self::read(&BTreeMap::from([
            entry(CA_CERT, format!("{}{before}", ca_cert.pem())),
            entry(CERT, leaf.pem()),
            entry(KEY, key.serialize_pem()),
        ]))
    }

    /// For the Secret.
    pub fn data(&self) -> &BTreeMap<String, ByteString> {
        &self.data
    }

    /// Two thirds of its life are over, or it is not for all of these names.
    pub fn is_due(&self, names: &[String], now: SystemTime) -> bool {
        let now = now.duration_since(SystemTime::UNIX_EPOCH).ok().and_then(|d| i64::try_from(d.as_secs()).ok()).unwrap_or(i64::MAX);
        let (from, to) = self.valid;
        let due = from.saturating_add(to.saturating_sub(from) / 3 * 2);
        now >= due || now < from || !names.iter().all(|n| self.names.contains(n))
    }
}

fn params(names: &[String], common: &str, life: Duration, now: SystemTime) -> Result<CertificateParams, rcgen::Error> {
    let mut params = CertificateParams::new(names.to_vec())?;
    params.distinguished_name = rcgen::DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, common);
    let (from, to) = crate::ca::validity(now, life);
    (params.not_before, params.not_after) = (from.into(), to.into());
    Ok(params)
}

fn certificates(pem: &str) -> Vec<CertificateDer<'static>> {
    CertificateDer::pem_slice_iter(pem.as_bytes()).filter_map(Result::ok).collect()
}

/// The first certificate of a bundle, as PEM.
fn first_block(pem: &str) -> Option<&str> {
    const END: &str = "-----END CERTIFICATE-----";
    let end = pem.find(END)? + END.len();
    let rest = pem.get(end..)?;
    pem.get(..end + usize::from(rest.starts_with('\r')) + usize::from(rest.trim_start_matches('\r').starts_with('\n')))
}

fn facts(leaf: &CertificateDer<'_>) -> Option<(BTreeSet<String>, (i64, i64))> {
    let (_, leaf) = X509Certificate::from_der(leaf).ok()?;
    let names = leaf.subject_alternative_name().ok()??.value.general_names.iter().filter_map(|n| match n {
        GeneralName::DNSName(n) => Some((*n).to_owned()),
        GeneralName::IPAddress(b) => address(b),
        _ => None,
    });
    Some((names.collect(), (leaf.validity().not_before.timestamp(), leaf.validity().not_after.timestamp())))
}

fn address(bytes: &[u8]) -> Option<String> {
    if let Ok(v4) = <[u8; 4]>::try_from(bytes) {
        return Some(std::net::Ipv4Addr::from(v4).to_string());
    }
    <[u8; 16]>::try_from(bytes).ok().map(|v6| std::net::Ipv6Addr::from(v6).to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIFE: Duration = Duration::from_secs(7 * 24 * 3600);

    fn names() -> Vec<String> {
        vec!["dotgraft-operator.somewhere.svc".into(), "127.0.0.1".into()]
    }
    fn kit(old: Option<&Kit>) -> Kit {
        Kit::make(&names(), LIFE, SystemTime::now(), old).unwrap()
    }
    /// Whether a client that trusts `bundle` takes what `kit` presents for `name`.
    fn believes(bundle: &str, kit: &Kit, name: &str) -> bool {
        use rustls::client::danger::ServerCertVerifier as _;
        let mut roots = rustls::RootCertStore::empty();
        for ca in certificates(bundle) {
            roots.add(ca).unwrap();
        }
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let verifier = rustls::client::WebPkiServerVerifier::builder_with_provider(Arc::new(roots), provider).build().unwrap();
        let name = rustls::pki_types::ServerName::try_from(name.to_owned()).unwrap();
        verifier.verify_server_cert(&kit.certified.cert[0], &[], &name, &[], rustls::pki_types::UnixTime::now()).is_ok()
    }

    #[test]
    fn what_is_made_is_believed_for_its_names_only() {
        let kit = kit(None);
        for name in names() {
            assert!(believes(&kit.bundle, &kit, &name), "{name}");
        }
        assert!(!believes(&kit.bundle, &kit, "dotgraft-operator.elsewhere.svc"));
        assert!(!believes(&super::tests::kit(None).bundle, &kit, "127.0.0.1"), "another CA");
    }

    #[test]
    fn old_and_new_are_both_believed_while_they_change_over_and_not_older_ones() {
        let first = kit(None);
        let second = kit(Some(&first));
        let third = kit(Some(&second));
        for kit in [&second, &third] {
            assert!(believes(&third.bundle, kit, "127.0.0.1"));
        }
        assert!(!believes(&third.bundle, &first, "127.0.0.1"));
        assert_eq!(certificates(&third.bundle).len(), 2);
    }

    #[test]
    fn it_is_due_after_two_thirds_of_its_life_or_for_another_name() {
        let now = SystemTime::now();
        for life in [Duration::from_secs(10), LIFE] {
            let kit = Kit::make(&names(), life, now, None).unwrap();
            assert!(!kit.is_due(&names(), now + life / 3), "{life:?}");
            assert!(kit.is_due(&names(), now + life * 3 / 4), "{life:?}");
            assert!(kit.is_due(&["other".to_owned()], now), "{life:?}");
            assert!(kit.is_due(&names(), now - Duration::from_secs(48 * 3600)), "a clock that was ahead");
        }
    }

    #[test]
    fn it_is_read_back_and_damage_is_found() {
        let kit = kit(None);
        assert_eq!(Kit::read(kit.data()).unwrap().bundle, kit.bundle);
        for key in [CA_CERT, CERT, KEY] {
            let mut data = kit.data().clone();
            data.insert(key.into(), ByteString(b"garbage".to_vec()));
            assert!(matches!(Kit::read(&data), Err(CertificateError::Damaged(k)) if k == key), "{key}");
            data.remove(key);
            assert!(matches!(Kit::read(&data), Err(CertificateError::Damaged(k)) if k == key), "{key}");
        }
        let mut data = kit.data().clone();
        data.extend(super::tests::kit(None).data().iter().filter(|(k, _)| *k == KEY).map(|(k, v)| (k.clone(), v.clone())));
        assert!(matches!(Kit::read(&data), Err(CertificateError::Damaged(KEY))), "the key of another certificate");
    }
}
