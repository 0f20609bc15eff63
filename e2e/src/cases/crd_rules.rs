//! Every rule of the CRDs against the real API server: `dotgraft_api::cases` has the table, an accepted and a rejected
//! object for each; here they are sent.

use std::collections::BTreeMap;
use std::sync::Arc;

use anyhow::{Context as _, Result, bail};
use dotgraft_api::cases::{self as table, Write};
use kube::api::{DynamicObject, PostParams};
use serde_json::Value;

use crate::harness::test::{STEP, Test, text};
use crate::harness::{Case, Needs};

/// One case for each row of the table, numbered within its kind.
pub fn cases() -> Vec<Case> {
    let mut numbers: BTreeMap<&str, usize> = BTreeMap::new();
    table::all()
        .into_iter()
        .map(|row| {
            let number = numbers.entry(row.kind).or_default();
            *number += 1;
            let verdict = if row.accept { "accept" } else { "reject" };
            let id = format!("crd/{}-{number:02}-{verdict}", row.kind.to_lowercase());
            let place = if row.path.is_empty() { String::new() } else { format!(" {}", row.path) };
            let title = format!("{}{place}: {}", row.kind, row.message);
            let case = Case::new(id, title, move |t| one(t, row.clone())).api();
            debug_assert!(matches!(case.needs, Needs::Api));
            case
        })
        .collect()
}

async fn one(t: Arc<Test>, row: table::Case) -> Result<()> {
    if let Some(setup) = &row.setup {
        let name = text(setup, "/metadata/name")?;
        t.kube().create(&t.namespace, setup).await.context("the case's setup was refused")?;
        if let Some(status) = setup.get("status") {
            t.kube().patch(row.kind, &t.namespace, &name, "status", &serde_json::json!({ "status": status })).await?;
        }
    }
    let answer = send(&t, &row).await;
    for object in row.setup.iter().chain(std::iter::once(&row.object)) {
        let name = text(object, "/metadata/name")?;
        t.kube().delete(row.kind, &t.namespace, &name).await?;
        t.kube().gone(row.kind, &t.namespace, &name, STEP).await?;
    }
    judge(&row, answer)
}

async fn send(t: &Test, row: &table::Case) -> kube::Result<()> {
    let api = match t.kube().api(row.kind, &t.namespace) {
        Ok(api) => api,
        Err(e) => return Err(kube::Error::Service(e.into())),
    };
    let parsed = |value: Value| serde_json::from_value::<DynamicObject>(value).map_err(kube::Error::SerdeError);
    let params = PostParams::default();
    if row.write == Write::Create {
        return api.create(&params, &parsed(row.object.clone())?).await.map(|_| ());
    }
    let name = row.object.pointer("/metadata/name").and_then(Value::as_str).unwrap_or_default();
    let live = api.get(name).await?;
    let mut object = parsed(row.object.clone())?;
    object.metadata.resource_version = live.metadata.resource_version;
    match row.write {
        Write::UpdateStatus => api.replace_status(name, &params, &object).await.map(|_| ()),
        _ => api.replace(name, &params, &object).await.map(|_| ()),
    }
}

fn judge(row: &table::Case, answer: kube::Result<()>) -> Result<()> {
    match (row.accept, answer) {
        (true, Ok(())) => Ok(()),
        (true, Err(e)) => bail!("it was refused: {e}\n{}", row.object),
        (false, Ok(())) => bail!("it was taken: {}", row.object),
        (false, Err(kube::Error::Api(status))) if status.code == 422 && status.message.contains(row.message) => Ok(()),
        (false, Err(e)) => bail!("it was refused for another reason: {e}"),
    }
}
