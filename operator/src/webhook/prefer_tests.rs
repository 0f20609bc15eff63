//! Which nodes a pod is told to prefer, from filled caches.

use std::sync::Arc;

use dotgraft_api::common::DRIVER_NAME;
use dotgraft_api::{Dot, NodePool, Pending, Place, Publication, ReplicaSpec, ReplicaStatus, Time};
use k8s_openapi::api::core::v1::{Node, PersistentVolume};
use serde_json::{Value, json};

use super::*;
use crate::filesystem::spare::Marks;
use crate::pools::tests::pool_id;
use crate::testing::scenario::play;
use crate::testing::{FS, dot, filesystem, node_pool, pv, replica};

const FS2: &str = "0198c2a5-7f00-7000-8000-000000000002";

fn place(node: &str) -> Place {
    Place { node: node.into(), pool: pool_id(node) }
}

/// What the caches hold.
struct World {
    dots: Vec<Dot>,
    filesystems: Vec<Filesystem>,
    replicas: Vec<Replica>,
    claims: Vec<PersistentVolumeClaim>,
    volumes: Vec<PersistentVolume>,
    pools: Vec<NodePool>,
    nodes: Vec<Node>,
}

fn copy(fs: &str, node: &str, role: CopyRole, gib: u64) -> Replica {
    let spec = ReplicaSpec { fs_id: fs.into(), node: node.into(), pool: pool_id(node), ..ReplicaSpec::default() };
    let mut r = replica(spec, Marks::default(), role);
    r.status = Some(ReplicaStatus { role, commit_count: 1, bytes: gib << 30, ..ReplicaStatus::default() });
    r
}
fn pvc(name: &str, volume: &str) -> PersistentVolumeClaim {
    serde_json::from_value(json!({ "metadata": { "name": name, "namespace": "team" }, "spec": { "volumeName": volume } })).unwrap()
}

impl World {
    /// Dot `db` of 1 GiB owned by n1, with a copy on n2; n3 has nothing. PVC `data`, PV `pv-1`.
    fn new() -> Self {
        let (pools, mut nodes): (Vec<_>, Vec<_>) = ["n1", "n2", "n3"].iter().map(|n| node_pool(n)).unzip();
        for node in &mut nodes {
            let host = format!("host-{}", node.name_any());
            node.metadata.labels = Some([(HOSTNAME.to_owned(), host)].into());
        }
        let authority = Authority { owner: place("n1"), epoch: 1, ..Authority::default() };
        Self {
            dots: vec![dot()],
            filesystems: vec![filesystem(Some(FilesystemPhase::Active), Some(authority))],
            replicas: vec![copy(FS, "n1", CopyRole::Owner, 1), copy(FS, "n2", CopyRole::Replica, 1)],
            claims: vec![pvc("data", "pv-1")],
            volumes: vec![pv("pv-1", DRIVER_NAME, FS)],
            pools,
            nodes,
        }
    }
    fn authority(&mut self) -> &mut Authority {
        self.filesystems[0].status.as_mut().unwrap().authority.as_mut().unwrap()
    }
    /// A second volume `more` of that size, owned by n3, without copies.
    fn with_second(mut self, gib: u64) -> Self {
        let mut fs = filesystem(Some(FilesystemPhase::Active), Some(Authority { owner: place("n3"), epoch: 1, ..Authority::default() }));
        fs.metadata.name = Some(FS2.into());
        fs.spec.claim_ref.name = "more".into();
        self.filesystems.push(fs);
        self.replicas.push(copy(FS2, "n3", CopyRole::Owner, gib));
        self.claims.push(pvc("more", "pv-2"));
        self.volumes.push(pv("pv-2", DRIVER_NAME, FS2));
        self
    }
    /// Terms for a pod with these claims. Radio silence: no call to the API server.
    async fn terms(self, claims: &[&str]) -> Vec<(String, i32)> {
        let claims = claims.iter().map(|c| (*c).to_owned()).collect();
        let pod = Pod { namespace: "team".into(), claims, ..Pod::default() };
        let fill = |ctx: &Ctx| {
            let c = &ctx.caches;
            c.dots.fill(self.dots);
            c.filesystems.fill(self.filesystems);
            c.replicas.fill(self.replicas);
            c.claims.fill(self.claims);
            c.volumes.fill(self.volumes);
            c.pools.fill(self.pools);
            c.nodes.fill(self.nodes);
        };
        let ask = |ctx: Arc<Ctx>| async move { terms(&pod, &ctx).into_iter().map(|t| (t.host, t.weight)).collect() };
        play(fill, vec![], ask).await
    }
}

fn want(list: &[(&str, i32)]) -> Vec<(String, i32)> {
    list.iter().map(|(h, w)| ((*h).to_owned(), *w)).collect()
}

#[tokio::test]
async fn the_owner_counts_more_than_a_copy_by_their_host_names() {
    assert_eq!(World::new().terms(&["data"]).await, want(&[("host-n1", 100), ("host-n2", 60)]));
}

#[tokio::test]
async fn what_is_not_there_or_not_ours_is_left_out() {
    assert_eq!(World::new().terms(&["other"]).await, []);
    let mut w = World::new();
    w.claims[0].spec.as_mut().unwrap().volume_name = None;
    assert_eq!(w.terms(&["data"]).await, [], "not bound yet");
    let mut w = World::new();
    w.volumes = vec![pv("pv-1", "ebs.csi.aws.com", FS)];
    assert_eq!(w.terms(&["data"]).await, []);
    let mut w = World::new();
    w.volumes = vec![pv("pv-1", DRIVER_NAME, "../x")];
    assert_eq!(w.terms(&["data"]).await, []);
    let mut w = World::new();
    w.filesystems[0].status = None;
    assert_eq!(w.terms(&["data"]).await, [], "nobody owns it");
    let mut w = World::new();
    w.filesystems[0].status.as_mut().unwrap().phase = FilesystemPhase::Headless;
    assert_eq!(w.terms(&["data"]).await, []);
}

#[tokio::test]
async fn a_copy_that_can_not_take_over_counts_nothing() {
    let only_owner = want(&[("host-n1", 100)]);
    let mut w = World::new();
    w.replicas[1].status.as_mut().unwrap().role = CopyRole::Creating;
    assert_eq!(w.terms(&["data"]).await, only_owner, "being made");
    let mut w = World::new();
    let status = w.replicas[1].status.as_mut().unwrap();
    (status.commit_count, status.bytes) = (0, 1 << 15);
    assert_eq!(w.terms(&["data"]).await, only_owner, "empty");
    let mut w = World::new();
    w.replicas[1].status.as_mut().unwrap().role = CopyRole::Receiving;
    assert_eq!(w.terms(&["data"]).await, want(&[("host-n1", 100), ("host-n2", 60)]), "taking in the next commit");
    let mut w = World::new();
    w.replicas[1].spec.desired.state = DesiredState::Absent;
    assert_eq!(w.terms(&["data"]).await, only_owner, "going");
    let mut w = World::new();
    w.pools[1].status.as_mut().unwrap().conditions[0].status = "False".into();
    assert_eq!(w.terms(&["data"]).await, only_owner, "its pool is down");
    let mut w = World::new();
    w.nodes.remove(1);
    assert_eq!(w.terms(&["data"]).await, only_owner, "its node is gone");
}

#[tokio::test]
async fn a_cordoned_owner_is_named_all_the_same() {
    let mut w = World::new();
    w.nodes[0].spec.get_or_insert_default().unschedulable = Some(true);
    assert_eq!(w.terms(&["data"]).await, want(&[("host-n1", 100), ("host-n2", 60)]), "the scheduler leaves it out, and scales the rest");
}

#[tokio::test]
async fn where_it_is_to_go_counts_as_the_owner() {
    let moved = want(&[("host-n2", 100), ("host-n1", 60)]);
    let mut w = World::new();
    w.dots[0].spec.placement = Some(dotgraft_api::Placement { node: Some("n2".into()), ..Default::default() });
    assert_eq!(w.terms(&["data"]).await, moved, "a person wants it there");
    let mut w = World::new();
    w.authority().pending = Some(Pending { to: place("n2"), ..Pending::default() });
    assert_eq!(w.terms(&["data"]).await, moved, "a handoff is under way");
    let mut w = World::new();
    w.filesystems[0].spec.published_to = vec![Publication { node: "n3".into(), read_only: false }];
    assert_eq!(w.terms(&["data"]).await, want(&[("host-n3", 100), ("host-n1", 60), ("host-n2", 60)]), "attached there, nothing copied yet");
    let mut w = World::new();
    w.dots[0].spec.placement = Some(dotgraft_api::Placement { node: Some("n3".into()), ..Default::default() });
    w.pools[2].spec.pool_group = "other".into();
    assert_eq!(w.terms(&["data"]).await, want(&[("host-n1", 100), ("host-n2", 60)]), "it can't go there");
}

#[tokio::test]
async fn to_read_a_commit_every_copy_is_as_good() {
    let mut w = World::new();
    w.volumes = vec![pv("pv-1", DRIVER_NAME, &format!("ro/{FS}"))];
    assert_eq!(w.terms(&["data"]).await, want(&[("host-n1", 100), ("host-n2", 100)]));
}

#[tokio::test]
async fn of_several_volumes_the_larger_one_counts_more() {
    let equal = World::new().with_second(1).terms(&["data", "more"]).await;
    assert_eq!(equal, want(&[("host-n1", 50), ("host-n3", 50), ("host-n2", 30)]));
    let large = World::new().with_second(99).terms(&["more", "data"]).await;
    assert_eq!(large, want(&[("host-n3", 99), ("host-n1", 1), ("host-n2", 1)]), "and none counts nothing");
}

#[tokio::test]
async fn a_claim_of_a_dot_counts_before_it_has_its_volume() {
    let mut w = World::new();
    let from: Value = json!({ "apiGroup": "dotgraft.dev", "kind": "Dot", "name": "db" });
    let spec = json!({ "accessModes": ["ReadWriteOnce"], "dataSourceRef": from });
    w.claims = vec![serde_json::from_value(json!({ "metadata": { "name": "data", "namespace": "team" }, "spec": spec })).unwrap()];
    w.volumes.clear();
    assert_eq!(w.terms(&["data"]).await, want(&[("host-n1", 100), ("host-n2", 60)]));
}

#[tokio::test]
async fn a_dot_of_that_name_that_was_restored_says_nothing_of_placement() {
    let mut w = World::new();
    w.dots[0].spec.fs_id = Some(FS2.into());
    w.dots[0].spec.placement = Some(dotgraft_api::Placement { node: Some("n2".into()), ..Default::default() });
    w.dots[0].metadata.deletion_timestamp = Some(Time(k8s_openapi::jiff::Timestamp::UNIX_EPOCH));
    assert_eq!(w.terms(&["data"]).await, want(&[("host-n1", 100), ("host-n2", 60)]));
}

#[test]
fn a_weight_is_one_to_a_hundred_whatever_the_sizes() {
    let volume = |bytes, w| Volume { bytes, hosts: [("a".to_owned(), w)].into() };
    let weights = |v: &[Volume]| combine(v).iter().map(|t| t.weight).collect::<Vec<_>>();
    assert_eq!(weights(&[volume(u64::MAX, 100), volume(u64::MAX, 100)]), [100]);
    assert_eq!(weights(&[volume(0, 60)]), [60]);
    let many: Vec<Volume> = (0..64).map(|i| Volume { bytes: 0, hosts: [(format!("h{i}"), 60)].into() }).collect();
    assert_eq!(combine(&many).len(), MAX_TERMS);
    assert!(combine(&many).iter().all(|t| t.weight == 1));
}
