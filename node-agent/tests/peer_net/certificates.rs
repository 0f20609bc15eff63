//! Who is let in, who is cut off, and what a renewal disturbs: nothing (failures.md row 14).

use std::time::Duration;

use dotgraft_agent::peer::client::{ClientSettings, PeerClient};
use dotgraft_agent::peer::directory::{Fingerprint, PeerInfo};
use dotgraft_agent::peer::identity::{IdentityError, IdentityStore};
use dotgraft_agent::peer::server::ServerSettings;
use dotgraft_engine::ids::FsId;
use dotgraft_engine::model::Reason;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;

use crate::raw;
use crate::streams::open;
use crate::support::*;

fn fingerprint(chain: &str) -> Fingerprint {
    Fingerprint::of(&CertificateDer::from_pem_slice(chain.as_bytes()).unwrap())
}

/// How `from` fails to reach `to`.
async fn denied(from: &Node, to: &Node) -> String {
    let fs = FsId::from_uuid(uuid::Uuid::now_v7());
    let problem = soon(from.client().versions(&to.name, fs, job())).await.unwrap_err();
    assert_eq!(problem.reason, Reason::Denied, "{problem}");
    problem.message
}

#[tokio::test(flavor = "multi_thread")]
async fn a_peer_of_another_ca_is_refused_by_both_sides() {
    let (ours, theirs) = (Ca::new("ca"), Ca::new("ca"));
    let a = Node::start("a", ours.issue(&Leaf::of("a")), ServerSettings::default()).await;
    let b = Node::start("b", theirs.issue(&Leaf::of("b")), ServerSettings::default()).await;
    a.learn(&b);
    b.learn(&a);
    denied(&a, &b).await;
    let foreign = theirs.issue(&Leaf::of("b"));
    let info = PeerInfo { address: b.address, fingerprints: vec![fingerprint(&foreign.1)] };
    a.context.directory.update(node("b"), info);
    assert!(!raw::let_in(&a, Some(&foreign)).await);
}

#[tokio::test(flavor = "multi_thread")]
async fn another_nodes_certificate_is_not_the_nodes_even_if_it_is_listed_there() {
    let ca = Ca::new("ca");
    let (a, b) = pair(&ca, ServerSettings::default()).await;
    let c = Node::start("c", ca.issue(&Leaf::of("c")), ServerSettings::default()).await;
    a.learn(&c);
    c.learn(&a);
    c.learn(&b);
    // c answers at b's address, with its own good certificate.
    a.context.directory.update(node("b"), PeerInfo { address: c.address, ..b.info() });
    denied(&a, &b).await;
    a.context.directory.update(node("b"), PeerInfo { address: c.address, fingerprints: vec![c.fingerprint()] });
    denied(&a, &b).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn only_a_certificate_whose_names_agree_and_that_is_listed_is_let_in() {
    let ca = Ca::new("ca");
    let (a, b) = pair(&ca, ServerSettings::default()).await;
    let good = ca.issue(&Leaf::of("a"));
    let list = |chain: &str| {
        let info = PeerInfo { address: a.address, fingerprints: vec![fingerprint(chain)] };
        b.context.directory.update(node("a"), info);
    };
    assert!(!raw::let_in(&b, Some(&good)).await, "not listed");
    list(&good.1);
    assert!(raw::let_in(&b, Some(&good)).await, "this test's way in is closed for everyone");
    assert!(!raw::let_in(&b, None).await, "no certificate");
    assert!(soon(raw::tls(&b, Some(&good), &rustls::version::TLS12)).await.is_err(), "TLS 1.2");

    let cn = |cn: &str| Leaf { cn: cn.into(), ..Leaf::of("a") };
    let dns = |dns: &[&str]| Leaf { dns: dns.iter().map(|d| (*d).to_owned()).collect(), ..Leaf::of("a") };
    let bad = [cn("a"), cn("dotgraft-agent:"), cn("dotgraft-agent:b"), cn("Dotgraft-agent:a"), dns(&[]), dns(&["b"]), dns(&["a", "b"])];
    for leaf in bad {
        let identity = ca.issue(&leaf);
        list(&identity.1);
        assert!(!raw::let_in(&b, Some(&identity)).await, "{} {:?}", leaf.cn, leaf.dns);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_revoked_certificate_is_refused_by_both_sides() {
    let (a, b) = pair(&Ca::new("ca"), ServerSettings::default()).await;
    b.context.directory.remove(&a.name);
    denied(&a, &b).await;
    b.learn(&a);
    a.context.directory.update(node("b"), PeerInfo { fingerprints: vec![a.fingerprint()], ..b.info() });
    let message = denied(&a, &b).await;
    assert!(message.contains("Revoked"), "{message}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_of_a_peer_that_is_revoked_under_it_is_cut_by_the_receiver() {
    let (a, b) = pair(&Ca::new("ca"), ServerSettings::default()).await;
    let actor = actor(&b, Act::Store);
    let client = a.client();
    let mut transfer = open(&client, &b, actor.fs).await.unwrap();
    transfer.data(bytes(10)).await.unwrap();
    actor.saw(|s| s.bytes == 10).await;
    b.context.directory.remove(&a.name);
    actor.saw(|s| s.abandoned).await;
    let problem = soon(transfer.finish(10, [0; 32])).await.unwrap_err();
    assert_eq!(problem.reason, Reason::Denied, "{problem}");
    // The connection is still there, and of no use.
    let problem = soon(client.versions(&b.name, actor.fs, job())).await.unwrap_err();
    assert_eq!(problem.reason, Reason::Denied, "{problem}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_to_a_peer_that_is_revoked_under_it_is_cut_by_the_sender() {
    let (a, b) = pair(&Ca::new("ca"), ServerSettings::default()).await;
    let actor = actor(&b, Act::Store);
    let mut transfer = open(&a.client(), &b, actor.fs).await.unwrap();
    transfer.data(bytes(10)).await.unwrap();
    a.context.directory.remove(&b.name);
    let problem = soon(transfer.finish(10, [0; 32])).await.unwrap_err();
    assert_eq!(problem.reason, Reason::Denied, "{problem}");
    actor.saw(|s| s.abandoned || s.ended).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_expired_certificate_is_refused_by_both_sides() {
    let ca = Ca::new("ca");
    let expired = |name: &str| Leaf { from: now() - 100, to: now() - 10, ..Leaf::of(name) };
    let a = Node::start("a", ca.issue(&Leaf::of("a")), ServerSettings::default()).await;
    let b = Node::start("b", ca.issue(&expired("b")), ServerSettings::default()).await;
    for (x, y) in [(&a, &b), (&b, &a)] {
        x.learn(y);
        y.learn(x);
        denied(x, y).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_certificate_that_expires_under_a_stream_ends_it() {
    let ca = Ca::new("ca");
    let short = Leaf { to: now() + 3, ..Leaf::of("a") };
    let a = Node::start("a", ca.issue(&short), ServerSettings::default()).await;
    let b = Node::start("b", ca.issue(&Leaf::of("b")), ServerSettings::default()).await;
    a.learn(&b);
    b.learn(&a);
    let actor = actor(&b, Act::Store);
    let mut transfer = open(&a.client(), &b, actor.fs).await.unwrap();
    transfer.data(bytes(10)).await.unwrap();
    let problem = soon(async {
        loop {
            if let Err(problem) = transfer.data(bytes(10)).await {
                return problem;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    })
    .await;
    assert_eq!(problem.reason, Reason::Denied, "{problem}");
    assert!(now() > short.to, "cut before it expired");
    actor.saw(|s| s.abandoned).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_renewal_disturbs_no_stream_and_new_connections_show_the_new_certificate() {
    let ca = Ca::new("ca");
    let (a, b) = pair(&ca, ServerSettings::default()).await;
    let actor = actor(&b, Act::Store);
    let client = a.client();
    let old = a.fingerprint();
    let mut transfer = open(&client, &b, actor.fs).await.unwrap();
    transfer.data(bytes(10)).await.unwrap();

    // Both sides renew while the stream runs, and it goes on.
    for (one, name) in [(&a, "a"), (&b, "b")] {
        let before = one.fingerprint();
        let (key, chain) = ca.issue(&Leaf::of(name));
        one.context.identity.install(&key, &chain).unwrap();
        let info = PeerInfo { address: one.address, fingerprints: vec![one.fingerprint(), before] };
        for other in [&a, &b] {
            other.context.directory.update(node(name), info.clone());
        }
    }
    assert_ne!(old, a.fingerprint());
    transfer.data(bytes(10)).await.unwrap();
    soon(client.versions(&b.name, actor.fs, job())).await.unwrap();
    assert_eq!(soon(transfer.finish(20, [0; 32])).await.unwrap().commit, commit_id(3));

    // The old one is no longer listed: who has the new one does not notice.
    b.learn(&a);
    a.learn(&b);
    let mut transfer = open(&client, &b, actor.fs).await.unwrap();
    transfer.data(bytes(10)).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn until_the_directory_lists_a_renewed_certificate_the_old_one_is_shown() {
    let ca = Ca::new("ca");
    let (a, b) = pair(&ca, ServerSettings::default()).await;
    let old = a.fingerprint();
    let (key, chain) = ca.issue(&Leaf::of("a"));
    a.context.identity.install(&key, &chain).unwrap();
    assert_eq!(a.context.presented().unwrap().leaf.fingerprint, old);
    soon(a.client().versions(&b.name, actor(&b, Act::Store).fs, job())).await.unwrap();
    a.learn(&a);
    assert_eq!(a.context.presented().unwrap().leaf.fingerprint, a.fingerprint());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_peer_whose_listing_lags_is_tried_again_before_it_is_denied() {
    let (a, b) = pair(&Ca::new("ca"), ServerSettings::default()).await;
    let fs = actor(&b, Act::Store).fs;
    a.context.directory.update(node("b"), PeerInfo { fingerprints: vec![], ..b.info() });
    let client = PeerClient::new(a.context.clone(), ClientSettings { denied_pause: 5 * SECOND, ..quick_client() });
    let call = tokio::spawn(async move { client.versions(&node("b"), fs, job()).await });
    tokio::time::sleep(Duration::from_millis(200)).await;
    a.learn(&b);
    soon(call).await.unwrap().unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn during_a_rotation_peers_of_both_cas_are_believed() {
    let (old, new) = (Ca::new("old"), Ca::new("new"));
    let both = |ca: &Ca, name: &str, other: &Ca| {
        let (key, chain) = ca.issue(&Leaf::of(name));
        (key, chain + &other.pem())
    };
    let a = Node::start("a", both(&old, "a", &new), ServerSettings::default()).await;
    let b = Node::start("b", both(&new, "b", &old), ServerSettings::default()).await;
    a.learn(&b);
    b.learn(&a);
    soon(a.client().versions(&b.name, actor(&b, Act::Store).fs, job())).await.unwrap();
    soon(b.client().versions(&a.name, actor(&a, Act::Store).fs, job())).await.unwrap();
}

#[test]
fn what_is_no_identity_of_this_node_is_not_installed_and_the_old_one_stays() {
    use std::os::unix::fs::PermissionsExt;
    let ca = Ca::new("ca");
    let tmp = tempfile::tempdir().unwrap();
    let dir = tmp.path().join("tls");
    let store = IdentityStore::open(&dir, node("a")).unwrap();
    assert!(store.current().is_none());
    let (key, chain) = ca.issue(&Leaf::of("a"));
    store.install(&key, &chain).unwrap();

    let (other_key, other_chain) = ca.issue(&Leaf::of("a"));
    let (b_key, b_chain) = ca.issue(&Leaf::of("b"));
    let alone = chain.split_inclusive("-----END CERTIFICATE-----").next().unwrap();
    assert!(matches!(store.install(&key, &other_chain), Err(IdentityError::Crypto(_))), "another key's");
    assert!(matches!(store.install(&b_key, &b_chain), Err(IdentityError::OtherNode { .. })));
    assert!(matches!(store.install(&key, alone), Err(IdentityError::NoCa)));
    assert!(matches!(store.install("", &chain), Err(IdentityError::Unreadable { .. })));
    assert!(matches!(store.install(&other_key, "-----BEGIN"), Err(IdentityError::Unreadable { .. })));

    let again = IdentityStore::open(&dir, node("a")).unwrap().current().unwrap();
    assert_eq!(again.leaf.fingerprint, fingerprint(&chain));
    let mode = |name: &str| std::fs::metadata(dir.join(name)).unwrap().permissions().mode() & 0o777;
    assert_eq!((mode(""), mode("agent.pem")), (0o700, 0o600));
    assert_eq!(std::fs::read_dir(&dir).unwrap().count(), 1, "nothing else is left behind");
    std::fs::write(dir.join("agent.pem"), "garbage").unwrap();
    assert!(IdentityStore::open(&dir, node("a")).unwrap().current().is_none(), "unreadable is as good as missing");
}
