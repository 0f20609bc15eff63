//! What only a restore of etcd, or its loss, does.

use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use crate::harness::Test;
use crate::harness::test::text;
use crate::rig::kube::KINDS;

/// One request to etcd's JSON gateway.
pub async fn etcd(t: &Test, path: &str, body: &Value) -> Result<Value> {
    let args = t.rig.processes.args("etcd")?;
    let address = args.iter().find_map(|a| a.strip_prefix("--listen-client-urls=http://")).context("etcd has no address")?;
    let mut stream = TcpStream::connect(address).await?;
    let body = body.to_string();
    let head =
        format!("POST {path} HTTP/1.0\r\nHost: {address}\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n", body.len());
    stream.write_all((head + &body).as_bytes()).await?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await?;
    let (head, body) = answer.split_once("\r\n\r\n").context("no answer of etcd")?;
    ensure!(head.contains(" 200 "), "etcd: {answer}");
    Ok(serde_json::from_str(body)?)
}

/// As an etcd that is lost: no finalizer holds anything, and no program of ours sees a wish to delete.
pub async fn lose_all(t: &Test) -> Result<()> {
    for (kind, _, _) in KINDS {
        let list: Value = serde_json::from_str(&t.kube().kubectl(&["get", kind, "-A", "-o", "json"]).await?)?;
        for object in list["items"].as_array().cloned().unwrap_or_default() {
            let namespace = object.pointer("/metadata/namespace").and_then(Value::as_str).unwrap_or_default();
            let name = text(&object, "/metadata/name")?;
            t.kube().patch(kind, namespace, &name, "", &json!({"metadata": {"finalizers": null}})).await?;
            t.kube().delete(kind, namespace, &name).await?;
        }
    }
    let crds: Vec<String> = KINDS.iter().map(|(_, plural, _)| format!("{plural}.dotgraft.dev")).collect();
    let mut args = vec!["delete", "crd", "--timeout=180s"];
    args.extend(crds.iter().map(String::as_str));
    t.kube().kubectl(&args).await?;
    Ok(())
}
