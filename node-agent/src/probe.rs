//! Notices that a peer is back: while a run sleeps because its peer can't be reached, the peer's address is tried every two
//! seconds, and when it answers again after it did not, the sleep ends (replication.md §1). Costs nothing while no run sleeps so.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use dotgraft_engine::filesystem::FilesystemStatus;
use dotgraft_engine::ids::NodeName;
use dotgraft_engine::model::Reason;
use tokio::net::TcpStream;

use crate::actor::Node;

/// A peer that takes longer to accept a connection is not back.
const PATIENCE: Duration = Duration::from_secs(1);

/// Peers that did not answer.
#[derive(Debug, Clone, Default)]
pub struct Probe(Arc<Mutex<BTreeSet<NodeName>>>);

impl Probe {
    /// One look at all runs that sleep. Never waits.
    pub fn look(&self, node: &Arc<Node>, all: &[Arc<FilesystemStatus>]) {
        for peer in missed(all) {
            let Some(address) = node.peers.address(&peer) else { continue };
            let (probe, node) = (self.clone(), node.clone());
            tokio::spawn(async move {
                if probe.is_back(&peer, answers(address).await) {
                    node.peer_back(&peer);
                }
            });
        }
    }

    /// Only one that was away comes back: a peer that answers and refuses leaves the backoff as it is.
    fn is_back(&self, peer: &NodeName, answers: bool) -> bool {
        let mut away = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if answers {
            return away.remove(peer);
        }
        away.insert(peer.clone());
        false
    }
}

async fn answers(address: SocketAddr) -> bool {
    matches!(tokio::time::timeout(PATIENCE, TcpStream::connect(address)).await, Ok(Ok(_)))
}

/// Peers that a sleeping run could not reach.
fn missed(all: &[Arc<FilesystemStatus>]) -> BTreeSet<NodeName> {
    let jobs = all.iter().flat_map(|s| s.jobs.iter());
    jobs.filter(|j| {
        let report = j.report.as_ref().filter(|r| r.sleep_until.is_some());
        let reason = report.and_then(|r| r.problem.as_ref()).map(|p| p.reason);
        matches!(reason, Some(Reason::Unreachable | Reason::Timeout))
    })
    .filter_map(|j| j.row.peer.as_ref().map(|p| p.node.clone()))
    .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_peer_that_was_away_comes_back() {
        let (probe, peer) = (Probe::default(), "n2".parse::<NodeName>().unwrap());
        assert!(!probe.is_back(&peer, true), "it was never away");
        assert!(!probe.is_back(&peer, false));
        assert!(probe.is_back(&peer, true));
        assert!(!probe.is_back(&peer, true), "said once");
    }

    #[tokio::test]
    async fn a_closed_port_does_not_answer() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        assert!(answers(address).await);
        drop(listener);
        assert!(!answers(address).await);
    }
}
