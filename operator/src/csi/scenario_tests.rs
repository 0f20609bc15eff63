//! Calls against a scripted API server: what each reads, writes, and leaves alone.

use dotgraft_api::common::{ANNOTATION_CSI_NAME, ANNOTATION_INITIAL_NODE, DRIVER_NAME, TOPOLOGY_NODE};
use dotgraft_api::{Authority, Dot, Filesystem, FilesystemPhase, Place, Publication};
use dotgraft_proto::csi::v1 as wire;
use serde_json::json;
use tonic::Code;
use wire::volume_capability::access_mode::Mode;

use super::capability::tests::mount;
use super::error::CsiError;
use super::params::Parameters;
use super::{create, delete, list, modify, publish};
use crate::context::Ctx;
use crate::pools::tests::pool_id;
use crate::testing::scenario::{self, Call, call, conflict, missing, play};
use crate::testing::{FS, dot, filesystem, namespace, node_pool, pv, with_pools};

const NAME: &str = "pvc-1";

fn request() -> wire::CreateVolumeRequest {
    let pair = |k: &str, v: &str| (k.to_owned(), v.to_owned());
    wire::CreateVolumeRequest {
        name: NAME.into(),
        capacity_range: Some(wire::CapacityRange { required_bytes: 1 << 30, limit_bytes: 0 }),
        volume_capabilities: vec![mount(Mode::SingleNodeWriter)],
        parameters: [pair("csi.storage.k8s.io/pvc/name", "db"), pair("csi.storage.k8s.io/pvc/namespace", "team")].into(),
        accessibility_requirements: Some(wire::TopologyRequirement {
            requisite: vec![],
            preferred: vec![wire::Topology { segments: [pair(TOPOLOGY_NODE, "n1")].into() }],
        }),
        ..wire::CreateVolumeRequest::default()
    }
}
/// The Dot that a call has made.
fn made() -> Dot {
    let mut d = dot();
    let fixed = Parameters::read(&request().parameters, &request().mutable_parameters).unwrap().fixed(None);
    let notes = d.metadata.annotations.get_or_insert_default();
    notes.insert(ANNOTATION_CSI_NAME.into(), NAME.into());
    notes.insert("dotgraft.dev/csi-parameters".into(), fixed);
    d
}
fn active() -> Filesystem {
    let owner = Place { node: "n1".into(), pool: pool_id("n1") };
    filesystem(Some(FilesystemPhase::Active), Some(Authority { owner, epoch: 1, ..Authority::default() }))
}
fn published(nodes: &[(&str, bool)]) -> Filesystem {
    let mut fs = active();
    fs.spec.published_to = nodes.iter().map(|(n, r)| Publication { node: (*n).into(), read_only: *r }).collect();
    fs
}
fn seen(dots: Vec<Dot>, fs: Filesystem) -> impl FnOnce(&Ctx) {
    move |ctx| {
        with_pools(ctx, &["n1", "n2"]);
        ctx.caches.dots.fill(dots);
        ctx.caches.filesystems.fill([fs]);
    }
}
async fn create_with(script: Vec<Call>) -> Result<wire::Volume, CsiError> {
    play(seen(vec![made()], active()), script, |ctx| async move { create::create(&request(), &ctx).await }).await
}

#[tokio::test]
async fn a_new_volume_is_a_dot_with_the_name_of_its_claim() {
    let script = vec![
        missing("GET", "/namespaces/team/dots/db-"),
        missing("GET", "/namespaces/team/dots/db"),
        call("GET", "/filesystems?&labelSelector=dotgraft.dev%2Fclaim%3D", scenario::list::<Filesystem>(&[], "Filesystem")),
        call("POST", "/namespaces/team/dots", made()).with(|b| {
            assert_eq!(b["metadata"]["name"], "db");
            assert_eq!(b["metadata"]["annotations"][ANNOTATION_CSI_NAME], NAME);
            assert_eq!(b["metadata"]["annotations"][ANNOTATION_INITIAL_NODE], "n1");
            assert_eq!(b["spec"]["capacity"], "1Gi");
        }),
    ];
    let volume = create_with(script).await.unwrap();
    assert_eq!((volume.volume_id.as_str(), volume.capacity_bytes), (FS, 1 << 30));
    assert_eq!(volume.accessible_topology.len(), 1);
}

#[tokio::test]
async fn a_call_that_is_repeated_finds_what_it_made() {
    let script = vec![missing("GET", "/dots/db-"), call("GET", "/dots/db", made())];
    assert_eq!(create_with(script).await.unwrap().volume_id, FS);
}

#[tokio::test]
async fn a_dot_that_a_user_made_is_neither_taken_nor_deleted() {
    let script = vec![missing("GET", "/dots/db-"), call("GET", "/dots/db", dot())];
    assert_eq!(create_with(script).await.unwrap_err().code(), Code::AlreadyExists);
    let script = vec![call("GET", format!("/filesystems/{FS}"), active()), call("GET", "/dots/db", dot())];
    play(seen(vec![dot()], active()), script, |ctx| async move { delete::delete(FS, &ctx).await }).await.unwrap();
}

#[tokio::test]
async fn where_an_earlier_volume_has_the_name_a_new_one_gets_its_own() {
    let mut earlier = made();
    earlier.metadata.annotations.get_or_insert_default().insert(ANNOTATION_CSI_NAME.into(), "pvc-0".into());
    let script = vec![
        missing("GET", "/dots/db-"),
        call("GET", "/dots/db", earlier),
        call("POST", "/dots", made()).with(|b| assert!(b["metadata"]["name"].as_str().unwrap().starts_with("db-"))),
    ];
    create_with(script).await.unwrap();
}

#[tokio::test]
async fn the_same_name_with_another_size_is_refused() {
    let script = || vec![missing("GET", "/dots/db-"), call("GET", "/dots/db", made())];
    let asks = |required, limit| {
        let capacity_range = Some(wire::CapacityRange { required_bytes: required, limit_bytes: limit });
        let larger = wire::CreateVolumeRequest { capacity_range, ..request() };
        play(seen(vec![made()], active()), script(), |ctx| async move { create::create(&larger, &ctx).await })
    };
    assert_eq!(asks(2 << 30, 0).await.unwrap_err().code(), Code::AlreadyExists);
    assert_eq!(asks(0, 1 << 29).await.unwrap_err().code(), Code::AlreadyExists);
    assert!(asks(1 << 29, 0).await.is_ok());
}

#[tokio::test]
async fn a_published_volume_is_not_deleted_and_what_is_not_there_is() {
    let script = vec![call("GET", format!("/filesystems/{FS}"), published(&[("n1", false)])), call("GET", "/dots/db", made())];
    let result = play(seen(vec![made()], active()), script, |ctx| async move { delete::delete(FS, &ctx).await }).await;
    assert_eq!(result.unwrap_err().code(), Code::FailedPrecondition);
    for id in ["nonsense", &format!("ro/{FS}")] {
        play(|_| {}, vec![], |ctx| async move { delete::delete(id, &ctx).await }).await.unwrap();
    }
    play(|_| {}, vec![missing("GET", format!("/filesystems/{FS}"))], |ctx| async move { delete::delete(FS, &ctx).await }).await.unwrap();
}

#[tokio::test]
async fn what_only_its_pv_kept_goes_once_that_says_so() {
    let released = || filesystem(Some(FilesystemPhase::Released), active().status.unwrap().authority);
    let (fs, no_dot) = (format!("/filesystems/{FS}"), || missing("GET", "/dots/db"));
    let volume = |reclaim: &str| {
        let mut pv = pv(NAME, DRIVER_NAME, FS);
        pv.spec.as_mut().unwrap().persistent_volume_reclaim_policy = Some(reclaim.into());
        pv
    };
    let go = |fs: Filesystem, says: &'static str, script: Vec<Call>| {
        let seen = move |ctx: &Ctx| {
            ctx.caches.filesystems.fill([fs]);
            ctx.caches.volumes.fill([volume("Retain")]);
        };
        let mut all = script;
        if !says.is_empty() {
            all.insert(2, call("GET", format!("/persistentvolumes/{NAME}"), volume(says)));
        }
        play(seen, all, |ctx| async move { delete::delete(FS, &ctx).await })
    };
    let reads = |f: Filesystem| vec![call("GET", &fs, f), no_dot()];
    let gone = || call("DELETE", &fs, released());
    go(released(), "Delete", reads(released()).into_iter().chain([gone()]).collect()).await.unwrap();
    go(released(), "Retain", reads(released())).await.unwrap();
    let mut by_policy = released();
    by_policy.spec.reclaim_policy = dotgraft_api::ReclaimPolicy::Retain;
    go(by_policy.clone(), "", reads(by_policy)).await.unwrap();
    go(active(), "", reads(active())).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn who_reads_holds_the_dot_itself_not_the_call() {
    let fs = format!("/filesystems/{FS}");
    let script = vec![call("GET", fs, published(&[("n1", true)])), call("GET", "/dots/db", made()), call("DELETE", "/dots/db", made())];
    let result = play(seen(vec![made()], active()), script, |ctx| async move { delete::delete(FS, &ctx).await }).await;
    assert_eq!(result.unwrap_err().code(), Code::Aborted, "it is on its way");
}

fn publication(node: &str) -> wire::ControllerPublishVolumeRequest {
    wire::ControllerPublishVolumeRequest {
        volume_id: FS.into(),
        node_id: node.into(),
        volume_capability: Some(mount(Mode::SingleNodeWriter)),
        ..wire::ControllerPublishVolumeRequest::default()
    }
}

#[tokio::test]
async fn publish_writes_the_node_guarded_and_again_after_a_conflict() {
    let fs = format!("/filesystems/{FS}");
    let script = vec![
        call("GET", &fs, active()),
        call("GET", "/dots/db", made()),
        call("GET", "/nodepools/n1", node_pool("n1").0),
        conflict("PATCH", &fs),
        call("GET", &fs, published(&[("n2", true)])),
        call("GET", "/dots/db", made()),
        call("PATCH", &fs, active()).with(|b| {
            assert_eq!(b["metadata"]["resourceVersion"], "1");
            assert_eq!(b["spec"]["publishedTo"], json!([{"node": "n2", "readOnly": true}, {"node": "n1", "readOnly": false}]));
        }),
    ];
    let fill = seen(vec![made()], published(&[("n1", false)]));
    play(fill, script, |ctx| async move { publish::publish(&publication("n1"), 500, &ctx).await }).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn expand_writes_the_size_guarded_and_again_after_a_conflict() {
    let bigger = |version: &str| {
        let mut d = made();
        d.metadata.resource_version = Some(version.into());
        d
    };
    let script = vec![
        call("GET", format!("/filesystems/{FS}"), active()),
        call("GET", "/dots/db", bigger("1")),
        call("GET", "/dots/db", bigger("1")),
        conflict("PATCH", "/dots/db"),
        call("GET", "/dots/db", bigger("2")),
        call("PATCH", "/dots/db", bigger("3")).with(|b| {
            assert_eq!((&b["metadata"]["resourceVersion"], &b["spec"]["capacity"]), (&json!("2"), &json!("2Gi")));
        }),
    ];
    let request = wire::ControllerExpandVolumeRequest {
        volume_id: FS.into(),
        capacity_range: Some(wire::CapacityRange { required_bytes: 2 << 30, limit_bytes: 0 }),
        ..wire::ControllerExpandVolumeRequest::default()
    };
    let done = play(seen(vec![made()], active()), script, |ctx| async move { modify::expand(&request, &ctx).await }).await.unwrap();
    assert_eq!((done.bytes, done.done), (2 << 30, false), "no agent has raised its limit");
}

#[tokio::test]
async fn what_no_pool_could_ever_hold_is_made_nowhere_and_no_volume_grows_to_it() {
    let range = || Some(wire::CapacityRange { required_bytes: 1 << 40, limit_bytes: 0 });
    let found = vec![
        missing("GET", "/namespaces/team/dots/db-"),
        missing("GET", "/namespaces/team/dots/db"),
        call("GET", "/filesystems?&labelSelector=dotgraft.dev%2Fclaim%3D", scenario::list::<Filesystem>(&[], "Filesystem")),
    ];
    let large = wire::CreateVolumeRequest { capacity_range: range(), ..request() };
    let made_none = play(seen(vec![], active()), found, |ctx| async move { create::create(&large, &ctx).await });
    assert_eq!(made_none.await.unwrap_err().code(), Code::ResourceExhausted);
    let larger = wire::ControllerExpandVolumeRequest { volume_id: FS.into(), capacity_range: range(), ..Default::default() };
    let script = vec![call("GET", format!("/filesystems/{FS}"), active()), call("GET", "/dots/db", made())];
    let stays = play(seen(vec![made()], active()), script, |ctx| async move { modify::expand(&larger, &ctx).await });
    assert_eq!(stays.await.unwrap_err().code(), Code::ResourceExhausted);
}

#[tokio::test]
async fn no_volume_grows_beyond_what_its_namespace_may_take() {
    let grow = |limit: &'static str| {
        let range = Some(wire::CapacityRange { required_bytes: 2 << 30, limit_bytes: 0 });
        let request = wire::ControllerExpandVolumeRequest { volume_id: FS.into(), capacity_range: range, ..Default::default() };
        let fill = move |ctx: &Ctx| {
            seen(vec![made()], active())(ctx);
            let mut team = namespace();
            team.metadata.annotations = Some([("dotgraft.dev/capacity-limit".to_owned(), limit.to_owned())].into());
            ctx.caches.namespaces.fill([team]);
        };
        let mut script = vec![call("GET", format!("/filesystems/{FS}"), active()), call("GET", "/dots/db", made())];
        if limit == "4Gi" {
            script.push(call("GET", "/dots/db", made()));
            script.push(call("PATCH", "/dots/db", made()));
        }
        play(fill, script, |ctx| async move { modify::expand(&request, &ctx).await.map(|e| e.bytes) })
    };
    assert_eq!(grow("4Gi").await.unwrap(), 2 << 30, "with as much for history");
    let refused = grow("4095Mi").await.unwrap_err();
    assert_eq!(refused.code(), Code::ResourceExhausted);
    assert!(refused.to_string().contains("capacity-limit"), "{refused}");
}

/// The snapshot that a view is of, when its volume is gone.
fn headless() -> Filesystem {
    let mut fs = active();
    fs.status.as_mut().unwrap().phase = FilesystemPhase::Headless;
    fs
}

#[tokio::test]
async fn a_view_outlives_the_volume_and_is_read_where_the_snapshot_is() {
    let view = format!("ro/{FS}@{FS}/000000000000000a");
    let publish = |handle: String, fs: Filesystem, script| {
        let fill = seen(vec![], fs);
        let request = wire::ControllerPublishVolumeRequest { volume_id: handle, readonly: true, ..publication("n1") };
        play(fill, script, move |ctx| async move { publish::publish(&request, 500, &ctx).await.unwrap_err() })
    };
    let gone = |fs: &Filesystem| vec![call("GET", format!("/filesystems/{FS}"), fs), missing("GET", "/dots/db")];
    let mut script = gone(&headless());
    script.push(call("GET", format!("/filesystems/{FS}"), headless()));
    script.push(call("GET", "/nodepools/n1", node_pool("n1").0));
    let refused = publish(view.clone(), headless(), script).await;
    assert_eq!(refused.code(), Code::FailedPrecondition, "no copy is made for what has no volume");
    assert!(refused.to_string().contains("snapshot is gone"), "{refused}");
    let refused = publish(format!("ro/{FS}@{FS}"), headless(), gone(&headless())).await;
    assert_eq!(refused.code(), Code::NotFound, "what an administrator made for a volume goes with it");
    let mut ends = headless();
    ends.status.as_mut().unwrap().phase = FilesystemPhase::Deleting;
    let mut script = gone(&ends);
    script.push(call("GET", format!("/filesystems/{FS}"), &ends));
    assert_eq!(publish(view.clone(), ends, script).await.code(), Code::NotFound);
    let modified = play(|_| {}, vec![], |ctx| async move { modify::modify(&view, &std::collections::HashMap::new(), &ctx).await });
    assert_eq!(modified.await.unwrap_err().code(), Code::InvalidArgument, "a reader changes nothing of it");
}

#[tokio::test]
async fn publish_to_an_unknown_node_or_over_the_limit_writes_nothing() {
    let fs = format!("/filesystems/{FS}");
    let script = vec![call("GET", &fs, active()), call("GET", "/dots/db", made()), missing("GET", "/nodepools/n9")];
    let go = |node: &'static str, limit, script| {
        let fill = seen(vec![made()], published(&[("n1", false)]));
        play(fill, script, move |ctx| async move { publish::publish(&publication(node), limit, &ctx).await.unwrap_err().code() })
    };
    assert_eq!(go("n9", 500, script).await, Code::NotFound);
    let script = vec![call("GET", &fs, active()), call("GET", "/dots/db", made()), call("GET", "/nodepools/n1", node_pool("n1").0)];
    assert_eq!(go("n1", 1, script).await, Code::ResourceExhausted);
}

#[tokio::test]
async fn unpublish_of_the_unknown_is_success_and_waits_for_no_node() {
    let go = |volume: &str, script| {
        let request = wire::ControllerUnpublishVolumeRequest { volume_id: volume.into(), node_id: "n1".into(), ..Default::default() };
        play(seen(vec![], active()), script, |ctx| async move { publish::unpublish(&request, &ctx).await })
    };
    let fs = format!("/filesystems/{FS}");
    go("nonsense", vec![]).await.unwrap();
    go(FS, vec![missing("GET", &fs)]).await.unwrap();
    go(FS, vec![call("GET", &fs, published(&[("n2", false)]))]).await.unwrap();
    let gone = call("PATCH", &fs, active()).with(|b| assert_eq!(b["spec"]["publishedTo"], json!([])));
    go(FS, vec![call("GET", &fs, published(&[("n1", false)])), gone]).await.unwrap();
}

#[tokio::test]
async fn a_volume_is_listed_by_its_own_handle_and_by_each_that_is_only_to_read() {
    let (newest, commit) = (format!("ro/{FS}"), format!("ro/{FS}@{FS}"));
    let fill = {
        let volumes = vec![
            pv("head", DRIVER_NAME, FS),
            pv("newest", DRIVER_NAME, &newest),
            pv("newest-again", DRIVER_NAME, &newest),
            pv("commit", DRIVER_NAME, &commit),
            pv("foreign", "ebs.csi.aws.com", &newest),
        ];
        move |ctx: &Ctx| {
            seen(vec![made()], published(&[("n1", false), ("n2", true)]))(ctx);
            ctx.caches.volumes.fill(volumes);
        }
    };
    let ask = |ctx: std::sync::Arc<Ctx>| async move {
        let page = |token: String| list::volumes(&wire::ListVolumesRequest { max_entries: 2, starting_token: token }, &ctx).unwrap();
        let first = page(String::new());
        let second = page(first.next_token.clone());
        assert_eq!(second.next_token, "", "the last page");
        first.entries.into_iter().chain(second.entries).collect::<Vec<_>>()
    };
    let entries = play(fill, vec![], ask).await;
    let handles: Vec<&str> = entries.iter().filter_map(|e| e.volume.as_ref()).map(|v| v.volume_id.as_str()).collect();
    assert_eq!(handles, [FS, &newest, &commit]);
    assert!(entries.iter().filter_map(|e| e.status.as_ref()).all(|s| s.published_node_ids == ["n1", "n2"]));
}
