//! `PostgreSQL` in pods: how it is started, the load on it, and whether a database holds all that was acknowledged.

use std::path::Path;

use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};

use super::{STEP, notes};
use crate::harness::Test;
use crate::rig::wait::eventually;

/// What `e2e/tools.sh` made, and the image's name in it.
const IMAGE: (&str, &str) = ("image-postgres", "ghcr.io/dotgraft/test-postgres:15");

/// Inserts numbered rows, one transaction each, and notes each number once the database has said that it is durable. The first
/// pod does so as fast as about a thousandth of a second between two allows, the others ten times a second.
const LOAD: &str = r#"
trap 'exit 0' TERM
export PGHOST=127.0.0.1 PGUSER=postgres
case $HOSTNAME in *-0) pause=1000 ;; *) pause=100000 ;; esac
while :; do
  until pg_isready -q; do sleep 0.2; done
  psql -qc 'create table if not exists log (seq bigint primary key, word text not null)' || continue
  n=$(psql -Atc 'select coalesce(max(seq), 0) from log') || continue
  while :; do
    n=$((n + 1))
    echo "insert into log values ($n, repeat(md5('$n'), 8)) returning seq;"
    usleep $pause
  done | psql -qAt -v ON_ERROR_STOP=1 >>/notes/NAMESPACE-$HOSTNAME
done
"#;

/// Rows, the newest number, the sum of all numbers, and rows whose word isn't what it must be.
const COUNTS: &str =
    "select count(*), coalesce(max(seq), 0), coalesce(sum(seq), 0), count(*) filter (where word <> repeat(md5(seq::text), 8)) from log";
/// What is wrong with the table's pages, and the index against the table.
const STRUCTURE: &str =
    "create extension if not exists amcheck; select bt_index_check('log_pkey', true); select count(*) from verify_heapam('log')";

/// Gives every node the image.
pub async fn image(t: &Test) -> Result<()> {
    t.rig.image(IMAGE.0, IMAGE.1).await
}

fn server() -> Value {
    let settings = ["shared_buffers=16MB", "max_wal_size=64MB", "min_wal_size=32MB", "max_connections=20", "checkpoint_timeout=30s"];
    let args: Vec<&str> = settings.iter().flat_map(|s| ["-c", s]).collect();
    json!({
        "name": "db", "image": IMAGE.1, "imagePullPolicy": "Never", "args": args,
        "env": [{"name": "PGDATA", "value": "/data/pg"}],
        "readinessProbe": {"exec": {"command": ["pg_isready", "-q", "-h", "127.0.0.1"]}, "periodSeconds": 1, "timeoutSeconds": 5},
        "lifecycle": {"preStop": {"exec": {"command": ["sh", "-c", "kill -INT 1"]}}},
        "volumeMounts": [{"name": "data", "mountPath": "/data"}],
    })
}

/// A pod that serves the database which a claim holds, without any load.
pub async fn pod(t: &Test, name: &str, claim: &str) -> Result<()> {
    let pod = json!({
        "apiVersion": "v1", "kind": "Pod", "metadata": {"name": name, "namespace": "NAMESPACE"},
        "spec": {
            "securityContext": {"fsGroup": 999}, "terminationGracePeriodSeconds": 10, "containers": [server()],
            "volumes": [{"name": "data", "persistentVolumeClaim": {"claimName": claim}}],
        },
    });
    t.apply(&pod.to_string()).await
}

/// Three databases `db-0`… under load, each on a claim `data-db-0`… of the shipped `StorageClass`.
pub async fn stateful_set(t: &Test) -> Result<()> {
    let load = json!({
        "name": "load", "image": IMAGE.1, "imagePullPolicy": "Never", "command": ["sh", "-c", LOAD],
        "volumeMounts": [{"name": "notes", "mountPath": "/notes"}],
    });
    let apart = json!({"weight": 100, "podAffinityTerm": {"labelSelector": {"matchLabels": {"app": "db"}}, "topologyKey": "kubernetes.io/hostname"}});
    let set = json!({
        "apiVersion": "apps/v1", "kind": "StatefulSet", "metadata": {"name": "db", "namespace": "NAMESPACE"},
        "spec": {
            "serviceName": "db", "replicas": 3, "podManagementPolicy": "Parallel", "selector": {"matchLabels": {"app": "db"}},
            "template": {
                "metadata": {"labels": {"app": "db"}},
                "spec": {
                    "securityContext": {"fsGroup": 999}, "terminationGracePeriodSeconds": 10,
                    "affinity": {"podAntiAffinity": {"preferredDuringSchedulingIgnoredDuringExecution": [apart]}},
                    "containers": [server(), load],
                    "volumes": [{"name": "notes", "hostPath": {"path": "/var/tmp/notes"}}],
                },
            },
            "volumeClaimTemplates": [{
                "metadata": {"name": "data"},
                "spec": {"storageClassName": "dotgraft", "accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "256Mi"}}},
            }],
        },
    });
    t.apply(&set.to_string()).await
}

/// What the database says to `sql`, its last line.
async fn ask(t: &Test, pod: &str, sql: &str) -> Result<String> {
    let said = t.kubectl(&["exec", pod, "-c", "db", "--", "psql", "-qAt", "-h", "127.0.0.1", "-U", "postgres", "-c", sql]).await?;
    Ok(said.lines().last().unwrap_or_default().to_owned())
}

/// The newest number in a database.
pub async fn newest(t: &Test, pod: &str) -> Result<u64> {
    Ok(ask(t, pod, "select coalesce(max(seq), 0) from log").await?.parse()?)
}

/// The newest number that was acknowledged to a pod, on whatever node.
pub fn acknowledged(t: &Test, pod: &str) -> Result<u64> {
    let mut newest = 0;
    for machine in &t.rig.machines {
        newest = newest.max(last(&notes(t, machine.name(), pod)?)?);
    }
    Ok(newest)
}

fn last(file: &Path) -> Result<u64> {
    let text = match std::fs::read_to_string(file) {
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(0),
        other => other?,
    };
    let whole = text.rsplit_once('\n').map(|(whole, _)| whole).unwrap_or_default();
    whole.lines().last().map_or(Ok(0), |line| line.parse().with_context(|| format!("{}: {line:?}", file.display())))
}

/// The database is sound, has every number up to its newest, once, and no fewer than `at_least`. Returns the newest.
pub async fn check(t: &Test, pod: &str, at_least: u64) -> Result<u64> {
    let counts = ask(t, pod, COUNTS).await?;
    let numbers: Vec<u64> = counts.split('|').map(str::parse).collect::<Result<_, _>>().with_context(|| counts.clone())?;
    let &[rows, newest, sum, wrong] = numbers.as_slice() else { anyhow::bail!("{counts}") };
    ensure!(wrong == 0, "{wrong} of {rows} rows of {pod} hold something else");
    ensure!(rows == newest && sum == newest * (newest + 1) / 2, "{pod}: {rows} rows up to {newest}, their sum is {sum}: some are missing");
    ensure!(newest >= at_least, "{pod}: number {at_least} was acknowledged, the newest is {newest}");
    let broken = ask(t, pod, STRUCTURE).await?;
    ensure!(broken == "0", "{pod}: verify_heapam found {broken} faults");
    Ok(newest)
}

/// Waits until `rows` more than now are acknowledged to a pod.
pub async fn goes_on(t: &Test, pod: &str, rows: u64) -> Result<()> {
    let now = acknowledged(t, pod)?;
    eventually(&format!("{pod} to acknowledge {rows} more than {now}"), STEP, || async {
        let later = acknowledged(t, pod)?;
        ensure!(later >= now + rows, "{later}");
        Ok(())
    })
    .await
}
