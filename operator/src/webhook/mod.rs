//! The pod webhook: adds *preferred* node affinity for the nodes that have a pod's volumes, so that a restarted pod finds its data and
//! nothing moves (csi.md §1, "Locality").
//!
//! Every operator process serves it, leader or not, from the watched caches alone. It never denies: where it is not sure it answers
//! "allowed, unchanged", and where it is away the API server goes on without it (`failurePolicy: Ignore`). Its absence costs locality,
//! never a start.
//!
//! | File | |
//! |---|---|
//! | [`review`] | `AdmissionReview` in and out, the patch |
//! | [`prefer`] | which nodes, and how much |
//! | [`certificate`] | what it serves with |
//! | [`keep`] | Secret and `caBundle`: made, shared, renewed |
//! | [`server`] | TLS and HTTP |

pub mod certificate;
pub mod keep;
pub mod prefer;
pub mod review;
pub mod server;

use std::net::SocketAddr;
use std::sync::Arc;

use tokio::sync::watch;

use self::server::Served;
use crate::context::Ctx;

/// Serves the webhook and keeps what it needs, until the listener can't be made.
///
/// # Errors
///
/// The address can't be bound.
pub async fn serve(listen: SocketAddr, service: &str, ctx: Arc<Ctx>, leading: watch::Receiver<bool>) -> std::io::Result<()> {
    let served = Arc::new(Served::default());
    tokio::select! {
        done = server::serve(listen, served.clone(), ctx.clone()) => done,
        () = keep::keep(service, &served, &ctx, leading) => Ok(()),
    }
}
