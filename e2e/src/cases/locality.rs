//! Pods stay where their volumes are: what the webhook adds, restarts without moves, and a drain that sends only what is new.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use k8s_openapi::api::core::v1::Pod;
use kube::api::{Api, PostParams};
use serde_json::{Value, json};

use crate::harness::Case;
use crate::harness::test::Test;
use crate::rig::programs::{OPERATOR, http_get};
use crate::rig::tokens::SYSTEM;
use crate::rig::wait::eventually;
use crate::steps::owner::owned_by;
use crate::steps::pod::{claim, pod, started, stop};

/// Longest that one step with a pod may take.
const STEP: Duration = Duration::from_secs(180);
/// Pods of a set.
const SIZE: usize = 3;
/// How often all pods of the set are deleted at once: 51 restarts.
const ROUNDS: usize = 17;
/// The same of the set that the webhook leaves alone, until one has moved; at most so often.
const ROUNDS_WITHOUT: usize = 10;
/// Seconds that the API server waits for the webhook, as shipped.
const SHIPPED: u32 = 1;
/// The same where nothing but locality is looked at: on a machine that does much else an answer may take longer than a second.
const PATIENT: u32 = 20;

/// The cases of this file.
pub fn cases() -> Vec<Case> {
    vec![
        Case::new(
            "locality-affinity",
            "a pod gets preferred affinity for its volume's node, beside its own terms, and is never denied",
            affinity,
        )
        .kubelets(),
        Case::new(
            "locality-restarts",
            "51 restarts of a StatefulSet on idle nodes move nothing; without the webhook they do, and pods start without it",
            restarts,
        )
        .kubelets()
        .within(STEP * 4),
        Case::new(
            "locality-drain",
            "a cordoned node's volume is sent to its replica before the pod leaves; the drain sends only the rest",
            drain,
        )
        .kubelets(),
    ]
}

/// A pod as it would be admitted: nothing is made.
async fn admitted(t: &Test, pod: &Value) -> Result<Value> {
    let api: Api<Pod> = Api::namespaced(t.kube().client(), &t.namespace);
    let params = PostParams { dry_run: true, ..PostParams::default() };
    Ok(serde_json::to_value(api.create(&params, &serde_json::from_value(pod.clone())?).await?)?)
}

/// How many seconds the API server waits for the webhook.
async fn webhook_patience(t: &Test, seconds: u32) -> Result<()> {
    let patch = json!([{"op": "replace", "path": "/webhooks/0/timeoutSeconds", "value": seconds}]).to_string();
    t.kube().kubectl(&["patch", "mutatingwebhookconfiguration", "dotgraft-pods", "--type=json", "-p", &patch]).await.map(drop)
}

fn sample(claims: &[&str], affinity: Option<Value>) -> Value {
    let volumes: Vec<Value> = claims.iter().map(|c| json!({"name": c, "persistentVolumeClaim": {"claimName": c}})).collect();
    let mut pod = json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "sample"},
        "spec": {"containers": [{"name": "c", "image": "busybox:1"}], "volumes": volumes}});
    if let Some(affinity) = affinity {
        pod["spec"]["affinity"] = affinity;
    }
    pod
}

fn term(host: &str, weight: u32) -> Value {
    json!({"weight": weight, "preference": {"matchExpressions": [{"key": "kubernetes.io/hostname", "operator": "In", "values": [host]}]}})
}

/// The preferred terms of a pod.
fn preferred(pod: &Value) -> Value {
    let terms = pod.pointer("/spec/affinity/nodeAffinity/preferredDuringSchedulingIgnoredDuringExecution");
    terms.cloned().unwrap_or_else(|| json!([]))
}

async fn affinity(t: Arc<Test>) -> Result<()> {
    webhook_patience(&t, PATIENT).await?;
    claim(&t, "data").await?;
    pod(&t, "first", "data", "n2", "sleep 1000").await?;
    started(&t, "first").await?;
    eventually("the webhook to know where the volume is", STEP, || async {
        let plain = admitted(&t, &sample(&["data"], None)).await?;
        ensure!(preferred(&plain) == json!([term("n2", 100)]), "{}", plain["spec"]["affinity"]);
        Ok(())
    })
    .await?;
    let own = json!({
        "nodeAffinity": {
            "requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": [{"matchExpressions": [{"key": "kubernetes.io/os", "operator": "Exists"}]}]},
            "preferredDuringSchedulingIgnoredDuringExecution": [term("n3", 7)],
        },
        "podAntiAffinity": {"preferredDuringSchedulingIgnoredDuringExecution":
            [{"weight": 5, "podAffinityTerm": {"topologyKey": "kubernetes.io/hostname", "labelSelector": {"matchLabels": {"a": "b"}}}}]},
    });
    let both = admitted(&t, &sample(&["data"], Some(own.clone()))).await?;
    let mut want = own;
    want["nodeAffinity"]["preferredDuringSchedulingIgnoredDuringExecution"] = json!([term("n3", 7), term("n2", 100)]);
    ensure!(both["spec"]["affinity"] == want, "the user's own terms: {}", both["spec"]["affinity"]);
    let other = admitted(&t, &sample(&["data", "not-there"], None)).await?;
    ensure!(preferred(&other) == json!([term("n2", 100)]), "a claim that is not there changes nothing: {}", other["spec"]["affinity"]);
    let none = admitted(&t, &sample(&["not-there"], None)).await?;
    ensure!(none["spec"].get("affinity").is_none(), "{}", none["spec"]["affinity"]);
    let mut off = sample(&["data"], None);
    off["metadata"]["labels"] = json!({"dotgraft.dev/locality": "off"});
    let off = admitted(&t, &off).await?;
    ensure!(off["spec"].get("affinity").is_none(), "the label turns it off: {}", off["spec"]["affinity"]);
    // And the scheduler does as it is told.
    stop(&t, "first").await?;
    let file = t.dir.join("second.json");
    let mut second = sample(&["data"], None);
    second["metadata"]["name"] = json!("second");
    second["spec"]["containers"][0]["imagePullPolicy"] = json!("Never");
    second["spec"]["containers"][0]["command"] = json!(["sleep", "1000"]);
    second["spec"]["terminationGracePeriodSeconds"] = json!(1);
    std::fs::write(&file, second.to_string())?;
    t.kubectl(&["create", "-f", &file.to_string_lossy()]).await?;
    started(&t, "second").await?;
    ensure!(t.kubectl(&["get", "pod", "second", "-o", "jsonpath={.spec.nodeName}"]).await? == "n2", "the pod is elsewhere");
    stop(&t, "second").await?;
    webhook_patience(&t, SHIPPED).await?;
    clear(&t).await
}

/// Takes away what would make pods again, and the volumes.
async fn clear(t: &Test) -> Result<()> {
    t.kubectl(&["delete", "statefulsets,pods", "--all", "--timeout=180s"]).await?;
    t.kubectl(&["delete", "pvc", "--all", "--timeout=180s"]).await?;
    Ok(())
}

/// A set of [`SIZE`] pods with a volume each; all its pods start at once.
async fn set(t: &Test, name: &str, labels: &str) -> Result<()> {
    t.apply(&format!(
        "apiVersion: apps/v1\nkind: StatefulSet\nmetadata: {{name: {name}, namespace: NAMESPACE}}\nspec:\n  replicas: {SIZE}\n  \
         serviceName: {name}\n  podManagementPolicy: Parallel\n  selector: {{matchLabels: {{set: {name}}}}}\n  template:\n    \
         metadata: {{labels: {{set: {name}{labels}}}}}\n    spec:\n      terminationGracePeriodSeconds: 0\n      containers:\n      \
         - name: c\n        image: busybox:1\n        imagePullPolicy: Never\n        command: [sh, -c, 'date >> /data/starts; exec sleep 10000']\n        \
         volumeMounts: [{{name: data, mountPath: /data}}]\n  volumeClaimTemplates:\n  - metadata: {{name: data}}\n    spec:\n      \
         storageClassName: dotgraft\n      accessModes: [ReadWriteOnce]\n      resources: {{requests: {{storage: 64Mi}}}}\n"
    ))
    .await
}

/// UIDs of a set's pods that are ready; an error unless all are, and none of them is among `old`.
async fn running(t: &Test, name: &str, old: &[String]) -> Result<Vec<String>> {
    let list: Value = serde_json::from_str(&t.kubectl(&["get", "pods", "-l", &format!("set={name}"), "-o", "json"]).await?)?;
    let pods = list["items"].as_array().cloned().unwrap_or_default();
    let is_ready = |p: &Value| {
        let conditions = p.pointer("/status/conditions").and_then(Value::as_array).cloned().unwrap_or_default();
        p["metadata"].get("deletionTimestamp").is_none() && conditions.iter().any(|c| c["type"] == "Ready" && c["status"] == "True")
    };
    let uids: Vec<String> = pods.iter().filter(|p| is_ready(p)).filter_map(|p| Some(p["metadata"]["uid"].as_str()?.to_owned())).collect();
    ensure!(
        uids.len() == SIZE && !uids.iter().any(|u| old.contains(u)),
        "{} of {SIZE} run anew",
        uids.iter().filter(|u| !old.contains(u)).count()
    );
    Ok(uids)
}

/// Waits until all pods of a set are others than `old`, and ready.
async fn all_ready(t: &Test, name: &str, old: &[String]) -> Result<Vec<String>> {
    match eventually(&format!("{name}'s pods to be ready"), STEP, || running(t, name, old)).await {
        Ok(uids) => Ok(uids),
        Err(e) => Err(e.context(t.kubectl(&["get", "events", "--sort-by=.lastTimestamp"]).await?)),
    }
}

/// Deletes all pods of a set at once, so often, and waits each time until all are ready again.
async fn restart(t: &Test, name: &str, rounds: usize) -> Result<()> {
    let mut uids = all_ready(t, name, &[]).await?;
    for _ in 0..rounds {
        t.kubectl(&["delete", "pods", "-l", &format!("set={name}"), "--wait=false"]).await?;
        uids = all_ready(t, name, &uids).await?;
    }
    Ok(())
}

/// Owner and epoch of each volume of a set.
async fn authorities(t: &Test, name: &str) -> Result<BTreeMap<String, (String, u64)>> {
    let dots = t.kube().list("Dot", &t.namespace).await?;
    let of_set = dots.iter().filter(|d| d["metadata"]["name"].as_str().is_some_and(|n| n.starts_with(&format!("data-{name}-"))));
    let mut all = BTreeMap::new();
    for dot in of_set {
        let id = dot["spec"]["fsId"].as_str().context("the Dot has no id")?;
        let fs = t.object("Filesystem", id).await?;
        let authority = &fs["status"]["authority"];
        let owner = authority["owner"]["node"].as_str().unwrap_or_default().to_owned();
        all.insert(id.to_owned(), (owner, authority["epoch"].as_u64().unwrap_or_default()));
    }
    ensure!(all.len() == SIZE, "{} volumes of {name}", all.len());
    Ok(all)
}

/// Moves since then: an epoch is one change of owner.
fn moves(before: &BTreeMap<String, (String, u64)>, after: &BTreeMap<String, (String, u64)>) -> u64 {
    before.iter().map(|(id, (_, epoch))| after.get(id).map_or(0, |(_, now)| now - epoch)).sum()
}

/// Mean and count of a histogram, and its value at a quantile at most, from the operator's metrics.
async fn latency(t: &Test) -> Result<String> {
    let (_, text) = http_get(&t.rig.operator_http, "/metrics").await?;
    let value = |line: &str| line.rsplit(' ').next().and_then(|v| v.parse::<f64>().ok());
    let of = |suffix: &str| text.lines().find(|l| l.starts_with(&format!("dotgraft_operator_webhook_seconds_{suffix}"))).and_then(value);
    let (sum, count) = (of("sum").context("no histogram")?, of("count").context("no histogram")?);
    let buckets = text.lines().filter(|l| l.starts_with("dotgraft_operator_webhook_seconds_bucket"));
    let p99 = buckets.filter(|l| value(l).is_some_and(|n| n >= count * 0.99)).find_map(|l| l.split("le=\"").nth(1)?.split('"').next());
    Ok(format!("{count} requests, mean {:.2} ms, 99 % within {} s", sum / count * 1000.0, p99.unwrap_or("?")))
}

async fn restarts(t: Arc<Test>) -> Result<()> {
    set(&t, "near", "").await?;
    set(&t, "any", ", dotgraft.dev/locality: 'off'").await?;
    futures::try_join!(all_ready(&t, "near", &[]), all_ready(&t, "any", &[]))?;
    webhook_patience(&t, PATIENT).await?;
    let (near, any) = (authorities(&t, "near").await?, authorities(&t, "any").await?);
    let (start, mut rounds, mut without) = (Instant::now(), 0, 0);
    while without == 0 && rounds < ROUNDS_WITHOUT {
        restart(&t, "any", 1).await?;
        rounds += 1;
        without = moves(&any, &authorities(&t, "any").await?);
    }
    println!("        {} restarts without the webhook: {without} moves, {:.1} s", rounds * SIZE, start.elapsed().as_secs_f64());
    t.kubectl(&["delete", "statefulset", "any"]).await?;
    let start = Instant::now();
    restart(&t, "near", ROUNDS).await?;
    let with = authorities(&t, "near").await?;
    println!(
        "        {} restarts with it: {} moves, {:.1} s; {}",
        ROUNDS * SIZE,
        moves(&near, &with),
        start.elapsed().as_secs_f64(),
        latency(&t).await?
    );
    ensure!(with == near, "volumes have moved: {near:?} → {with:?}");
    ensure!(without > 0, "nothing moved without the webhook either: this shows nothing");
    webhook_patience(&t, SHIPPED).await?;
    absent(&t).await?;
    clear(&t).await
}

/// Has the API server call the webhook at another port; returns the one it was.
async fn webhook_at(t: &Test, port: u64) -> Result<u64> {
    let slice = ["-n", SYSTEM, "get", "endpointslice", "dotgraft-operator", "-o", "jsonpath={.ports[0].port}"];
    let before = t.kube().kubectl(&slice).await?.trim().parse()?;
    let patch = json!([{"op": "replace", "path": "/ports/0/port", "value": port}]).to_string();
    t.kube().kubectl(&["-n", SYSTEM, "patch", "endpointslice", "dotgraft-operator", "--type=json", "-p", &patch]).await?;
    Ok(before)
}

/// Pods start where the webhook hangs, and where nothing answers at its address.
async fn absent(t: &Test) -> Result<()> {
    let port = webhook_at(t, 1).await?;
    // The API server keeps its connections; each request that hangs ends one.
    t.rig.pause(OPERATOR)?;
    let hung = hanging(t).await;
    t.rig.resume(OPERATOR)?;
    hung?;
    let start = Instant::now();
    restart(t, "near", 1).await?;
    println!("        without anyone at its address {SIZE} pods restart in {:.1} s", start.elapsed().as_secs_f64());
    webhook_at(t, port).await?;
    eventually("the webhook to be back", STEP, || async {
        let pod = admitted(t, &sample(&["data-near-0"], None)).await?;
        ensure!(preferred(&pod) != json!([]), "no preference");
        Ok(())
    })
    .await
}

/// Asks until nobody is there to hang any more.
async fn hanging(t: &Test) -> Result<()> {
    for _ in 0..12 {
        let start = Instant::now();
        let pod = admitted(t, &sample(&["data-near-0"], None)).await?;
        let took = start.elapsed();
        ensure!(preferred(&pod) == json!([]), "who can have answered? {}", pod["spec"]["affinity"]);
        ensure!(took < Duration::from_secs(20), "admitted only after {took:?}");
        println!("        with one that hangs a pod is admitted after {:.1} s", took.as_secs_f64());
        if took < Duration::from_millis(900) {
            return Ok(());
        }
    }
    bail!("connections that never end")
}

/// Bytes that a pod has written before its node is left, and after its copy was brought up.
const BEFORE: u64 = 40 << 20;
const AFTER: u64 = 1 << 20;

/// A Dot with a replica, and a set of one pod that has it and writes [`BEFORE`]. Returns its id, its node and its replica's.
async fn with_replica(t: &Test, name: &str) -> Result<(String, String, String)> {
    let id = t.dot_of(name, &json!({"capacity": "512Mi", "placement": {"replicas": 1}})).await?;
    t.apply(&format!(
        "apiVersion: v1\nkind: PersistentVolumeClaim\nmetadata: {{name: {name}, namespace: NAMESPACE}}\nspec:\n  \
         storageClassName: dotgraft\n  accessModes: [ReadWriteOnce]\n  resources: {{requests: {{storage: 256Mi}}}}\n  \
         dataSourceRef: {{apiGroup: dotgraft.dev, kind: Dot, name: {name}}}\n---\n\
         apiVersion: apps/v1\nkind: StatefulSet\nmetadata: {{name: {name}, namespace: NAMESPACE}}\nspec:\n  replicas: 1\n  \
         serviceName: {name}\n  selector: {{matchLabels: {{set: {name}}}}}\n  template:\n    metadata: {{labels: {{set: {name}}}}}\n    \
         spec:\n      terminationGracePeriodSeconds: 1\n      containers:\n      - name: c\n        image: busybox:1\n        \
         imagePullPolicy: Never\n        command: [sleep, '10000']\n        volumeMounts: [{{name: data, mountPath: /data}}]\n      \
         volumes: [{{name: data, persistentVolumeClaim: {{claimName: {name}}}}}]\n"
    ))
    .await?;
    let pod = format!("{name}-0");
    eventually("the pod to be there", STEP, || async { t.kubectl(&["get", "pod", &pod]).await }).await?;
    started(t, &pod).await?;
    write(t, &pod, "a", BEFORE).await?;
    let owner = node_of(t, &pod).await?;
    owned_by(t, name, &owner).await.context("the pod is not where its volume is")?;
    let all = t.kube().list("Replica", "").await?;
    let copy = all.iter().find(|r| r["spec"]["fsId"] == *id && r["spec"]["node"] != *owner).context("no replica")?;
    let copy = copy["spec"]["node"].as_str().unwrap_or_default().to_owned();
    Ok((id, owner, copy))
}

async fn write(t: &Test, pod: &str, file: &str, bytes: u64) -> Result<()> {
    let script = format!("dd if=/dev/urandom of=/data/{file} bs=64k count={} 2>/dev/null && sync", bytes >> 16);
    t.kubectl(&["exec", pod, "--", "sh", "-c", &script]).await?;
    Ok(())
}

async fn node_of(t: &Test, pod: &str) -> Result<String> {
    t.kubectl(&["get", "pod", pod, "-o", "jsonpath={.spec.nodeName}"]).await
}

async fn bytes_of(t: &Test, id: &str, node: &str) -> Result<u64> {
    Ok(t.replica(id, node).await?["status"]["bytes"].as_u64().unwrap_or_default())
}

/// Waits until the set's pod runs on another node than `from`, on `to` if that is named, and returns what the move has sent.
async fn moved(t: &Test, name: &str, (from, to): (&str, Option<&str>), start: Instant) -> Result<u64> {
    let pod = format!("{name}-0");
    eventually("the pod to run elsewhere", STEP, || async {
        let node = node_of(t, &pod).await?;
        ensure!(!node.is_empty() && node != *from && to.is_none_or(|to| node == *to), "it is on {node:?}");
        t.kubectl(&["wait", "--for=condition=Ready", "pod", &pod, "--timeout=1s"]).await
    })
    .await?;
    let took = start.elapsed();
    let sizes = t.kubectl(&["exec", &pod, "--", "sh", "-c", "stat -c %s /data/a /data/b | tr '\\n' ' '"]).await?;
    ensure!(sizes.trim() == format!("{BEFORE} {AFTER}"), "what is there: {sizes}");
    let migration = eventually("the move to be done", STEP, || async {
        let dot = t.object("Dot", name).await?;
        let m = dot["status"]["migration"].clone();
        ensure!(m["phase"] == "Done" && m["from"] == *from, "{m}");
        Ok(m)
    })
    .await?;
    let (sent, frozen) = (migration["bytes"].as_u64().unwrap_or_default(), migration["frozenMs"].as_u64().unwrap_or_default());
    println!("        {name}: the move sent {} KiB, froze for {frozen} ms; the pod ran after {:.1} s", sent >> 10, took.as_secs_f64());
    Ok(sent)
}

async fn drain(t: Arc<Test>) -> Result<()> {
    webhook_patience(&t, PATIENT).await?;
    // As a drain would be without that: the node is closed by a taint, which is no cordon.
    let (id, from, to) = with_replica(&t, "plain").await?;
    let taint = "dotgraft.dev/test=closed:NoSchedule";
    t.kube().kubectl(&["taint", "node", &from, taint]).await?;
    write(&t, "plain-0", "b", AFTER).await?;
    ensure!(bytes_of(&t, &id, &to).await? < AFTER, "the replica has something already");
    let start = Instant::now();
    t.kubectl(&["delete", "pod", "plain-0"]).await?;
    let all = moved(&t, "plain", (&from, None), start).await?;
    t.kube().kubectl(&["taint", "node", &from, &format!("{taint}-")]).await?;
    ensure!(all >= BEFORE, "the contrast: {all} bytes");

    let (id, from, to) = with_replica(&t, "ready").await?;
    ensure!(bytes_of(&t, &id, &to).await? < AFTER, "the replica has something already");
    let start = Instant::now();
    t.kube().kubectl(&["cordon", &from]).await?;
    eventually("the replica to hold what was written", STEP, || async {
        let status = t.replica(&id, &to).await?["status"].clone();
        let bytes = status["bytes"].as_u64().unwrap_or_default();
        // Bytes count as they come; it is a commit once nothing is received any more.
        ensure!(bytes >= BEFORE && status["role"] == "Replica", "it has {bytes} bytes as {}", status["role"]);
        Ok(())
    })
    .await?;
    println!("        ready: cordoned to on the replica in {:.1} s", start.elapsed().as_secs_f64());
    eventually("an event that says so", STEP, || async {
        let events = t.kubectl(&["get", "events", "--field-selector=reason=CordonReplicates", "-o", "json"]).await?;
        ensure!(events.contains(&format!("node {from} is cordoned")), "{events}");
        Ok(())
    })
    .await?;
    ensure!(t.kube().list("Commit", &t.namespace).await?.is_empty(), "commits that nobody asked for");
    ensure!(t.object("Dot", "ready").await?["status"].get("recentCommits").is_none(), "they are shown");
    write(&t, "ready-0", "b", AFTER).await?;
    let start = Instant::now();
    t.kube().kubectl(&["drain", &from, "--ignore-daemonsets", "--delete-emptydir-data", "--force", "--timeout=180s"]).await?;
    let rest = moved(&t, "ready", (&from, Some(&to)), start).await?;
    ensure!(rest < 4 * AFTER, "the drain sent {rest} bytes");
    t.kube().kubectl(&["uncordon", &from]).await?;
    webhook_patience(&t, SHIPPED).await?;
    clear(&t).await
}
