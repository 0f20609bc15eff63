//! Figures of each volume, of the leader only: what it uses and may use, how old its copies are and what they lack, when each was last brought
//! up to date. Bounded: of so many volumes at most, the first by namespace and name, and how many are left out is a figure, too.

use std::sync::Arc;
use std::time::Duration;

use dotgraft_api::{Branch, ClaimKind, Dot, DotStatus, ReplicaStatus};
use k8s_openapi::jiff::Timestamp;
use kube::ResourceExt;

use crate::context::Ctx;

/// How old the figures may be.
const EVERY: Duration = Duration::from_secs(10);

/// One volume's figures.
#[derive(Debug, Clone, PartialEq)]
pub struct Figures {
    /// Its namespace.
    pub namespace: String,
    /// Dot or Branch.
    pub kind: ClaimKind,
    /// Its name.
    pub name: String,
    /// Bytes used by files and history; absent: not known yet.
    pub bytes: Option<u64>,
    /// What they may take.
    pub limit: Option<u64>,
    /// Its copies, the owner's first.
    pub copies: Vec<CopyFigures>,
}

/// One copy's figures.
#[derive(Debug, Clone, PartialEq)]
pub struct CopyFigures {
    /// The node.
    pub node: String,
    /// Seconds since its newest commit was taken; `None`: it has none.
    pub age: Option<f64>,
    /// Seconds since when it lacks something that its owner has ([`crate::lag`]); 0: nothing. Of the owner's copy: since when files differ from
    /// the newest commit.
    pub behind: f64,
    /// Unix time at which a job last brought everything there.
    pub last_success: Option<f64>,
}

/// Refreshes the figures; runs for ever.
pub async fn watch(ctx: Arc<Ctx>) {
    loop {
        let (shown, left_out) = bounded(all(&ctx), ctx.volume_metrics);
        ctx.metrics.volumes(&shown, left_out);
        tokio::time::sleep(EVERY).await;
    }
}

/// The first so many, and how many more there are.
fn bounded(mut all: Vec<Figures>, most: usize) -> (Vec<Figures>, usize) {
    let by_name = |f: &Figures| (f.namespace.clone(), f.name.clone(), f.kind);
    all.sort_by_key(by_name);
    let left_out = all.len().saturating_sub(most);
    all.truncate(most);
    (all, left_out)
}

fn all(ctx: &Ctx) -> Vec<Figures> {
    let now = Timestamp::now();
    let of_dot = |d: Arc<Dot>| figures((d.namespace(), ClaimKind::Dot, d.name_any()), d.status.as_ref(), now, ctx);
    let of_branch = |b: Arc<Branch>| figures((b.namespace(), ClaimKind::Branch, b.name_any()), b.status.as_ref(), now, ctx);
    let branches = ctx.caches.branches.all().into_iter().map(of_branch);
    ctx.caches.dots.all().into_iter().map(of_dot).chain(branches).collect()
}

fn figures((namespace, kind, name): (Option<String>, ClaimKind, String), status: Option<&DotStatus>, now: Timestamp, ctx: &Ctx) -> Figures {
    let s = status.cloned().unwrap_or_default();
    let replicas = s.fs_id.as_ref().map(|id| ctx.caches.replicas.with(id)).unwrap_or_default();
    let owner = replicas.iter().find(|r| Some(&r.spec.pool) == s.pool.as_ref());
    let success_to = |node: &str| {
        let to_node = owner?.spec.desired.jobs.iter().filter(|j| j.peer.node == node);
        let uids: Vec<&str> = to_node.map(|j| j.uid.as_str()).collect();
        last_success(owner?.status.as_ref()?, &uids)
    };
    let seconds = |since: Timestamp| now.duration_since(since).as_secs_f64().max(0.0);
    let copies = s.replicas.iter().map(|r| {
        let is_owner = Some(&r.node) == s.owner.as_ref();
        let since = if is_owner { s.written_since.as_ref() } else { r.behind_since.as_ref() };
        CopyFigures {
            node: r.node.clone(),
            age: r.commit_time.as_ref().map(|t| seconds(t.0)),
            behind: since.map_or(0.0, |t| seconds(t.0)),
            last_success: success_to(&r.node),
        }
    });
    Figures { namespace: namespace.unwrap_or_default(), kind, name, bytes: s.bytes, limit: s.limit, copies: copies.collect() }
}

#[allow(clippy::cast_precision_loss)] // seconds
fn last_success(owner: &ReplicaStatus, jobs: &[&str]) -> Option<f64> {
    let ended = owner.jobs.iter().filter(|j| jobs.contains(&j.uid.as_str())).filter_map(|j| j.last_successful_time.as_ref());
    ended.map(|t| t.0.as_second() as f64).reduce(f64::max)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn volume(name: &str) -> Figures {
        let copy = |node: &str, last_success| CopyFigures { node: node.into(), age: Some(60.0), behind: 5.0, last_success };
        let copies = vec![copy("n1", None), copy("n2", Some(7.0))];
        Figures { namespace: "shop".into(), kind: ClaimKind::Dot, name: name.into(), bytes: Some(4096), limit: Some(8192), copies }
    }

    #[test]
    fn volumes_are_shown_up_to_the_bound_and_the_rest_is_counted() {
        let m = crate::metrics::Metrics::default();
        let (shown, left_out) = bounded(vec![volume("b"), volume("c"), volume("a")], 2);
        m.volumes(&shown, left_out);
        let text = m.render();
        for line in [
            "dotgraft_operator_volume_bytes{namespace=\"shop\",kind=\"Dot\",name=\"a\"} 4096",
            "dotgraft_operator_volume_limit_bytes{namespace=\"shop\",kind=\"Dot\",name=\"b\"} 8192",
            "dotgraft_operator_volume_copy_age_seconds{namespace=\"shop\",kind=\"Dot\",name=\"a\",node=\"n2\"} 60.0",
            "dotgraft_operator_volume_copy_behind_seconds{namespace=\"shop\",kind=\"Dot\",name=\"a\",node=\"n1\"} 5.0",
            "dotgraft_operator_volume_copy_last_success_timestamp_seconds{namespace=\"shop\",kind=\"Dot\",name=\"a\",node=\"n2\"} 7.0",
            "dotgraft_operator_volumes_left_out 1",
        ] {
            assert!(text.lines().any(|l| l == line), "no line {line:?} in\n{text}");
        }
        assert!(!text.contains("name=\"c\""), "{text}");
        m.volumes(&[], 0);
        assert!(!m.render().contains("namespace=\"shop\""), "what is gone is shown no more");
    }

    #[test]
    fn who_stops_leading_shows_no_volume_any_more() {
        let m = crate::metrics::Metrics::default();
        m.volumes(&[volume("a")], 3);
        m.leading(false);
        let text = m.render();
        assert!(!text.contains("namespace=\"shop\"") && text.contains("dotgraft_operator_volumes_left_out 0"), "{text}");
    }
}
