//! Each rule of the check has a request that breaks just it.

use std::collections::BTreeMap;

use k8s_openapi::ByteString;
use k8s_openapi::api::certificates::v1::CertificateSigningRequestSpec;
use k8s_openapi::api::core::v1::{NodeAddress, NodeStatus};
use kube::api::ObjectMeta;
use rcgen::KeyPair;

use super::*;

pub(in crate::signer) fn node() -> Node {
    let address = |t: &str, a: &str| NodeAddress { type_: t.into(), address: a.into() };
    Node {
        metadata: ObjectMeta { name: Some("n1".into()), ..ObjectMeta::default() },
        status: Some(NodeStatus {
            addresses: Some(vec![address("Hostname", "n1"), address("InternalIP", "10.0.0.1")]),
            ..NodeStatus::default()
        }),
        ..Node::default()
    }
}

pub(in crate::signer) fn request(edit: impl FnOnce(&mut CertificateParams)) -> Vec<u8> {
    let mut params = leaf_params("n1", &["10.0.0.1".parse().unwrap()]).unwrap();
    edit(&mut params);
    params.serialize_request(&KeyPair::generate().unwrap()).unwrap().pem().unwrap().into_bytes()
}

pub(in crate::signer) fn csr(pem: Vec<u8>) -> CertificateSigningRequest {
    CertificateSigningRequest {
        metadata: ObjectMeta {
            name: Some("dotgraft-agent-n1-x".into()),
            annotations: Some(BTreeMap::from([(PEER_PORT_ANNOTATION.into(), "7443".into())])),
            ..ObjectMeta::default()
        },
        spec: CertificateSigningRequestSpec {
            request: ByteString(pem),
            signer_name: crate::names::SIGNER.into(),
            usages: Some(USAGES.map(str::to_owned).to_vec()),
            username: Some("system:serviceaccount:dotgraft-system:dotgraft-agent".into()),
            extra: Some(BTreeMap::from([(EXTRA_NODE_NAME.into(), vec!["n1".into()])])),
            ..CertificateSigningRequestSpec::default()
        },
        status: None,
    }
}

fn verdict(csr: &CertificateSigningRequest) -> Result<Approved, Denial> {
    let name = requester_node(csr, "dotgraft-system")?;
    check(csr, &name, Some(&node()))
}

#[test]
fn a_request_as_the_agents_make_it_is_approved() {
    let ok = verdict(&csr(request(|_| {}))).unwrap();
    assert_eq!((ok.node.as_str(), ok.address.to_string().as_str()), ("n1", "10.0.0.1:7443"));
    assert_eq!(ok.life, MAX_LIFE);
}

#[test]
fn the_life_that_is_asked_for_is_bounded_on_both_sides() {
    let mut c = csr(request(|_| {}));
    c.spec.expiration_seconds = Some(1);
    assert_eq!(verdict(&c).unwrap().life, MIN_LIFE);
    c.spec.expiration_seconds = Some(i32::MAX);
    assert_eq!(verdict(&c).unwrap().life, MAX_LIFE);
    c.spec.expiration_seconds = Some(-5);
    assert_eq!(verdict(&c).unwrap().life, MAX_LIFE);
}

#[test]
fn another_service_account_or_an_unbound_token_is_denied() {
    let mut c = csr(request(|_| {}));
    c.spec.username = Some("system:serviceaccount:evil:dotgraft-agent".into());
    assert!(matches!(verdict(&c), Err(Denial::Username(_))));
    let mut c = csr(request(|_| {}));
    c.spec.extra = None;
    assert_eq!(verdict(&c).unwrap_err(), Denial::NoNode);
    let mut c = csr(request(|_| {}));
    c.spec.extra = Some(BTreeMap::from([(EXTRA_NODE_NAME.into(), vec!["n1".into(), "n2".into()])]));
    assert_eq!(verdict(&c).unwrap_err(), Denial::NoNode);
}

#[test]
fn another_nodes_name_is_denied_wherever_it_stands() {
    let mut c = csr(request(|_| {}));
    c.spec.extra = Some(BTreeMap::from([(EXTRA_NODE_NAME.into(), vec!["n2".into()])]));
    assert!(matches!(verdict(&c), Err(Denial::Subject { .. })));
    let c = csr(request(|p| p.subject_alt_names.push(SanType::DnsName("n2".to_owned().try_into().unwrap()))));
    assert!(matches!(verdict(&c), Err(Denial::Names { .. })));
    let c = csr(request(|p| p.subject_alt_names.push(SanType::IpAddress("10.0.0.2".parse().unwrap()))));
    assert!(matches!(verdict(&c), Err(Denial::Names { .. })));
    let c = csr(request(|p| p.distinguished_name.push(DnType::OrganizationName, "system:masters")));
    assert!(matches!(verdict(&c), Err(Denial::Subject { .. })));
}

#[test]
fn names_must_be_there_not_only_not_wrong() {
    let c = csr(request(|p| p.subject_alt_names.clear()));
    assert!(matches!(verdict(&c), Err(Denial::Names { .. })));
    let c = csr(request(|p| p.subject_alt_names.retain(|s| matches!(s, SanType::DnsName(_)))));
    assert!(matches!(verdict(&c), Err(Denial::Names { .. })));
}

#[test]
fn a_ca_or_other_usages_are_denied() {
    let c = csr(request(|p| p.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained)));
    assert!(verdict(&c).is_err());
    let c = csr(request(|p| p.key_usages.push(KeyUsagePurpose::KeyCertSign)));
    assert!(matches!(verdict(&c), Err(Denial::Extension(_))));
    let mut c = csr(request(|_| {}));
    c.spec.usages = Some(vec!["client auth".into()]);
    assert_eq!(verdict(&c).unwrap_err(), Denial::Usages);
    c.spec.usages.as_mut().unwrap().extend(["digital signature", "server auth", "cert sign"].map(str::to_owned));
    assert_eq!(verdict(&c).unwrap_err(), Denial::Usages);
}

#[test]
fn garbage_a_large_request_a_bad_port_and_a_missing_node_are_denied() {
    assert!(matches!(verdict(&csr(b"\xff\xfe".to_vec())), Err(Denial::Malformed(_))));
    assert!(matches!(verdict(&csr(vec![b'a'; MAX_REQUEST_BYTES + 1])), Err(Denial::Malformed(_))));
    let mut tampered = request(|_| {});
    let middle = tampered.len() / 2;
    tampered[middle] = if tampered[middle] == b'A' { b'B' } else { b'A' };
    assert!(matches!(verdict(&csr(tampered)), Err(Denial::Malformed(_))));
    for port in ["0", "65536", "x", ""] {
        let mut c = csr(request(|_| {}));
        c.metadata.annotations = Some(BTreeMap::from([(PEER_PORT_ANNOTATION.into(), port.into())]));
        assert_eq!(verdict(&c).unwrap_err(), Denial::Port, "{port}");
    }
    assert_eq!(check(&csr(request(|_| {})), "n1", None).unwrap_err(), Denial::NodeNotFound("n1".into()));
}
