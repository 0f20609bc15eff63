//! A real Prometheus that watches the rig: Debian's, started as what the chart's monitors and rules make of it, and asked by its own API.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};

use super::helm::{RELEASE, chart};
use super::monitoring::{Monitoring, Target};
use super::process::Spec;
use super::programs::http_get;
use super::wait::eventually;
use super::{Rig, ports};

/// Its name among the rig's programs.
const NAME: &str = "prometheus";
/// What a person sets who has the operator of Prometheus; that often it scrapes, and looks at its rules.
const VALUES: [&str; 4] =
    ["pool.file.size=1Gi", "serviceMonitor.enabled=true", "serviceMonitor.interval=1s", "prometheusRule.enabled=true"];
/// What discovery calls the node of a target's pod.
const NODE: &str = "__meta_kubernetes_pod_node_name";
/// Longest that it may take to start.
const STARTS: Duration = Duration::from_secs(60);

/// One element of an answer.
#[derive(Clone, Debug)]
pub struct Sample {
    /// Its labels, the name among them.
    pub labels: BTreeMap<String, String>,
    /// Its value.
    pub value: f64,
}

/// A running Prometheus.
#[derive(Clone, Debug)]
pub struct Prometheus {
    address: String,
}

impl Rig {
    /// What the chart has for a Prometheus, as Helm renders it.
    ///
    /// # Errors
    ///
    /// Helm doesn't render it.
    pub async fn monitoring(&self) -> Result<Monitoring> {
        Monitoring::of(&self.helm(&["template", RELEASE, &chart()], &VALUES).await?)
    }

    /// Starts a Prometheus that scrapes operator and agents as the chart's monitors say, and evaluates `rules`; its files are in `dir`. It ends
    /// with the rig.
    ///
    /// # Errors
    ///
    /// There is none on this machine, or it takes neither the configuration nor the rules.
    pub async fn start_prometheus(&self, dir: &Path, monitoring: &Monitoring, rules: &Value) -> Result<Prometheus> {
        let at = |address: &str, meta| Target { address: address.to_owned(), meta };
        let scrapes = monitoring.scrapes(|service| match service {
            "dotgraft-operator" => vec![at(&self.operator_http, BTreeMap::new())],
            "dotgraft-agent" => self.nodes.iter().map(|n| at(&n.http, [(NODE.to_owned(), n.name.clone())].into())).collect(),
            _ => Vec::new(),
        })?;
        std::fs::create_dir_all(dir)?;
        let (rules_file, config_file) = (dir.join("rules.yaml"), dir.join("prometheus.yaml"));
        let config = json!({"global": {"evaluation_interval": "1s"}, "rule_files": [rules_file], "scrape_configs": scrapes});
        std::fs::write(&rules_file, rules.to_string())?;
        std::fs::write(&config_file, config.to_string())?;
        let address = format!("127.0.0.1:{}", ports::free()?);
        let args = vec![
            format!("--config.file={}", config_file.display()),
            format!("--storage.tsdb.path={}", dir.join("data").display()),
            format!("--web.listen-address={address}"),
            "--log.level=warn".into(),
        ];
        self.processes.start(Spec::new(NAME, Path::new(NAME), args)).context("Debian's package prometheus has it")?;
        let prometheus = Prometheus { address };
        eventually("Prometheus to be ready", STARTS, || async {
            ensure!(self.processes.running(NAME), "it has ended:\n{}", self.processes.tail(NAME, 20));
            let (status, said) = http_get(&prometheus.address, "/-/ready").await?;
            ensure!(status == 200, "{said}");
            Ok(())
        })
        .await?;
        Ok(prometheus)
    }

    /// Ends it, before its files go.
    ///
    /// # Errors
    ///
    /// It doesn't end.
    pub fn stop_prometheus(&self) -> Result<()> {
        self.processes.forget(NAME)
    }
}

impl Prometheus {
    /// What an expression is now.
    ///
    /// # Errors
    ///
    /// Prometheus doesn't answer, or the expression is none.
    pub async fn query(&self, expr: &str) -> Result<Vec<Sample>> {
        let answer = self.get(&format!("/api/v1/query?query={}", encoded(expr))).await.with_context(|| format!("asking for {expr}"))?;
        let result = answer.pointer("/data/result").and_then(Value::as_array).context("no result")?;
        result.iter().map(sample).collect()
    }

    /// The names of all metrics that it has seen.
    ///
    /// # Errors
    ///
    /// Prometheus doesn't answer.
    pub async fn metrics(&self) -> Result<Vec<String>> {
        let answer = self.get("/api/v1/label/__name__/values").await?;
        Ok(serde_json::from_value(answer["data"].clone())?)
    }

    async fn get(&self, path: &str) -> Result<Value> {
        let (status, body) = http_get(&self.address, path).await?;
        ensure!(status == 200, "{status} {body}");
        Ok(serde_json::from_str(&body)?)
    }
}

fn sample(element: &Value) -> Result<Sample> {
    let labels = serde_json::from_value(element["metric"].clone())?;
    let value = element.pointer("/value/1").and_then(Value::as_str).context("no value")?;
    Ok(Sample { labels, value: value.parse()? })
}

/// As a URL carries it.
fn encoded(text: &str) -> String {
    let mut out = String::new();
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() {
            out.push(char::from(byte));
        } else {
            // Writing to a String can't fail.
            let _ = write!(out, "%{byte:02X}");
        }
    }
    out
}
