//! A table with an accepted and a rejected object for every CEL rule of the CRDs, for tests on a real API server (design §2).
//!
//! How a case is run: create [`Case::setup`] if there is one (and, where it has a `status`, write that to the status subresource);
//! then send [`Case::object`] as [`Case::write`] says; expect success, or `Invalid` with [`Case::message`] in it; delete what was
//! made. Objects of namespaced kinds have no namespace: the runner chooses one. All cases share names, so they run one by one.

use serde::Serialize;
use serde_json::{Value, json};

/// One try against the API server.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Case {
    /// Kind of the objects.
    pub kind: &'static str,
    /// Where in the schema the rule stands, such as `spec.from`; empty for the root.
    pub path: &'static str,
    /// The rule's message: its name, and what a rejection must contain.
    pub message: &'static str,
    /// What must be there before.
    pub setup: Option<Value>,
    /// What is sent.
    pub object: Value,
    /// How it is sent.
    pub write: Write,
    /// Whether the API server must take it.
    pub accept: bool,
}

/// How an object is sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub enum Write {
    /// POST.
    Create,
    /// PUT with the live object's `resourceVersion`.
    Update,
    /// PUT of its `status` to the status subresource of the live object.
    UpdateStatus,
}

/// A Filesystem id.
const FS: &str = "01900000-0000-7000-8000-000000000001";
/// Another.
const FS2: &str = "01900000-0000-7000-8000-000000000002";
/// A pool.
const POOL: &str = "5f3c1a52-6d0e-4b7c-9a55-0d5d1e6f7a01";
/// Another.
const POOL2: &str = "5f3c1a52-6d0e-4b7c-9a55-0d5d1e6f7a02";
/// A commit, a migration, a boot, a UID: some UUID.
const ID: &str = "01900000-0000-7000-8000-0000000000aa";

/// Message of the rule on sizes.
const SIZE: &str = "must be from 1Mi to 1Ei";
/// Message of the rule on `fsId` of Dot and Branch.
const FS_ID: &str = "fsId binds the object to its data and can't change once it is set";

/// One rule: where it stands, and the base object that the merge patches of its cases are made on.
struct Rule<'a> {
    base: &'a Value,
    path: &'static str,
    message: &'static str,
}

/// RFC 7386: null removes, objects merge, all else replaces.
fn merged(base: &Value, patch: &Value) -> Value {
    let Value::Object(patch) = patch else { return patch.clone() };
    let mut out = base.as_object().cloned().unwrap_or_default();
    for (key, value) in patch {
        if value.is_null() {
            out.remove(key);
        } else {
            let before = out.get(key).cloned().unwrap_or(Value::Null);
            out.insert(key.clone(), merged(&before, value));
        }
    }
    Value::Object(out)
}

impl Rule<'_> {
    fn case(&self, setup: Option<&Value>, object: &Value, write: Write, accept: bool) -> Case {
        let kind = match self.base.get("kind").and_then(Value::as_str) {
            Some("Dot") => "Dot",
            Some("Branch") => "Branch",
            Some("Commit") => "Commit",
            Some("ReplicationJob") => "ReplicationJob",
            Some("DotOperation") => "DotOperation",
            Some("Filesystem") => "Filesystem",
            Some("Replica") => "Replica",
            _ => "NodePool",
        };
        let setup = setup.map(|patch| merged(self.base, patch));
        // An update is written on what was there before.
        let object = merged(setup.as_ref().unwrap_or(self.base), object);
        Case { kind, path: self.path, message: self.message, setup, object, write, accept }
    }
    /// Objects that are created.
    fn create(&self, accept: &Value, reject: &Value) -> [Case; 2] {
        [self.case(None, accept, Write::Create, true), self.case(None, reject, Write::Create, false)]
    }
    /// Objects that were there and are updated.
    fn update(&self, setup: &Value, accept: &Value, reject: &Value) -> [Case; 2] {
        [self.case(Some(setup), accept, Write::Update, true), self.case(Some(setup), reject, Write::Update, false)]
    }
    /// Objects whose status was there and is updated.
    fn status(&self, setup: &Value, accept: &Value, reject: &Value) -> [Case; 2] {
        [self.case(Some(setup), accept, Write::UpdateStatus, true), self.case(Some(setup), reject, Write::UpdateStatus, false)]
    }
}

fn object(kind: &str, name: &str, spec: &Value) -> Value {
    json!({"apiVersion": "dotgraft.dev/v1alpha1", "kind": kind, "metadata": {"name": name}, "spec": spec})
}
fn spec(patch: &Value) -> Value {
    json!({"spec": patch})
}

/// Every case.
pub fn all() -> Vec<Case> {
    [dots(), branches(), commits(), jobs(), operations(), filesystems(), authority(), replicas(), node_pools()].concat()
}

/// Cases that Dot and Branch have in common.
fn claims(base: &Value) -> Vec<Case> {
    let rule = |path, message| Rule { base, path, message };
    let keep = json!({"metadata": {"labels": {"touched": "yes"}}});
    [
        rule("spec.capacity", SIZE).create(&spec(&json!({"capacity": "1Mi"})), &spec(&json!({"capacity": "1048575"}))),
        rule("spec.historyLimit", SIZE).create(&spec(&json!({"historyLimit": "1Ei"})), &spec(&json!({"historyLimit": "2Ei"}))),
        rule("spec", FS_ID).update(&json!({}), &spec(&json!({"fsId": FS})), &spec(&json!({"fsId": "no-uuid"}))).map(|mut c| {
            // Only the accepted half is of this rule; the other is the pattern's.
            if !c.accept {
                c.message = "should match";
            }
            c
        }),
        rule("spec", FS_ID).update(&spec(&json!({"fsId": FS})), &keep, &spec(&json!({"fsId": FS2}))),
        rule("spec", FS_ID).update(&spec(&json!({"fsId": FS})), &keep, &spec(&json!({"fsId": null}))),
        rule("spec.placement.replicas", "less than or equal to 7").update(
            &spec(&json!({"placement": {"node": "a"}})),
            &spec(&json!({"placement": {"node": "b"}})), // a move
            &spec(&json!({"placement": {"replicas": 8}})),
        ),
    ]
    .concat()
}

fn dots() -> Vec<Case> {
    let base = object("Dot", "case", &json!({"capacity": "1Gi"}));
    let rule = |path, message| Rule { base: &base, path, message };
    let keep = json!({"metadata": {"labels": {"touched": "yes"}}});
    let origin = |commit: &str| spec(&json!({"origin": {"fsId": FS2, "commit": commit}}));
    let mut cases = claims(&base);
    cases.extend(rule("spec", "origin can't change").update(&origin(ID), &keep, &origin(FS)));
    cases.extend(rule("spec", "origin can't change").update(&json!({}), &keep, &origin(ID)));
    cases
}

fn branches() -> Vec<Case> {
    let base = object("Branch", "case", &json!({"dot": "orders"}));
    let rule = |path, message| Rule { base: &base, path, message };
    let keep = json!({"metadata": {"labels": {"touched": "yes"}}});
    let from = "from can't change: make another Branch";
    let mut cases = claims(&base);
    cases.extend(
        [
            rule("spec", "dot can't change: make another Branch").update(&json!({}), &keep, &spec(&json!({"dot": "other"}))),
            rule("spec", from).update(&spec(&json!({"from": {"commit": ID}})), &keep, &spec(&json!({"from": {"commit": FS}}))),
            rule("spec", from).update(&json!({}), &keep, &spec(&json!({"from": {"branch": "dev"}}))),
            rule("spec.from", "from takes a branch or a commit, not both")
                .create(&spec(&json!({"from": {"branch": "dev"}})), &spec(&json!({"from": {"branch": "dev", "commit": ID}}))),
        ]
        .concat(),
    );
    cases
}

fn commits() -> Vec<Case> {
    let base = object("Commit", "case", &json!({"source": {"kind": "Dot", "name": "orders"}, "message": "before the upgrade"}));
    let rule = |path, message| Rule { base: &base, path, message };
    let keys = "metadata keys must be at most 253 letters, digits, '.', '_', '/' or '-', the first and last a letter or digit";
    let (long, longer) = ("k".repeat(253), "k".repeat(254));
    [
        rule("spec", "a Commit can't change: make another one").update(
            &json!({}),
            &json!({"metadata": {"labels": {"touched": "yes"}}}),
            &spec(&json!({"message": "after the upgrade"})),
        ),
        // 4096 bytes in 2048 characters; the other is short enough in characters only.
        rule("spec.message", "message must be at most 4096 bytes")
            .create(&spec(&json!({"message": "é".repeat(2048)})), &spec(&json!({"message": "é".repeat(2049)}))),
        rule("spec.metadata", keys)
            .create(&spec(&json!({"metadata": {"dotgraft.dev/by": "me", long: ""}})), &spec(&json!({"metadata": {longer: ""}}))),
        rule("spec.metadata", keys).create(&spec(&json!({"metadata": {"a": "1"}})), &spec(&json!({"metadata": {"a b": "1"}}))),
        rule("spec.metadata", "metadata values must be at most 1024 bytes")
            .create(&spec(&json!({"metadata": {"a": "é".repeat(512)}})), &spec(&json!({"metadata": {"a": "é".repeat(513)}}))),
    ]
    .concat()
}

fn jobs() -> Vec<Case> {
    let base = object("ReplicationJob", "case", &json!({"source": {"names": ["orders"]}, "target": {"node": "b"}}));
    let rule = |path, message| Rule { base: &base, path, message };
    let keep = spec(&json!({"trigger": "again", "suspend": true, "retry": {"maxAttempts": 0}}));
    let one = "source takes exactly one of names and selector";
    let bandwidth = "bandwidth is in bytes per second, from 1Ki to 1Ei";
    let when = |schedule: Value| spec(&json!({ "schedule": schedule }));
    [
        rule("spec", "direction Pull is not in this version: make a Push job to the node that is to have the copy")
            .create(&spec(&json!({"direction": "Push"})), &spec(&json!({"direction": "Pull"}))),
        rule("spec", "direction can't change: make another ReplicationJob").update(&json!({}), &keep, &spec(&json!({"direction": "Pull"}))),
        rule("spec", "source can't change: make another ReplicationJob").update(
            &json!({}),
            &keep,
            &spec(&json!({"source": {"names": ["orders", "users"]}})),
        ),
        rule("spec", "target can't change: make another ReplicationJob").update(
            &json!({}),
            &keep,
            &spec(&json!({"target": {"node": "c"}})),
        ),
        rule("spec.source", one).create(
            &spec(&json!({"source": {"names": null, "selector": {"matchLabels": {"app": "shop"}}}})),
            &spec(&json!({"source": {"selector": {"matchLabels": {"app": "shop"}}}})),
        ),
        rule("spec.source", one).create(&spec(&json!({"source": {"names": ["a", "b"]}})), &spec(&json!({"source": {"names": null}}))),
        rule("spec", "schedule takes one of onCommit, cron and intervalSeconds")
            .create(&when(json!({"intervalSeconds": 60})), &when(json!({"intervalSeconds": 60, "onCommit": true}))),
        rule("spec", "schedule takes one of onCommit, cron and intervalSeconds")
            .create(&when(json!({"onCommit": false, "cron": "@daily"})), &when(json!({"intervalSeconds": 60, "cron": "@daily"}))),
        rule("spec", "timeZone says what the hours of cron are: set cron, too").create(
            &when(json!({"cron": "30 2 * * *", "timeZone": "Europe/Berlin"})),
            &when(json!({"intervalSeconds": 60, "timeZone": "Europe/Berlin"})),
        ),
        rule("spec.limits.bandwidth", bandwidth)
            .create(&spec(&json!({"limits": {"bandwidth": "50Mi"}})), &spec(&json!({"limits": {"bandwidth": "1000"}}))),
    ]
    .concat()
}

fn filesystem() -> Value {
    object("Filesystem", FS, &json!({"claimRef": {"kind": "Dot", "namespace": "shop", "name": "orders"}}))
}

fn operations() -> Vec<Case> {
    let base = object("DotOperation", "case", &json!({"target": {"kind": "Dot", "name": "orders"}, "promote": {"node": "a"}}));
    let rule = |path, message| Rule { base: &base, path, message };
    let keep = json!({"metadata": {"labels": {"touched": "yes"}}});
    let fixed = "a DotOperation can't change: make another one";
    let one = "a DotOperation does one thing: promote or reset";
    let reset = |promote: Value| spec(&json!({"promote": promote, "reset": {"commit": "c1"}}));
    [
        rule("spec", fixed).update(&json!({}), &keep, &spec(&json!({"promote": {"node": "b"}}))),
        rule("spec", one).create(&reset(Value::Null), &reset(json!({"node": "a"}))),
        rule("spec", one).create(&json!({}), &spec(&json!({"promote": Value::Null}))),
    ]
    .concat()
}

fn filesystems() -> Vec<Case> {
    let base = filesystem();
    let rule = |path, message| Rule { base: &base, path, message };
    let origin = json!({"fsId": FS2, "commit": ID});
    let keep = spec(&json!({"reclaimPolicy": "Retain"}));
    let accept = "acceptEpoch only grows";
    [
        rule("", "a Filesystem is named by its id, a lower-case UUID").create(&json!({}), &json!({"metadata": {"name": "orders"}})),
        rule("spec", "origin can't change").update(&spec(&json!({"origin": origin})), &keep, &spec(&json!({"origin": {"commit": FS}}))),
        rule("spec", "origin can't change").update(&json!({}), &keep, &spec(&json!({"origin": origin}))),
        rule("spec", accept).update(
            &spec(&json!({"acceptEpoch": 7})),
            &spec(&json!({"acceptEpoch": 8})),
            &spec(&json!({"acceptEpoch": 6})),
        ),
        rule("spec", accept).update(&spec(&json!({"acceptEpoch": 7})), &keep, &spec(&json!({"acceptEpoch": null}))),
    ]
    .concat()
}

fn authority() -> Vec<Case> {
    let base = merged(
        &filesystem(),
        &json!({"status": {"phase": "Active", "authority": {"owner": {"node": "a", "pool": POOL}, "epoch": 5, "attempt": 3}}}),
    );
    let path = "status.authority";
    let rule = |message| Rule { base: &base, path, message };
    let to = |patch: Value| json!({"status": {"authority": patch}});
    let other = json!({"node": "b", "pool": POOL2});
    let pending = |attempt: u64, node: &str| {
        to(json!({"pending": {"mig": ID, "attempt": attempt, "to": {"node": node, "pool": POOL2}, "finalCommit": ID}}))
    };
    [
        Rule { base: &base, path: "", message: "authority can't be taken away, only changed" }.status(
            &json!({}),
            &json!({"status": {"phase": "Released"}}),
            &json!({"status": {"authority": null}}),
        ),
        rule("epoch only grows").status(&json!({}), &to(json!({"epoch": 6})), &to(json!({"epoch": 4}))),
        rule("attempt only grows").status(&json!({}), &to(json!({"attempt": 4})), &to(json!({"attempt": 2}))),
        rule("another owner needs a higher epoch").status(
            &json!({}),
            &to(json!({"owner": other, "epoch": 6})),
            &to(json!({"owner": other})),
        ),
        rule("another owner needs a higher epoch").status(
            &json!({}),
            &to(json!({"owner": {"pool": POOL2}, "epoch": 6})),
            &to(json!({"owner": {"pool": POOL2}})),
        ),
        rule("opened can't be ahead of the epoch").status(
            &json!({}),
            &to(json!({"opened": {"epoch": 5, "bootId": ID}})),
            &to(json!({"opened": {"epoch": 6, "bootId": ID}})),
        ),
        rule("pending must carry the current attempt").status(&json!({}), &pending(3, "b"), &pending(2, "b")),
        rule("pending must name another node than the owner").status(&json!({}), &pending(3, "b"), &pending(3, "a")),
    ]
    .concat()
}

fn replicas() -> Vec<Case> {
    let desired = json!({"state": "Present", "role": "Replica", "epoch": 1, "capacity": 1_048_576});
    let base = object("Replica", &format!("{FS}.{POOL}"), &json!({"fsId": FS, "node": "a", "pool": POOL, "desired": desired}));
    let rule = |path, message| Rule { base: &base, path, message };
    let wish = |patch: Value| spec(&json!({"desired": patch}));
    let keep = wish(json!({"epoch": 2}));
    let owner = json!({"node": "b", "pool": POOL2});
    let absent = "an Absent copy has no role, jobs or commits";
    let gone = json!({"state": "Absent", "role": null, "capacity": null});
    let job = json!([{"uid": ID, "namespace": "shop", "name": "copy", "generation": 1, "peer": {"node": "b", "pool": POOL2}}]);
    [
        rule("", "a Replica is named <fsId>.<pool>").create(&json!({}), &json!({"metadata": {"name": format!("{FS}.{POOL2}")}})),
        rule("spec", "fsId can't change").update(&json!({}), &keep, &spec(&json!({"fsId": FS2}))),
        rule("spec", "node can't change").update(&json!({}), &keep, &spec(&json!({"node": "b"}))),
        rule("spec", "pool can't change").update(&json!({}), &keep, &spec(&json!({"pool": POOL2}))),
        rule("spec.desired", "a Present copy needs a role").create(&wish(json!({"role": "Owner"})), &wish(json!({"role": null}))),
        rule("spec.desired", "a Present copy needs a capacity").create(&wish(json!({"capacity": 1})), &wish(json!({"capacity": null}))),
        rule("spec.desired", "only a Present copy that is no owner's has an owner")
            .create(&wish(json!({"owner": owner})), &wish(json!({"owner": owner, "role": "Owner"}))),
        rule("spec.desired", absent).create(&wish(gone.clone()), &wish(json!({"state": "Absent"}))),
        rule("spec.desired", absent).create(&wish(json!({"jobs": job})), &wish(merged(&gone, &json!({"jobs": job})))),
        rule("spec.desired", absent).create(
            &wish(json!({"commits": [{"uid": ID, "name": "c"}]})),
            &wish(merged(&gone, &json!({"commits": [{"uid": ID, "name": "c"}]}))),
        ),
    ]
    .concat()
}

fn node_pools() -> Vec<Case> {
    let base = object("NodePool", "a", &json!({"node": "a"}));
    let rule = |path, message| Rule { base: &base, path, message };
    [
        rule("", "a NodePool is named as its node").create(&json!({}), &spec(&json!({"node": "b"}))),
        rule("spec", "node can't change").update(
            &json!({}),
            &spec(&json!({"address": "10.0.0.1:7070", "fingerprints": ["0".repeat(64)]})),
            &spec(&json!({"node": "b"})),
        ),
    ]
    .concat()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::crds::tests::each_schema;
    use std::collections::BTreeSet;

    #[test]
    fn every_rule_has_an_accepting_and_a_rejecting_case() {
        let cases = all();
        let mut missing = BTreeSet::new();
        each_schema(|path, schema| {
            for rule in schema.x_kubernetes_validations.iter().flatten() {
                let (kind, at) = path.split_once('.').unwrap_or((path, ""));
                let message = rule.message.as_deref().unwrap_or_default();
                for accept in [true, false] {
                    if !cases.iter().any(|c| c.kind == kind && c.path == at && c.message == message && c.accept == accept) {
                        missing.insert(format!("{path}: {message} (accept: {accept})"));
                    }
                }
            }
        });
        assert!(missing.is_empty(), "without a case: {missing:#?}");
    }

    #[test]
    fn every_case_is_of_a_rule_or_a_bound_of_the_schema() {
        let mut messages = BTreeSet::new();
        each_schema(|_, s| messages.extend(s.x_kubernetes_validations.iter().flatten().filter_map(|r| r.message.clone())));
        messages.extend(["should match".to_owned(), "less than or equal to 7".to_owned()]);
        for case in all() {
            assert!(messages.contains(case.message), "no rule says: {}", case.message);
        }
    }
}
