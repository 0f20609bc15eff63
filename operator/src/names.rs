//! Names on which operator, agents and CLI agree: finalizers, labels, annotations, object names.
//!
//! Every controller of this crate takes its names from here; the agent repeats the few it needs.

use aws_lc_rs::digest;

pub use dotgraft_api::common::{
    ANNOTATION_PEER_PORT as PEER_PORT_ANNOTATION, FINALIZER_CLAIM as CLAIM_FINALIZER, FINALIZER_COMMIT as COMMIT_FINALIZER,
    FINALIZER_FILESYSTEM as FILESYSTEM_FINALIZER, FINALIZER_JOB as JOB_FINALIZER, FINALIZER_REPLICA as REPLICA_FINALIZER,
    LABEL_FS_ID as FS_LABEL, LABEL_NODE as NODE_LABEL, LABEL_OWNED_BY as OWNED_BY_LABEL, LABEL_POOL_GROUP as POOL_GROUP_LABEL,
    MANAGER_OPERATOR as FIELD_MANAGER, SIGNER_NAME as SIGNER,
};

/// On Filesystem: [`claim_hash`] of its claim, so that "is there data of that name" is one cheap live list.
pub const CLAIM_LABEL: &str = "dotgraft.dev/claim";
/// On Replica: `true` when no job keeps this copy up to date any more.
pub const UNMANAGED_LABEL: &str = "dotgraft.dev/unmanaged";
/// On Replica: `true` when Dotgraft made this copy for itself, and no job of a user's has had it since.
pub const OURS_LABEL: &str = "dotgraft.dev/automatic";
/// On Replica with [`OURS_LABEL`]: since when nothing needs it (RFC 3339).
pub const SPARE_ANNOTATION: &str = "dotgraft.dev/spare-since";
/// On Dot and Branch: `<uid>` of the object for which `spec.fsId` was allocated. A restored object has
/// another UID, so it never gets a new empty Filesystem (design §2).
pub const ALLOCATED_ANNOTATION: &str = "dotgraft.dev/allocated-for";
/// On Commits that were made to clone from, and go when the clone is there.
pub const TRANSIENT_LABEL: &str = "dotgraft.dev/transient";
/// On Commits that CSI made: on how many nodes they must be durable to be ready, where that is more than one.
pub const SNAPSHOT_COPIES_ANNOTATION: &str = "dotgraft.dev/csi-snapshot-copies";
/// On Commits that an operation has made: the name of the `DotOperation`. One is taken only as that says.
pub const OPERATION_ANNOTATION: &str = "dotgraft.dev/operation";
/// On `NodePool`: UID of the last certificate request that was signed for it.
pub const LAST_CSR_ANNOTATION: &str = "dotgraft.dev/last-csr";

/// On a Dot that CSI has made: nobody has had it yet, so it goes with the PVC that it was made for ([`crate::claim::forsaken`]).
pub const AWAITED_ANNOTATION: &str = "dotgraft.dev/csi-awaited";

/// Lower-case hex SHA-256.
pub fn sha256_hex(data: &[u8]) -> String {
    use std::fmt::Write as _;
    let digest = digest::digest(&digest::SHA256, data);
    digest.as_ref().iter().fold(String::with_capacity(64), |mut s, b| {
        let _ = write!(s, "{b:02x}");
        s
    })
}

/// A label value (32 hex characters) that stands for a claim; names can be longer than labels.
pub fn claim_hash(kind: &str, namespace: &str, name: &str) -> String {
    let mut hex = sha256_hex(format!("{kind}/{namespace}/{name}").as_bytes());
    hex.truncate(32);
    hex
}

/// Name of the Dot of a PVC whose own name is taken, or that is another's: nobody else has the one of that CSI call.
pub fn dot_of_call(pvc: &str, call: &str) -> String {
    let mut hash = sha256_hex(call.as_bytes());
    hash.truncate(16);
    let stem: String = pvc.chars().take(200).collect();
    format!("{}-{hash}", stem.trim_end_matches(['.', '-']))
}

/// Name of the Replica of a Filesystem in a pool: `<fsId>.<pool UUID>`.
pub fn replica_name(fs_id: &str, pool: &str) -> String {
    format!("{fs_id}.{pool}")
}

/// Name of the job that keeps the copy of a claim on a node, stable and at most 253 bytes.
pub fn placement_job_name(kind: &str, claim: &str, node: &str) -> String {
    let mut hash = sha256_hex(format!("{kind}/{claim}/{node}").as_bytes());
    hash.truncate(8);
    let stem: String = claim.chars().take(200).collect();
    format!("{}-replica-{hash}", stem.trim_end_matches(['.', '-']))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sha256_is_the_known_one() {
        assert_eq!(sha256_hex(b"abc"), "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
    }

    #[test]
    fn a_claim_label_fits_and_tells_claims_apart() {
        let dot = claim_hash("Dot", "a", "b");
        assert_eq!(dot.len(), 32);
        assert_ne!(dot, claim_hash("Branch", "a", "b"));
        assert_ne!(claim_hash("Dot", "a", "b/c"), claim_hash("Dot", "a/b", "d"));
    }

    #[test]
    fn a_placement_job_name_is_bounded() {
        let name = placement_job_name("Dot", &"x.".repeat(126), "n1");
        assert!(name.len() <= 253 && !name.contains("..") && !name.contains(".-"), "{name}");
        assert_ne!(placement_job_name("Dot", "a", "n1"), placement_job_name("Dot", "a", "n2"));
    }
}
