//! An actor whose rows can't be read: a newer program wrote them, they are damaged, or the journal fails. Its Filesystem is closed on this
//! node: nothing of it is started, changed or removed, everybody is told why, and the others go on. It opens once the rows can be read.

use std::sync::Arc;
use std::time::Duration;

use dotgraft_engine::filesystem::{About, Condition, Event, FilesystemStatus, Trouble, Why};
use dotgraft_engine::model::{Problem, Reason};
use tracing::{debug, error};

use super::fs_actor::FsActor;
use super::handle::Request;
use super::orders::Order;

/// How long between two looks at the rows. An upgrade restarts the agent; what may pass without one is a failing disk.
const LOOK_EVERY: Duration = Duration::from_secs(10);

impl FsActor {
    /// Stays closed until the rows should be looked at again. `false`: told to stop.
    pub(super) async fn stay_closed(&mut self, why: &Problem) -> bool {
        error!("this Filesystem stays closed: {why}");
        // Of a machine that has not read its journal nothing is known but that.
        let status = FilesystemStatus { conditions: conditions(why), ..self.machine.status() };
        self.say_closed(&status);
        let again = tokio::time::sleep(LOOK_EVERY);
        tokio::pin!(again);
        loop {
            tokio::select! {
                biased;
                order = self.orders.next() => match order {
                    Order::Stop => return false,
                    Order::Desired(desired) => self.keep_in_mind(Event::Desired(desired), &status),
                    Order::Vanished => self.keep_in_mind(Event::Vanished, &status),
                    Order::PinOrigin(_, _, answer) => drop(answer.send(Err(why.clone()))), // whoever asked tries again
                    Order::StartsFrom(_, answer) => drop(answer.send(Err(why.clone()))), // it counts as a yes
                    Order::UnpinOrigin(by) => debug!(%by, "unpinned while closed: the pin stays until it is asked about"),
                    Order::PeerBack(_) => {}
                },
                Some(request) = self.requests.recv() => self.answer_closed(request, why).await,
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

    /// A pod that ends must be able to, whatever the rows say (design §4); all else waits.
    async fn answer_closed(&self, request: Request, why: &Problem) {
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

/// `Ready` first, as in every status.
fn conditions(why: &Problem) -> Vec<Condition> {
    let trouble = if why.reason == Reason::FormatNewer { Trouble::FormatNewer } else { Trouble::JournalUnreadable };
    let condition = |r#type, status, reason| Condition { r#type, status, reason, message: why.message.clone() };
    vec![condition(About::Ready, false, Why::Trouble(trouble)), condition(trouble.into(), true, Why::Problem(why.reason))]
}

#[cfg(test)]
#[path = "closed_tests.rs"]
mod tests;
