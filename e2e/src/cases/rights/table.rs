//! The table: what an agent may not do to what is another's, and the few things that it may.

use serde_json::{Value, json};

use super::{Allowed, BOOT, COMMIT, MIG, OURS, POOL_1, POOL_2, Verb, replica};
use crate::rig::tokens::SYSTEM;

/// (what, verb, path, who may): requests that an agent of another node must be refused.
pub fn denied() -> Vec<(String, Verb, String, Allowed)> {
    let mut list = Vec::new();
    let mut add =
        |resource: &str, verb: Verb, path: &str, allowed: Allowed| list.push((resource.to_owned(), verb, path.to_owned(), allowed));
    cluster_objects(&mut add);
    authority(&mut add);
    users_objects(&mut add);
    core_objects(&mut add);
    list
}

fn cluster_objects(add: &mut impl FnMut(&str, Verb, &str, Allowed)) {
    let (theirs, own) = (format!("{OURS}/replicas/FSID.{POOL_1}"), format!("{OURS}/replicas/FSID.{POOL_2}"));
    let status = json!({"status": {"role": "Owner", "epoch": 9}});
    let label = json!({"metadata": {"labels": {"x": "y"}}});
    let spec = json!({"spec": {"desired": {"capacity": 5}}});
    let finalizer = json!({"metadata": {"finalizers": ["dotgraft.dev/replica"]}});
    let other = "33333333-3333-4333-8333-333333333333";
    add("replica", Verb::Create(replica("FSID", "n2", other)), &format!("{OURS}/replicas"), Allowed::Operator);
    add("replica-of-n1", Verb::Update(label.clone()), &theirs, Allowed::Operator);
    add("replica-of-n1", Verb::Patch(spec.clone()), &theirs, Allowed::Operator);
    add("replica-of-n1", Verb::Delete, &theirs, Allowed::Operator);
    add("replica-of-n1-finalizers", Verb::Patch(finalizer.clone()), &theirs, Allowed::Operator);
    add("replica-of-n1-status", Verb::Update(status.clone()), &format!("{theirs}/status"), Allowed::Agent1);
    add("replica-of-n1-status", Verb::Patch(status.clone()), &format!("{theirs}/status"), Allowed::Agent1);
    add("own-replica-spec", Verb::Update(spec.clone()), &own, Allowed::Operator);
    add("own-replica-spec", Verb::Patch(spec), &own, Allowed::Operator);
    add("own-replica-labels", Verb::Patch(label.clone()), &own, Allowed::Operator);
    add("own-replica", Verb::Delete, &own, Allowed::Operator);

    let (theirs, own) = (format!("{OURS}/nodepools/n1"), format!("{OURS}/nodepools/n2"));
    let status = json!({"status": {"capacityBytes": 1}});
    let spec = json!({"spec": {"address": "127.0.0.1:9"}});
    let prints = json!({"spec": {"fingerprints": ["0".repeat(64)]}});
    let pool = json!({"apiVersion": "dotgraft.dev/v1alpha1", "kind": "NodePool", "metadata": {"name": "n3"},
        "spec": {"node": "n3", "poolGroup": "default", "address": "127.0.0.1:1"}});
    add("nodepool", Verb::Create(pool), &format!("{OURS}/nodepools"), Allowed::Operator);
    add("nodepool-of-n1", Verb::Update(spec.clone()), &theirs, Allowed::Operator);
    add("nodepool-of-n1", Verb::Patch(spec), &theirs, Allowed::Operator);
    add("nodepool-of-n1", Verb::Delete, &theirs, Allowed::Operator);
    add("nodepool-of-n1-status", Verb::Update(status.clone()), &format!("{theirs}/status"), Allowed::Agent1);
    add("nodepool-of-n1-status", Verb::Patch(status), &format!("{theirs}/status"), Allowed::Agent1);
    add("own-nodepool-fingerprints", Verb::Update(prints.clone()), &own, Allowed::Operator);
    add("own-nodepool-fingerprints", Verb::Patch(prints), &own, Allowed::Operator);
    add("own-nodepool", Verb::Delete, &own, Allowed::Operator);
}

fn authority(add: &mut impl FnMut(&str, Verb, &str, Allowed)) {
    let path = format!("{OURS}/filesystems/FSID");
    let status = format!("{path}/status");
    let spec = json!({"spec": {"reclaimPolicy": "Retain"}});
    let new = json!({"apiVersion": "dotgraft.dev/v1alpha1", "kind": "Filesystem", "metadata": {"name": "01890000-0000-7000-8000-000000000001"},
        "spec": {"claimRef": {"kind": "Dot", "namespace": "NAMESPACE", "name": "x"}, "reclaimPolicy": "Delete"}});
    add("filesystem", Verb::Create(new), &format!("{OURS}/filesystems"), Allowed::Operator);
    add("filesystem", Verb::Update(spec.clone()), &path, Allowed::Operator);
    add("filesystem", Verb::Patch(spec), &path, Allowed::Operator);
    add("filesystem", Verb::Delete, &path, Allowed::Operator);
    let opened = json!({"status": {"authority": {"opened": {"epoch": 1, "bootId": BOOT}}}});
    let pending = json!({"status": {"authority": {"pending":
        {"mig": MIG, "attempt": 0, "to": {"node": "n2", "pool": POOL_2}, "finalCommit": COMMIT}}}});
    add("authority-of-n1-opened", Verb::Update(opened.clone()), &status, Allowed::Agent1);
    add("authority-of-n1-opened", Verb::Patch(opened), &status, Allowed::Agent1);
    add("authority-of-n1-pending", Verb::Update(pending), &status, Allowed::Agent1);
    let steal = json!({"status": {"authority": {"owner": {"node": "n2", "pool": POOL_2}, "epoch": 2}}});
    add("authority-of-n1-steal", Verb::Update(steal.clone()), &status, Allowed::Operator);
    add("authority-of-n1-steal", Verb::Patch(steal), &status, Allowed::Operator);
    let phase = json!({"status": {"phase": "Deleting"}});
    add("filesystem-phase", Verb::Update(phase.clone()), &status, Allowed::Operator);
    add("filesystem-phase", Verb::Patch(phase), &status, Allowed::Operator);
}

fn users_objects(add: &mut impl FnMut(&str, Verb, &str, Allowed)) {
    let kinds = [("dot", "dots", "d"), ("branch", "branches", "b"), ("commit", "commits", "c"), ("job", "replicationjobs", "j")];
    for (word, plural, name) in kinds {
        let list = format!("{OURS}/namespaces/NAMESPACE/{plural}");
        let path = format!("{list}/{name}");
        let label = json!({"metadata": {"labels": {"x": "y"}}});
        let status = json!({"status": {"observedGeneration": 1}});
        add(word, Verb::Get, &path, Allowed::Operator);
        add(word, Verb::List, &list, Allowed::Operator);
        add(word, Verb::Watch, &list, Allowed::Operator);
        add(word, Verb::Update(label.clone()), &path, Allowed::Admin);
        add(word, Verb::Patch(label), &path, Allowed::Admin);
        add(word, Verb::Delete, &path, Allowed::Admin);
        add(&format!("{word}-status"), Verb::Patch(status), &format!("{path}/status"), Allowed::Operator);
    }
    let dot = json!({"apiVersion": "dotgraft.dev/v1alpha1", "kind": "Dot", "metadata": {"name": "new"}, "spec": {"capacity": "1Gi"}});
    add("dot", Verb::Create(dot), &format!("{OURS}/namespaces/NAMESPACE/dots"), Allowed::Admin);
}

fn core_objects(add: &mut impl FnMut(&str, Verb, &str, Allowed)) {
    let secrets = format!("/api/v1/namespaces/{SYSTEM}/secrets");
    let secret = format!("{secrets}/dotgraft-ca");
    let data = json!({"stringData": {"ca": "y"}});
    let new = json!({"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "new"}});
    add("secret", Verb::Get, &secret, Allowed::Operator);
    add("secret", Verb::List, &secrets, Allowed::Admin);
    add("secret", Verb::Watch, &secrets, Allowed::Admin);
    add("secret", Verb::Create(new), &secrets, Allowed::Admin);
    add("secret", Verb::Update(data.clone()), &secret, Allowed::Operator);
    add("secret", Verb::Patch(data), &secret, Allowed::Admin);
    add("secret", Verb::Delete, &secret, Allowed::Admin);
    add("secret-of-others", Verb::List, "/api/v1/secrets", Allowed::Admin);
    add("secret-of-webhook", Verb::Get, &format!("{secrets}/dotgraft-webhook"), Allowed::Operator);
    let webhooks = "/apis/admissionregistration.k8s.io/v1/mutatingwebhookconfigurations";
    let webhook = format!("{webhooks}/dotgraft-pods");
    add("webhook", Verb::List, webhooks, Allowed::Admin);
    add("webhook", Verb::Patch(json!({"metadata": {"labels": {"x": "y"}}})), &webhook, Allowed::Admin);
    add("webhook", Verb::Delete, &webhook, Allowed::Admin);
    add("pod", Verb::List, "/api/v1/pods", Allowed::Admin);
    let label = json!({"metadata": {"labels": {"dotgraft.dev/pool-group": "mine"}}});
    add("node", Verb::Patch(label), "/api/v1/nodes/n2", Allowed::Admin);
    let leases = leases();
    let holder = json!({"spec": {"holderIdentity": "n2"}});
    add("lease-of-n1", Verb::Update(holder.clone()), &format!("{leases}/dotgraft-agent-n1"), Allowed::Agent1);
    add("lease-of-n1", Verb::Patch(holder), &format!("{leases}/dotgraft-agent-n1"), Allowed::Admin);
    add("csr-of-n1", Verb::Create(csr("dotgraft-agent-n1-RANDOM", "dotgraft.dev/agent", "client auth")), CSRS, Allowed::Agent1);
    let kubelet = csr("dotgraft-agent-n2-RANDOM", "kubernetes.io/kube-apiserver-client", "client auth");
    add("csr-of-another-signer", Verb::Create(kubelet), CSRS, Allowed::Admin);
    add("csr-to-sign", Verb::Create(csr("dotgraft-agent-n2-RANDOM", "dotgraft.dev/agent", "cert sign")), CSRS, Allowed::Admin);
    add("event-of-n1", Verb::Create(event("n1")), EVENTS, Allowed::Agent1);
    let token = json!({"apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "spec": {"audiences": []}});
    let path = format!("/api/v1/namespaces/{SYSTEM}/serviceaccounts/dotgraft-operator/token");
    add("token-of-operator", Verb::Create(token), &path, Allowed::Admin);
    let binding = json!({"apiVersion": "rbac.authorization.k8s.io/v1", "kind": "ClusterRoleBinding", "metadata": {"name": "mine"},
        "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "cluster-admin"},
        "subjects": [{"kind": "ServiceAccount", "name": "dotgraft-agent", "namespace": SYSTEM}]});
    add("clusterrolebinding", Verb::Create(binding), "/apis/rbac.authorization.k8s.io/v1/clusterrolebindings", Allowed::Admin);
}

/// The other side, for `n1`'s agent: what the shipped rights give, so that "no" isn't the answer to everything.
pub fn granted() -> Vec<(&'static str, Verb, String)> {
    let own = format!("{OURS}/replicas/FSID.{POOL_1}");
    let opened = json!({"status": {"authority": {"opened": {"epoch": 1, "bootId": BOOT}}}});
    vec![
        ("replicas", Verb::List, format!("{OURS}/replicas")),
        ("replicas", Verb::Watch, format!("{OURS}/replicas")),
        ("nodepools", Verb::List, format!("{OURS}/nodepools")),
        ("nodepools", Verb::Watch, format!("{OURS}/nodepools")),
        ("filesystem", Verb::Get, format!("{OURS}/filesystems/FSID")),
        ("own-replica-status", Verb::Patch(json!({"status": {"role": "Owner", "epoch": 1}})), format!("{own}/status")),
        ("own-replica-finalizer", Verb::Patch(json!({"metadata": {"finalizers": ["dotgraft.dev/replica"]}})), own),
        ("own-nodepool-status", Verb::Patch(json!({"status": {"capacityBytes": 1}})), format!("{OURS}/nodepools/n1/status")),
        ("own-authority-opened", Verb::Update(opened), format!("{OURS}/filesystems/FSID/status")),
        ("own-lease", Verb::Patch(json!({"spec": {"holderIdentity": "n1"}})), format!("{}/dotgraft-agent-n1", leases())),
        ("csr", Verb::Create(csr("dotgraft-agent-n1-RANDOM", "dotgraft.dev/agent", "client auth")), CSRS.into()),
        ("event", Verb::Create(event("n1")), EVENTS.into()),
    ]
}

const CSRS: &str = "/apis/certificates.k8s.io/v1/certificatesigningrequests";
const EVENTS: &str = "/apis/events.k8s.io/v1/namespaces/default/events";

fn leases() -> String {
    format!("/apis/coordination.k8s.io/v1/namespaces/{SYSTEM}/leases")
}

/// A well-formed request for a certificate; the key in it is of no use to anyone.
fn csr(name: &str, signer: &str, usage: &str) -> Value {
    let request = rcgen::KeyPair::generate()
        .and_then(|key| rcgen::CertificateParams::default().serialize_request(&key))
        .and_then(|request| request.pem())
        .unwrap_or_default();
    let request = base64::Engine::encode(&base64::engine::general_purpose::STANDARD, request);
    json!({"apiVersion": "certificates.k8s.io/v1", "kind": "CertificateSigningRequest", "metadata": {"name": name},
        "spec": {"request": request, "signerName": signer, "usages": ["digital signature", usage]}})
}

fn event(node: &str) -> Value {
    json!({"apiVersion": "events.k8s.io/v1", "kind": "Event", "metadata": {"generateName": "e-", "namespace": "default"},
        "eventTime": "2026-01-01T00:00:00.000000Z", "reportingController": "dotgraft.dev/dotgraft-agent", "reportingInstance": node,
        "action": "Test", "reason": "Test", "type": "Normal", "note": "a test",
        "regarding": {"apiVersion": "dotgraft.dev/v1alpha1", "kind": "NodePool", "name": node}})
}
