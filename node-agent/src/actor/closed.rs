//! An actor whose rows can't be read: a newer program wrote them, they are damaged, or the journal fails. Its Filesystem is closed on this
//! node: nothing of it is started, changed or removed, everybody is told why, and the others go on. It opens once the rows can be read.
//!
//! One thing is done all the same: where authority says that another node owns it, the head is frozen ([`superseded`]). That is ioctls only and
//! needs no row; without it the pods of a closed owner would go on writing beside the new one.

use std::sync::Arc;
use std::time::Duration;

use dotgraft_engine::authority::verdict::{OwnerStanding, of_owner};
use dotgraft_engine::filesystem::{About, Condition, Event, FilesystemStatus, Note, Trouble, Why};
use dotgraft_engine::ids::{Epoch, FsId};
use dotgraft_engine::model::{Problem, Reason};
use tracing::{debug, error, warn};

use super::fs_actor::FsActor;
use super::handle::Request;
use super::node::Node;
use super::orders::Order;
use super::ports::Rows;
use super::tasks;
use crate::journal::Scope;

/// How long between two looks at the rows. An upgrade restarts the agent; what may pass without one is a failing disk.
const LOOK_EVERY: Duration = Duration::from_secs(10);
/// Longest that the API server is waited for.
const LOOK_LIMIT: Duration = Duration::from_secs(5);

impl FsActor {
    /// Stays closed until the rows should be looked at again. `false`: told to stop.
    pub(super) async fn stay_closed(&mut self, why: &Problem) -> bool {
        error!("this Filesystem stays closed: {why}");
        // Of a machine that has not read its journal nothing is known but that.
        let mut status = FilesystemStatus { conditions: conditions(why), ..self.machine.status() };
        self.say_closed(&status);
        let again = tokio::time::sleep(LOOK_EVERY);
        tokio::pin!(again);
        let mut freeze = Box::pin(freeze_if_superseded(self.node.clone(), self.machine.id()));
        let mut looked = false;
        loop {
            tokio::select! {
                biased;
                order = self.orders.next() => match order {
                    Order::Stop => return false,
                    Order::Desired(desired) => {
                        self.keep_in_mind(Event::Desired(desired), &status);
                        // It may say that another node owns it now.
                        freeze = Box::pin(freeze_if_superseded(self.node.clone(), self.machine.id()));
                        looked = false;
                    }
                    Order::Vanished => self.keep_in_mind(Event::Vanished, &status),
                    Order::PinOrigin(_, _, answer) => drop(answer.send(Err(why.clone()))), // whoever asked tries again
                    Order::StartsFrom(_, answer) => drop(answer.send(Err(why.clone()))), // it counts as a yes
                    Order::UnpinOrigin(by) => debug!(%by, "unpinned while closed: the pin stays until it is asked about"),
                    Order::PeerBack(_) => {}
                },
                Some(request) = self.requests.recv() => self.answer_closed(request, why).await,
                found = &mut freeze, if !looked => {
                    looked = true;
                    if let Some(elsewhere) = found {
                        status.conditions = conditions(why);
                        status.conditions.extend(elsewhere);
                        self.say_closed(&status);
                    }
                }
                () = &mut again => return true,
            }
        }
    }

    /// The machine remembers what is wanted until it can act on it. The object is told again: it may be a new one.
    fn keep_in_mind(&mut self, wanted: Event, status: &FilesystemStatus) {
        let step = self.machine.handle(wanted, &self.ctx());
        drop(self.machine.settle(step, Ok(())));
        self.say_closed(status);
    }

    /// A pod that ends must be able to, whatever the rows say (design §4); all else waits. Who wants a fence gets no proof of one, as that needs
    /// a row; the freeze has been tried by then.
    async fn answer_closed(&self, request: Request, why: &Problem) {
        if matches!(request, Request::Fence { .. }) {
            freeze_if_superseded(self.node.clone(), self.machine.id()).await;
        }
        let Request::Unmount { target, reply } = request else { return request.refuse(why.clone()) };
        let driver = self.node.driver.clone();
        let done = tokio::task::spawn_blocking(move || driver.unmount(target.as_path())).await;
        let done = match done {
            Ok(result) => result.map_err(|e| e.problem()),
            Err(e) => Err(Problem::new(Reason::Internal, format!("a driver call died: {e}"))),
        };
        let _ = reply.send(done); // a requester that has gone away needs no answer
    }

    fn say_closed(&self, status: &FilesystemStatus) {
        self.status.send_replace(Arc::new(status.clone()));
        self.node.publish_closed(status);
    }
}

/// Freezes the head where [`superseded`] says so. What can't be known or done now is tried again with the next look. Gives the condition that says
/// it, or that there is none to say; `None`: it can't be known.
async fn freeze_if_superseded(node: Arc<Node>, fs: FsId) -> Option<Option<Condition>> {
    let Some(owner) = superseded(&node, fs).await? else { return Some(None) };
    let driver = node.driver.clone();
    let before = tokio::task::spawn_blocking(move || driver.is_fenced(fs)).await;
    let Ok(Ok(before)) = before else {
        debug!("no head that could be frozen");
        return Some(None);
    };
    // Also if it looks frozen: what is nested in it may not be yet.
    let frozen = tasks::freeze(&node, fs).await;
    let (reason, message) = match &frozen {
        Ok(()) => (Reason::NotOwner, format!("{owner}: this copy, which is closed, is frozen and kept")),
        Err(problem) => (problem.reason, format!("{owner}, and this copy, which is closed, can't be frozen: {problem}")),
    };
    if frozen.is_err() || !before {
        warn!("{message}");
        node.tell(fs, &Note { warning: true, reason: "Superseded".to_owned(), message: message.clone() });
    }
    Some(Some(Condition { r#type: Trouble::Superseded.into(), status: true, reason: Why::Problem(reason), message }))
}

/// Another node owns it, in an epoch no earlier than this copy's own: says which, for people; `None`: it can't be known. By a quorum read, never by an
/// object of ours.
async fn superseded(node: &Node, fs: FsId) -> Option<Option<String>> {
    let read = tokio::time::timeout(LOOK_LIMIT, node.api.look(fs)).await.ok()?.ok()?;
    let Some(authority) = read.and_then(|read| read.authority) else { return Some(None) };
    let rows = node.journal.load(Scope::Fs(fs)).await.unwrap_or_default();
    let elsewhere = of_owner(&authority, node.place(), epoch_in(&rows)) == OwnerStanding::Elsewhere;
    Some(elsewhere.then(|| format!("node {} owns it in epoch {}", authority.owner.node, authority.epoch)))
}

/// The epoch that the rows name, as far as they can be read: of a newer row only this one word is taken. 0 where there is none.
fn epoch_in(rows: &Rows) -> Epoch {
    let base = rows.iter().find(|(key, _)| key == "base");
    let base = base.and_then(|(_, body)| serde_json::from_slice::<serde_json::Value>(body).ok());
    Epoch(base.and_then(|b| b.get("epoch")?.as_u64()).unwrap_or_default())
}

/// `Ready` first, as in every status.
fn conditions(why: &Problem) -> Vec<Condition> {
    let trouble = if why.reason == Reason::FormatNewer { Trouble::FormatNewer } else { Trouble::JournalUnreadable };
    let condition = |r#type, status, reason| Condition { r#type, status, reason, message: why.message.clone() };
    vec![condition(About::Ready, false, Why::Trouble(trouble)), condition(trouble.into(), true, Why::Problem(why.reason))]
}

#[cfg(test)]
#[path = "closed_tests.rs"]
mod tests;
