//! What reaches the API server of a copy.

use std::sync::Arc;
use std::time::Duration;

use dotgraft_engine::filesystem::{Condition, Filesystem, Recovered, Trouble, Why};
use dotgraft_engine::model::{Place, Reason};
use serde_json::{Value, json};

use super::*;
use crate::cluster::fake::{Answer, Asked, client};

const FS: &str = "0198c2a5-7f00-7000-8000-000000000001";
const POOL: &str = "0198c2a5-7f00-7000-8000-000000000099";

/// `Absent` would tell the operator that a deletion is done, and a newer generation that the order was taken.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_object_of_a_closed_copy_keeps_what_was_known_of_it() {
    let spec = json!({"fsId": FS, "node": "n1", "pool": POOL, "desired": {"state": "Absent", "epoch": 9}});
    let status = json!({"role": "Owner", "epoch": 5, "phase": "Open", "bytes": 1, "limit": 2, "commitCount": 3, "observedGeneration": 1});
    let object = json!({"apiVersion": "dotgraft.dev/v1alpha1", "kind": "Replica", "spec": spec, "status": status,
        "metadata": {"name": format!("{FS}.{POOL}"), "uid": "u", "generation": 2}});
    let statuses: Arc<Mutex<Vec<Value>>> = Arc::default();
    let (seen, answer) = (statuses.clone(), object.clone());
    let client = client(move |asked: Asked| {
        seen.lock().unwrap().push(asked.body["status"].clone());
        Answer::Json(200, answer.clone())
    });
    let here = Here {
        place: Place { node: "n1".parse().unwrap(), pool: POOL.parse().unwrap() },
        boot: FS.parse().unwrap(),
        stream_version: 2,
        kernel_release: "6.18".into(),
    };
    let writer = StatusWriter::start(client.clone());
    let events = Events::start(client.clone(), &here.place.node);
    let api = ClusterApi::new(here.clone(), AuthorityClient::new(client), writer, events);
    let fs: FsId = FS.parse().unwrap();
    api.attach(fs, &serde_json::from_value::<Replica>(object).unwrap());
    let nothing = Filesystem::recover(fs, here, 0, Recovered::default()).status();
    let condition = Condition {
        r#type: Trouble::FormatNewer.into(),
        status: true,
        reason: Why::Problem(Reason::FormatNewer),
        message: "upgrade".into(),
    };
    api.publish_closed(&FilesystemStatus { conditions: vec![condition], ..nothing }, Timestamp(1));
    for _ in 0..500 {
        if !statuses.lock().unwrap().is_empty() {
            break;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let status = statuses.lock().unwrap().last().cloned().expect("a status was written");
    assert_eq!((&status["role"], &status["observedGeneration"], &status["commitCount"]), (&json!("Owner"), &json!(1), &json!(3)));
    assert!(status["conditions"].to_string().contains("FormatNewer"), "{status}");
}
