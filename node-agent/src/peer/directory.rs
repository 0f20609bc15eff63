//! Who the peers are: node → address and accepted certificate fingerprints, as `NodePool.spec` has them. The cluster
//! watcher writes it; TLS, the Peer service and the client read it. A node that is not in it is nobody (security.md,
//! "Certificates": that is how a certificate is revoked).

use std::collections::BTreeMap;
use std::fmt;
use std::net::SocketAddr;
use std::str::FromStr;
use std::sync::Arc;

use dotgraft_engine::ids::NodeName;
use tokio::sync::watch;

/// How many fingerprints of one node are looked at: the newest certificate and the one before it.
pub const MAX_FINGERPRINTS: usize = 2;

/// SHA-256 of a leaf certificate's DER; prints as lower-case hex.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Fingerprint([u8; 32]);

/// Why a text is not a fingerprint.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("a fingerprint is 64 lower-case hexadecimal digits")]
pub struct FingerprintError;

impl Fingerprint {
    /// Of a certificate's DER.
    pub fn of(der: &[u8]) -> Self {
        let mut out = [0_u8; 32];
        let digest = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, der);
        for (to, from) in out.iter_mut().zip(digest.as_ref()) {
            *to = *from;
        }
        Self(out)
    }
}

impl FromStr for Fingerprint {
    type Err = FingerprintError;
    fn from_str(s: &str) -> Result<Self, FingerprintError> {
        let nibble = |b: u8| match b {
            b'0'..=b'9' => Ok(b - b'0'),
            b'a'..=b'f' => Ok(b - b'a' + 10),
            _ => Err(FingerprintError),
        };
        let (pairs, rest) = s.as_bytes().as_chunks::<2>();
        if pairs.len() != 32 || !rest.is_empty() {
            return Err(FingerprintError);
        }
        let mut out = [0_u8; 32];
        for (to, [high, low]) in out.iter_mut().zip(pairs) {
            *to = nibble(*high)? << 4 | nibble(*low)?;
        }
        Ok(Self(out))
    }
}

impl fmt::Display for Fingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|b| write!(f, "{b:02x}"))
    }
}

impl fmt::Debug for Fingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// What is known of one peer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PeerInfo {
    /// Where its Peer service listens.
    pub address: SocketAddr,
    /// Certificates that are accepted as this node's, newest first; only the first [`MAX_FINGERPRINTS`] count.
    pub fingerprints: Vec<Fingerprint>,
}

type Peers = BTreeMap<NodeName, PeerInfo>;

/// All peers. A cheap clone; every clone sees every change.
#[derive(Debug, Clone)]
pub struct PeerDirectory {
    peers: Arc<watch::Sender<Peers>>,
}

/// Tells of changes since it was made. It never loses one, but may tell of several at once.
#[derive(Debug)]
pub struct DirectoryChanges(watch::Receiver<Peers>);

impl DirectoryChanges {
    /// Waits until the directory has changed since the last call. For ever, when nobody holds the directory any more.
    pub async fn next(&mut self) {
        if self.0.changed().await.is_err() {
            std::future::pending::<()>().await;
        }
    }
}

impl Default for PeerDirectory {
    fn default() -> Self {
        Self { peers: Arc::new(watch::Sender::new(Peers::new())) }
    }
}

impl PeerDirectory {
    /// Puts a node in or replaces what is known of it. The same again wakes nobody.
    pub fn update(&self, node: NodeName, info: PeerInfo) {
        self.peers.send_if_modified(|peers| {
            if peers.get(&node) == Some(&info) {
                return false;
            }
            peers.insert(node, info);
            true
        });
    }

    /// Forgets a node: its open streams are cut, new ones refused.
    pub fn remove(&self, node: &NodeName) {
        self.peers.send_if_modified(|peers| peers.remove(node).is_some());
    }

    /// Replaces everything, after a re-list.
    pub fn replace(&self, all: BTreeMap<NodeName, PeerInfo>) {
        self.peers.send_if_modified(|peers| {
            let changed = *peers != all;
            if changed {
                *peers = all;
            }
            changed
        });
    }

    /// What is known of a node.
    pub fn get(&self, node: &NodeName) -> Option<PeerInfo> {
        self.peers.borrow().get(node).cloned()
    }

    /// Whether that certificate is listed for that node now.
    pub fn allows(&self, node: &NodeName, fingerprint: Fingerprint) -> bool {
        let peers = self.peers.borrow();
        peers.get(node).is_some_and(|p| p.fingerprints.iter().take(MAX_FINGERPRINTS).any(|f| *f == fingerprint))
    }

    /// Notification of changes from now on.
    pub fn changed(&self) -> DirectoryChanges {
        DirectoryChanges(self.peers.subscribe())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn info(fingerprints: Vec<Fingerprint>) -> PeerInfo {
        PeerInfo { address: "127.0.0.1:1".parse().unwrap(), fingerprints }
    }

    #[test]
    fn a_fingerprint_has_one_spelling() {
        // SHA-256 of the empty string (FIPS 180-4 example).
        let text = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";
        assert_eq!(Fingerprint::of(b"").to_string(), text);
        assert_eq!(text.parse::<Fingerprint>().unwrap(), Fingerprint::of(b""));
        for bad in ["", &text[1..], &text.to_uppercase(), &format!("{text}00"), &format!("0x{}", &text[2..])] {
            assert!(bad.parse::<Fingerprint>().is_err(), "{bad}");
        }
    }

    #[test]
    fn only_listed_certificates_of_the_same_node_are_allowed() {
        let (a, b): (NodeName, NodeName) = ("a".parse().unwrap(), "b".parse().unwrap());
        let prints: Vec<_> = (0..3_u8).map(|i| Fingerprint::of(&[i])).collect();
        let dir = PeerDirectory::default();
        dir.update(a.clone(), info(prints.clone()));
        assert!(dir.allows(&a, prints[0]) && dir.allows(&a, prints[1]));
        assert!(!dir.allows(&a, prints[2]), "a third fingerprint is not looked at");
        assert!(!dir.allows(&b, prints[0]));
        dir.remove(&a);
        assert!(!dir.allows(&a, prints[0]));
    }

    #[tokio::test]
    async fn a_change_is_told_once_and_a_repetition_never() {
        let dir = PeerDirectory::default();
        let mut changes = dir.changed();
        let node: NodeName = "a".parse().unwrap();
        dir.update(node.clone(), info(vec![]));
        changes.next().await;
        dir.update(node, info(vec![]));
        let quiet = tokio::time::timeout(std::time::Duration::from_millis(20), changes.next()).await;
        assert!(quiet.is_err(), "an equal entry is no change");
    }
}
