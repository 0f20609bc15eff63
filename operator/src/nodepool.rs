//! placeholder
use crate::context::Ctx;
use crate::error::Error;
use dotgraft_api::NodePool;
use kube::runtime::controller::Action;
use std::sync::Arc;
/// x
pub async fn reconcile(_: Arc<NodePool>, _: Arc<Ctx>) -> Result<Action, Error> {
    Ok(Action::await_change())
}
