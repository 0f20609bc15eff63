//! What the chart gives the operator of Prometheus, read as that operator reads it: monitors become scrape configurations, rules a file of
//! rules. And the same rules in a hurry, for tests that can't wait for ten minutes.

use std::collections::BTreeMap;

use anyhow::{Context as _, Result, bail, ensure};
use serde::Deserialize as _;
use serde_json::{Map, Value, json};

/// The kinds of the chart that matter to a Prometheus, as Helm renders them.
#[derive(Debug)]
pub struct Monitoring(Vec<Value>);

/// One endpoint behind a Service.
#[derive(Clone, Debug)]
pub struct Target {
    /// `ip:port` of its port `http`.
    pub address: String,
    /// What discovery says of it: labels `__meta_…`, of which only relabeling makes labels that stay.
    pub meta: BTreeMap<String, String>,
}

impl Monitoring {
    /// From what `helm template` prints.
    ///
    /// # Errors
    ///
    /// It is no YAML.
    pub fn of(rendered: &str) -> Result<Self> {
        let documents = serde_yaml::Deserializer::from_str(rendered).map(Value::deserialize);
        Ok(Self(documents.collect::<Result<_, _>>().context("what Helm has rendered")?))
    }

    fn kind<'a>(&'a self, kind: &'a str) -> impl Iterator<Item = &'a Value> {
        self.0.iter().filter(move |o| o["kind"] == *kind)
    }

    /// A scrape configuration for each endpoint of each monitor; `targets` says what is behind the Service of that name.
    ///
    /// # Errors
    ///
    /// There is no monitor, one selects no Service, or says more than is understood here.
    pub fn scrapes(&self, targets: impl Fn(&str) -> Vec<Target>) -> Result<Vec<Value>> {
        let mut all = Vec::new();
        for monitor in self.kind("ServiceMonitor") {
            let wanted = monitor["spec"]["selector"]["matchLabels"].as_object().context("a monitor that selects nothing")?;
            let selected = |s: &&Value| wanted.iter().all(|(key, value)| s["metadata"]["labels"][key] == *value);
            let service = self.kind("Service").find(selected).with_context(|| format!("no Service has the labels {wanted:?}"))?;
            let name = service["metadata"]["name"].as_str().context("a Service without a name")?;
            for endpoint in monitor["spec"]["endpoints"].as_array().context("a monitor without endpoints")? {
                let has = service["spec"]["ports"].as_array().is_some_and(|ports| ports.iter().any(|p| p["name"] == endpoint["port"]));
                ensure!(has, "Service {name} has no port {}", endpoint["port"]);
                all.push(scrape(name, endpoint, &targets(name))?);
            }
        }
        ensure!(!all.is_empty(), "the chart has no ServiceMonitor");
        Ok(all)
    }

    /// The groups of the chart's rules.
    ///
    /// # Errors
    ///
    /// There is not exactly one object with rules.
    pub fn rules(&self) -> Result<Value> {
        let mut objects = self.kind("PrometheusRule");
        let (first, second) = (objects.next().context("the chart has no PrometheusRule")?, objects.next());
        ensure!(second.is_none(), "the chart has several PrometheusRules");
        Ok(first["spec"].clone())
    }
}

/// As the operator of Prometheus translates an endpoint. What isn't known here isn't left out, as it may be what lets the scrape in.
fn scrape(service: &str, endpoint: &Value, targets: &[Target]) -> Result<Value> {
    let mut out = Map::new();
    out.insert("job_name".into(), json!(service));
    for (key, value) in endpoint.as_object().context("an endpoint")? {
        match key.as_str() {
            "port" => {}
            "interval" => {
                out.insert("scrape_interval".into(), value.clone());
                out.insert("scrape_timeout".into(), value.clone());
            }
            "path" => drop(out.insert("metrics_path".into(), value.clone())),
            "scheme" => drop(out.insert("scheme".into(), value.clone())),
            "relabelings" => {
                let list = value.as_array().context("relabelings")?;
                out.insert("relabel_configs".into(), list.iter().map(snake_case).collect::<Option<_>>().context("a relabeling")?);
            }
            other => bail!("the rig doesn't know what {other} of an endpoint means"),
        }
    }
    let targets = targets.iter().map(|t| json!({"targets": [t.address], "labels": t.meta}));
    out.insert("static_configs".into(), targets.collect());
    Ok(Value::Object(out))
}

/// The keys of an object as Prometheus spells them.
fn snake_case(object: &Value) -> Option<Value> {
    let spelled = |key: &str| key.chars().flat_map(|c| c.is_uppercase().then_some('_').into_iter().chain(c.to_lowercase())).collect();
    Some(Value::Object(object.as_object()?.iter().map(|(k, v)| (spelled(k), v.clone())).collect()))
}

/// A limit of an alert that is another in a hurry.
#[derive(Clone, Copy, Debug)]
pub struct Limit {
    /// The alert.
    pub alert: &'static str,
    /// As the chart has it.
    pub chart: &'static str,
    /// As the copy has it.
    pub copy: &'static str,
}

/// The same rules with every duration divided by `factor`, and with other limits.
///
/// # Errors
///
/// A limit isn't in its alert, or anything but numbers would differ.
pub fn hurried(rules: &Value, factor: u64, limits: &[Limit]) -> Result<Value> {
    let mut copy = rules.clone();
    let mut used = 0;
    for rule in each_rule(&mut copy)? {
        let alert = rule["alert"].as_str().context("a rule that is no alert")?.to_owned();
        if let Some(span) = rule["for"].as_str() {
            rule["for"] = json!(shorter(span, factor)?);
        }
        let mut expr = String::new();
        for piece in pieces(rule["expr"].as_str().context("a rule without an expression")?) {
            let limit = limits.iter().find(|l| l.alert == alert && piece == Piece::Number(l.chart));
            match (piece, limit) {
                (_, Some(limit)) => {
                    expr += limit.copy;
                    used += 1;
                }
                (Piece::Duration(span), None) => expr += &shorter(span, factor)?,
                (Piece::Number(text) | Piece::Other(text), None) => expr += text,
            }
        }
        rule["expr"] = json!(expr);
    }
    ensure!(used == limits.len(), "{used} of {} limits are in the rules of the chart", limits.len());
    only_numbers_differ(rules, &copy)?;
    Ok(copy)
}

/// An error unless both have the same alerts, labels, annotations and metrics, by the same operators: only durations and numbers may differ.
///
/// # Errors
///
/// Anything else differs; it says where.
pub fn only_numbers_differ(one: &Value, other: &Value) -> Result<()> {
    let (mut one, mut other) = (one.clone(), other.clone());
    let (ours, theirs) = (each_rule(&mut one)?, each_rule(&mut other)?);
    ensure!(ours.len() == theirs.len(), "{} rules, and {}", ours.len(), theirs.len());
    for (a, b) in ours.into_iter().zip(theirs) {
        for rule in [&mut *a, &mut *b] {
            rule["expr"] = pieces(rule["expr"].as_str().unwrap_or_default()).into_iter().map(Piece::shape).collect();
            rule["for"] = json!(rule["for"].as_str().map(|span| pieces(span).into_iter().map(Piece::shape).collect::<String>()));
        }
        ensure!(a == b, "more than numbers differs:\n{a:#}\n{b:#}");
    }
    Ok(())
}

fn each_rule(rules: &mut Value) -> Result<Vec<&mut Value>> {
    let groups = rules["groups"].as_array_mut().context("no groups")?;
    let lists: Option<Vec<_>> = groups.iter_mut().map(|g| g["rules"].as_array_mut()).collect();
    Ok(lists.context("a group without rules")?.into_iter().flatten().collect())
}

/// The names of all alerts.
///
/// # Errors
///
/// These are no groups of rules.
pub fn alerts(rules: &Value) -> Result<Vec<String>> {
    let mut rules = rules.clone();
    let names: Option<_> = each_rule(&mut rules)?.into_iter().map(|r| Some(r["alert"].as_str()?.to_owned())).collect();
    names.context("a rule that is no alert")
}

/// A part of an expression.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Piece<'a> {
    Duration(&'a str),
    Number(&'a str),
    Other(&'a str),
}

impl Piece<'_> {
    /// What is left of it if every number is taken for the same.
    fn shape(self) -> String {
        match self {
            Self::Duration(_) => "<duration>".into(),
            Self::Number(_) => "<number>".into(),
            Self::Other(text) => text.into(),
        }
    }
}

/// Cuts an expression into words with their digits, strings, numbers, and single other characters.
fn pieces(expr: &str) -> Vec<Piece<'_>> {
    let mut all = Vec::new();
    let mut rest = expr;
    while let Some(first) = rest.chars().next() {
        let word = |c: char| c.is_alphanumeric() || c == '_' || c == '.';
        let length = match first {
            '"' | '\'' => rest.get(1..).and_then(|s| s.find(first)).map_or(rest.len(), |end| end + 2),
            c if word(c) => rest.find(|c| !word(c)).unwrap_or(rest.len()),
            c => c.len_utf8(),
        };
        let (text, next) = rest.split_at(length);
        all.push(match (first.is_ascii_digit(), text.ends_with(|c: char| c.is_ascii_digit())) {
            (true, true) => Piece::Number(text),
            (true, false) => Piece::Duration(text),
            (false, _) => Piece::Other(text),
        });
        rest = next;
    }
    all
}

/// A duration with one unit, divided; in milliseconds.
fn shorter(span: &str, factor: u64) -> Result<String> {
    let units = [("ms", 1), ("s", 1_000), ("m", 60_000), ("h", 3_600_000), ("d", 86_400_000)];
    let found = units.iter().find_map(|(unit, ms)| Some(span.strip_suffix(unit)?.parse::<u64>().ok()? * ms));
    Ok(format!("{}ms", (found.with_context(|| format!("the duration {span}"))? / factor).max(1)))
}

#[cfg(test)]
mod tests {
    use super::*;

    const RULES: &str = r#"
groups:
  - name: g
    rules:
      - {alert: Slow, expr: 'sum by (n1) (increase(some_total{result="failure 30m"}[30m])) > 3 and up == 0', for: 10m, labels: {severity: warning}}
      - {alert: Old, expr: age_seconds > 120, labels: {severity: critical}}
"#;
    const OLD: Limit = Limit { alert: "Old", chart: "120", copy: "50" };

    fn rules() -> Value {
        serde_yaml::from_str(RULES).unwrap()
    }

    #[test]
    fn in_a_hurry_only_numbers_are_others() {
        let copy = hurried(&rules(), 120, &[OLD]).unwrap();
        let (slow, old) = (&copy["groups"][0]["rules"][0], &copy["groups"][0]["rules"][1]);
        assert_eq!(slow["expr"], r#"sum by (n1) (increase(some_total{result="failure 30m"}[15000ms])) > 3 and up == 0"#);
        assert_eq!((&slow["for"], &old["expr"]), (&json!("5000ms"), &json!("age_seconds > 50")));
        assert!(old.get("for").is_none(), "{old}");
        assert_eq!(alerts(&copy).unwrap(), ["Slow", "Old"]);
    }

    #[test]
    fn a_limit_that_the_chart_has_no_more_is_an_error() {
        assert!(hurried(&rules(), 120, &[Limit { chart: "180", ..OLD }]).is_err());
    }

    #[test]
    fn another_metric_label_operator_or_name_is_no_number() {
        for (from, to) in
            [("some_total", "other_total"), ("failure", "success"), ("> 3", "< 3"), ("Slow", "Quick"), ("warning", "critical")]
        {
            let other: Value = serde_yaml::from_str(&RULES.replace(from, to)).unwrap();
            assert!(only_numbers_differ(&rules(), &other).is_err(), "{from} → {to}");
        }
        let other: Value = serde_yaml::from_str(&RULES.replace("> 3", "> 4")).unwrap();
        only_numbers_differ(&rules(), &other).unwrap();
    }

    const CHART: &str = r"
kind: Service
metadata: {name: some-agent, labels: {app: a}}
spec: {ports: [{name: http, port: 9807}]}
---
kind: ServiceMonitor
spec:
  selector: {matchLabels: {app: a}}
  endpoints: [{port: http, interval: 1s, relabelings: [{sourceLabels: [__meta_node], targetLabel: node}]}]
";

    fn scrapes(chart: &str) -> Result<Vec<Value>> {
        let target = Target { address: "127.0.0.1:1".into(), meta: [("__meta_node".to_owned(), "n1".to_owned())].into() };
        Monitoring::of(chart)?.scrapes(|_| vec![target.clone()])
    }

    #[test]
    fn a_monitor_is_read_as_the_operator_of_prometheus_reads_it() {
        let expected = json!([{
            "job_name": "some-agent", "scrape_interval": "1s", "scrape_timeout": "1s",
            "relabel_configs": [{"source_labels": ["__meta_node"], "target_label": "node"}],
            "static_configs": [{"targets": ["127.0.0.1:1"], "labels": {"__meta_node": "n1"}}],
        }]);
        assert_eq!(Value::from(scrapes(CHART).unwrap()), expected);
    }

    #[test]
    fn what_of_a_monitor_is_not_understood_is_not_left_out() {
        for (from, to) in
            [("port: http,", "port: http, bearerTokenSecret: {},"), ("port: http,", "port: web,"), ("{app: a}}\n  end", "{app: b}}\n  end")]
        {
            assert!(CHART.contains(from) && scrapes(&CHART.replace(from, to)).is_err(), "{to}");
        }
    }
}
