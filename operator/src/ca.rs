//! The certificate authority of the agents: made once, kept in a Secret, used by the signer only.
//!
//! Secret `dotgraft-ca` holds `ca.crt` (PEM; the first certificate is the issuer, any others stay trusted
//! while a rotation lasts) and `ca.key` (PKCS #8 PEM). It is read live for each signature: that is rare, and a
//! rotated CA takes effect at once. Security.md, "Certificates".

use std::collections::BTreeMap;
use std::time::{Duration, SystemTime};

use dotgraft_api::common::CA_SECRET;
use k8s_openapi::ByteString;
use k8s_openapi::api::core::v1::Secret;
use kube::api::{ObjectMeta, PostParams};
use kube::{Api, Client};
use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair, KeyUsagePurpose, PublicKeyData};

/// Longest life of a leaf: seven days.
pub const MAX_LIFE: Duration = Duration::from_secs(7 * 24 * 3600);
/// Shortest life that the operator can be told to give (`--certificate-lifetime`).
pub const SHORTEST_LIFE: Duration = Duration::from_secs(10);
const CERT_KEY: &str = "ca.crt";
const PRIVATE_KEY: &str = "ca.key";
const CA_LIFE: Duration = Duration::from_secs(10 * 365 * 24 * 3600);
/// Certificates are valid this long before they are made: clocks of nodes may be a day apart (failures.md row 15), and an hour for the way.
const BACKDATE: Duration = Duration::from_secs(25 * 3600);

/// From when to when a certificate counts that is made at `now` for `life`: the same for every one that we make. A short-lived one is backdated
/// less, by a quarter of its life: it is renewed at two thirds of the whole span, which must not be over at once.
pub fn validity(now: SystemTime, life: Duration) -> (SystemTime, SystemTime) {
    (now - BACKDATE.min(life / 4), now + life)
}

/// Why there is no usable CA.
#[derive(Debug, thiserror::Error)]
pub enum CaError {
    /// The API server refused or could not be reached.
    #[error("reading or creating Secret `{CA_SECRET}`: {0}")]
    Api(#[from] kube::Error),
    /// The Secret's content is damaged: a person must restore it, we never replace a CA that exists.
    #[error("Secret `{CA_SECRET}` lacks a usable `{0}`: restore it, or delete the Secret to start a new CA")]
    Damaged(&'static str),
    /// Making a key or a certificate failed.
    #[error("making a certificate: {0}")]
    Crypto(#[from] rcgen::Error),
}

/// The CA, ready to sign.
pub struct Ca {
    issuer: Issuer<'static, KeyPair>,
    bundle: String,
}

impl std::fmt::Debug for Ca {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Ca(key not shown)")
    }
}

/// A signed leaf.
#[derive(Debug, Clone)]
pub struct Leaf {
    /// Leaf first, then every CA certificate that agents shall trust.
    pub chain_pem: String,
    /// Lower-case hex SHA-256 of the leaf's DER.
    pub fingerprint: String,
}

impl Ca {
    /// Takes the CA out of the Secret's data.
    ///
    /// # Errors
    ///
    /// [`CaError`]: a field is missing, or isn't a key or certificate.
    pub fn from_data(data: &BTreeMap<String, ByteString>) -> Result<Self, CaError> {
        let text = |key: &'static str| data.get(key).and_then(|b| String::from_utf8(b.0.clone()).ok()).ok_or(CaError::Damaged(key));
        let (bundle, key) = (text(CERT_KEY)?, text(PRIVATE_KEY)?);
        let key = KeyPair::from_pem(&key).map_err(|_| CaError::Damaged(PRIVATE_KEY))?;
        let issuer = Issuer::from_ca_cert_pem(&bundle, key).map_err(|_| CaError::Damaged(CERT_KEY))?;
        Ok(Self { issuer, bundle })
    }

    /// Signs a public key with exactly the names that the signer has checked, for `life` from now.
    ///
    /// # Errors
    ///
    /// [`CaError`]: the certificate can't be made.
    pub fn sign(&self, key: &impl PublicKeyData, mut params: CertificateParams, life: Duration) -> Result<Leaf, CaError> {
        let (from, to) = validity(SystemTime::now(), life);
        (params.not_before, params.not_after) = (from.into(), to.into());
        params.is_ca = IsCa::ExplicitNoCa;
        params.use_authority_key_identifier_extension = true;
        let leaf = params.signed_by(key, &self.issuer)?;
        Ok(Leaf { chain_pem: format!("{}{}", leaf.pem(), self.bundle), fingerprint: crate::names::sha256_hex(leaf.der()) })
    }
}

/// Makes a new CA's Secret data: ECDSA P-256, ten years, may sign leaves only.
///
/// # Errors
///
/// [`CaError`]: the key or the certificate can't be made.
pub fn generate() -> Result<BTreeMap<String, ByteString>, CaError> {
    let key = KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256)?;
    let (from, to) = validity(SystemTime::now(), CA_LIFE);
    let mut params = CertificateParams::default();
    params.distinguished_name = rcgen::DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, "dotgraft agents CA");
    (params.not_before, params.not_after) = (from.into(), to.into());
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    let cert = params.self_signed(&key)?;
    Ok(BTreeMap::from([
        (CERT_KEY.to_owned(), ByteString(cert.pem().into_bytes())),
        (PRIVATE_KEY.to_owned(), ByteString(key.serialize_pem().into_bytes())),
    ]))
}

/// The CA of this installation; made if there is none. Two operators that race end with the same one: `create`
/// lets only one win, the other reads what was written.
///
/// # Errors
///
/// [`CaError`]: the API server refuses, or what it has is no CA.
pub async fn ensure(client: &Client, namespace: &str) -> Result<Ca, CaError> {
    let secrets: Api<Secret> = Api::namespaced(client.clone(), namespace);
    let secret = match secrets.get_opt(CA_SECRET).await? {
        Some(secret) => secret,
        None => create(&secrets).await?,
    };
    Ca::from_data(&secret.data.unwrap_or_default())
}

async fn create(secrets: &Api<Secret>) -> Result<Secret, CaError> {
    let secret = Secret {
        metadata: ObjectMeta { name: Some(CA_SECRET.into()), ..ObjectMeta::default() },
        data: Some(generate()?),
        type_: Some("Opaque".into()),
        ..Secret::default()
    };
    match secrets.create(&PostParams::default(), &secret).await {
        Ok(made) => {
            tracing::info!("created the CA of the agents");
            Ok(made)
        }
        Err(kube::Error::Api(s)) if s.is_already_exists() => Ok(secrets.get(CA_SECRET).await?),
        Err(e) => Err(e.into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use x509_parser::prelude::*;

    #[test]
    fn a_new_ca_is_read_back_and_signs_what_verifies_against_it() {
        let data = generate().unwrap();
        let ca = Ca::from_data(&data).unwrap();
        let key = KeyPair::generate().unwrap();
        let leaf = ca.sign(&key, CertificateParams::new(vec!["n1".to_owned()]).unwrap(), Duration::from_secs(3600)).unwrap();
        let pems: Vec<_> = Pem::iter_from_buffer(leaf.chain_pem.as_bytes()).map(Result::unwrap).collect();
        assert_eq!(pems.len(), 2);
        assert_eq!(crate::names::sha256_hex(&pems[0].contents), leaf.fingerprint);
        let (leaf, root) = (pems[0].parse_x509().unwrap(), pems[1].parse_x509().unwrap());
        assert_eq!(leaf.issuer(), root.subject());
        assert!(root.is_ca() && !leaf.is_ca());
        let days = (root.validity().not_after.timestamp() - root.validity().not_before.timestamp()) / 86400;
        assert!((3649..=3651).contains(&days), "{days}");
        assert!(leaf.validity().time_to_expiration().unwrap().whole_seconds() <= 3600);
    }

    #[test]
    fn a_short_lived_leaf_is_not_due_for_renewal_when_it_is_made() {
        let ca = Ca::from_data(&generate().unwrap()).unwrap();
        for seconds in [10, 600, 7 * 24 * 3600] {
            let key = KeyPair::generate().unwrap();
            let leaf = ca.sign(&key, CertificateParams::new(vec!["n1".to_owned()]).unwrap(), Duration::from_secs(seconds)).unwrap();
            let pem = Pem::iter_from_buffer(leaf.chain_pem.as_bytes()).next().unwrap().unwrap();
            let validity = pem.parse_x509().unwrap().validity().clone();
            let (from, to) = (validity.not_before.timestamp(), validity.not_after.timestamp());
            let due = from + (to - from) / 3 * 2;
            let now = i64::try_from(SystemTime::UNIX_EPOCH.elapsed().unwrap().as_secs()).unwrap();
            assert!(due > now + i64::try_from(seconds).unwrap() / 3, "{seconds} s: due {} s after it was made", due - now);
        }
    }

    #[test]
    fn a_certificate_of_usual_life_counts_also_where_the_clock_is_a_day_behind() {
        let data = generate().unwrap();
        let ca = Ca::from_data(&data).unwrap();
        let week = Duration::from_secs(7 * 24 * 3600);
        let key = KeyPair::generate().unwrap();
        let leaf = ca.sign(&key, CertificateParams::new(vec!["n1".to_owned()]).unwrap(), week).unwrap();
        let day_behind = i64::try_from(SystemTime::UNIX_EPOCH.elapsed().unwrap().as_secs()).unwrap() - 24 * 3600;
        for pem in Pem::iter_from_buffer(leaf.chain_pem.as_bytes()).map(Result::unwrap) {
            let from = pem.parse_x509().unwrap().validity().not_before.timestamp();
            assert!(from < day_behind, "leaf or CA: it begins {} s too late", from - day_behind);
        }
    }

    #[test]
    fn a_damaged_secret_is_refused_not_replaced() {
        let mut data = generate().unwrap();
        data.insert(PRIVATE_KEY.into(), ByteString(b"garbage".to_vec()));
        assert!(matches!(Ca::from_data(&data), Err(CaError::Damaged(PRIVATE_KEY))));
        data.remove(CERT_KEY);
        assert!(matches!(Ca::from_data(&data), Err(CaError::Damaged(CERT_KEY))));
    }
}
