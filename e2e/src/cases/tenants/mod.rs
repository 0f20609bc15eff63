//! What one tenant reaches of another's volumes (security.md, "Tenants"): nothing, whatever it writes into its own objects. Each acts by the
//! real token of a `ServiceAccount` that has `edit` in its own namespace.

mod anew;
mod foreign;
mod forged;
mod limits;
mod matrix;

use crate::harness::Case;

/// All cases.
pub fn cases() -> Vec<Case> {
    vec![
        Case::new(
            "tenants-foreign-id",
            "a Dot with another tenant's fsId is a way into nothing: volumes, Branches, Commits, reset, promote, move and push jobs get and \
             say nothing of it, and hold nothing up",
            foreign::id,
        ),
        Case::new(
            "tenants-forged-status",
            "another tenant's ids in the status and annotations of Commits: nothing starts from it, nothing goes with it, nothing is kept for it",
            forged::status,
        ),
        Case::new(
            "tenants-pvc-limits",
            "capacity, historyLimit and replicas of a PVC's Dot are refused to a tenant, whatever its role in the namespace; the PVC is resized",
            limits::of_pvc,
        ),
        Case::new(
            "tenants-namespace-limit",
            "what a namespace's volumes take with all copies stays below its annotation: Dots at once, Branch, size, history, replica, job",
            limits::of_namespace,
        ),
        Case::new(
            "tenants-matrix",
            "each kind and verb, and each way to name a thing, from one tenant to what is another's or our programs' alone",
            matrix::matrix,
        ),
        Case::new(
            "tenants-namespace-anew",
            "what a namespace left goes to nobody when it is made anew, until an administrator says so; then it is all there",
            anew::namespace,
        ),
    ]
}
