//! The Replicas of this node: what the operator wants of it. The supervisor of the actors listens.

use dotgraft_api::Replica;
use dotgraft_engine::ids::NodeName;
use kube::Client;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;

use super::watch::{Change, Freshness, Watch};

/// `Synced`, `Changed(Arc<Replica>)` or `Gone(name)`. A vanished object is never an intent to delete (design §4).
pub type ReplicaEvent = Change<Replica>;

/// Events that wait for the supervisor before the watch itself waits.
const QUEUE: usize = 256;

/// Starts watching; ends when the receiver is dropped.
pub fn watch(client: Client, node: &NodeName) -> (mpsc::Receiver<ReplicaEvent>, Freshness, JoinHandle<()>) {
    let (out, events) = mpsc::channel(QUEUE);
    let (watch, fresh) = Watch::new(client, "Replicas", Some(format!("spec.node={node}")), out);
    (events, fresh, tokio::spawn(watch.run()))
}
