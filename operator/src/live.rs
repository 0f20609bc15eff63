//! What several controllers read from the API server itself, where a cache is not enough to decide about data.

use std::sync::Arc;

use dotgraft_api::Replica;
use kube::Api;
use kube::api::ListParams;

use crate::context::Ctx;
use crate::error::Error;

/// All Replicas of a Filesystem, as the API server has them now.
///
/// # Errors
///
/// The API server refuses or doesn't answer.
pub async fn replicas(fs_id: &str, ctx: &Ctx) -> Result<Vec<Arc<Replica>>, Error> {
    let replicas: Api<Replica> = Api::all(ctx.client.clone());
    let list = replicas.list(&ListParams::default().fields(&format!("spec.fsId={fs_id}"))).await?;
    Ok(list.items.into_iter().map(Arc::new).collect())
}
