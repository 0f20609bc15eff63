//! The control plane's certificate authority and keys, made anew for each rig. Ours (the agents') is the operator's.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::Result;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, DnType, ExtendedKeyUsagePurpose, IsCa, KeyPair, KeyUsagePurpose};
use serde_json::json;

/// Signs what the API server, its clients and the controller manager need; files lie under one directory.
pub struct Authority {
    dir: PathBuf,
    issuer: CertifiedIssuer<'static, KeyPair>,
}

impl Authority {
    /// A new CA, with the `ServiceAccount` signing key (`sa.key`, `sa.pub`) beside it.
    pub fn create(dir: &Path) -> Result<Self> {
        fs::create_dir_all(dir)?;
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, "dotgraft-rig");
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign, KeyUsagePurpose::DigitalSignature];
        let issuer = CertifiedIssuer::self_signed(params, KeyPair::generate()?)?;
        fs::write(dir.join("ca.crt"), issuer.pem())?;
        fs::write(dir.join("ca.key"), issuer.key().serialize_pem())?;
        let tokens = KeyPair::generate()?;
        fs::write(dir.join("sa.key"), tokens.serialize_pem())?;
        fs::write(dir.join("sa.pub"), tokens.public_key_pem())?;
        Ok(Self { dir: dir.into(), issuer })
    }

    /// The path of a file of this authority, as a program's argument.
    pub fn path(&self, file: &str) -> String {
        self.dir.join(file).to_string_lossy().into_owned()
    }

    /// A certificate for server and client use, as `<name>.crt` and `<name>.key`. `names`: DNS names and IP addresses.
    pub fn issue(&self, name: &str, common_name: &str, organisation: Option<&str>, names: &[&str]) -> Result<()> {
        let mut params = CertificateParams::new(names.iter().map(ToString::to_string).collect::<Vec<_>>())?;
        params.distinguished_name.push(DnType::CommonName, common_name);
        if let Some(organisation) = organisation {
            params.distinguished_name.push(DnType::OrganizationName, organisation);
        }
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        let key = KeyPair::generate()?;
        let certificate = params.signed_by(&key, &self.issuer)?;
        fs::write(self.dir.join(format!("{name}.crt")), certificate.pem())?;
        fs::write(self.dir.join(format!("{name}.key")), key.serialize_pem())?;
        Ok(())
    }

    /// A kubeconfig that proves itself by the certificate `<name>.crt`; complete in itself.
    pub fn kubeconfig(&self, server: &str, name: &str) -> Result<String> {
        let read = |file: String| -> Result<String> { Ok(STANDARD.encode(fs::read(self.dir.join(file))?)) };
        let user = json!({
            "client-certificate-data": read(format!("{name}.crt"))?,
            "client-key-data": read(format!("{name}.key"))?,
        });
        self.kubeconfig_of(server, &user)
    }

    /// A kubeconfig that holds nothing but a bearer token.
    pub fn token_kubeconfig(&self, server: &str, token: &str) -> Result<String> {
        self.kubeconfig_of(server, &json!({ "token": token }))
    }

    fn kubeconfig_of(&self, server: &str, user: &serde_json::Value) -> Result<String> {
        let config = json!({
            "apiVersion": "v1",
            "kind": "Config",
            "clusters": [{"name": "rig", "cluster": {"server": server, "certificate-authority-data": STANDARD.encode(self.issuer.pem())}}],
            "users": [{"name": "rig", "user": user}],
            "contexts": [{"name": "rig", "context": {"cluster": "rig", "user": "rig"}}],
            "current-context": "rig",
        });
        Ok(serde_yaml::to_string(&config)?)
    }
}
