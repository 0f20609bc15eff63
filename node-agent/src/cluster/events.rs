//! Events (events.k8s.io/v1) about our Replicas: a help for people, best effort. The same thing said again within a minute is
//! dropped here; what goes out is bounded; nothing waits for it.

use std::collections::BTreeMap;
use std::time::Duration;

use dotgraft_api::Replica;
use dotgraft_api::common::{MANAGER_AGENT, event_note};
use dotgraft_engine::ids::NodeName;
use k8s_openapi::api::core::v1::ObjectReference;
use kube::runtime::events::{Event, EventType, Recorder, Reporter};
use kube::{Client, Resource, ResourceExt};
use tokio::sync::mpsc;
use tokio::time::Instant;

use super::timed;

/// Events that wait; more are dropped.
const QUEUE: usize = 256;
/// The same (object, reason, text) is not said again for so long.
const QUIET: Duration = Duration::from_secs(60);
/// Things said that are remembered.
const REMEMBERED: usize = 1024;
/// Pause between two events, so that a bad day doesn't flood the API server.
const PACE: Duration = Duration::from_millis(100);

/// Says things. A cheap clone.
#[derive(Debug, Clone)]
pub struct Events(mpsc::Sender<Said>);

#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
struct Said {
    object: (String, String),
    warning: bool,
    reason: String,
    note: String,
}

impl Events {
    /// Starts the task that sends them; it ends when all clones are dropped.
    pub fn start(client: Client, node: &NodeName) -> Self {
        let (out, queue) = mpsc::channel(QUEUE);
        let reporter = Reporter { controller: format!("dotgraft.dev/{MANAGER_AGENT}"), instance: Some(node.to_string()) };
        tokio::spawn(send(Recorder::new(client, reporter), queue));
        Self(out)
    }

    /// Says `note` about `replica`. Never waits; may be dropped.
    pub fn say(&self, replica: &Replica, warning: bool, reason: &str, note: &str) {
        self.say_of(&replica.name_any(), &replica.uid().unwrap_or_default(), warning, reason, note);
    }

    /// The same by name and UID of the Replica.
    pub fn say_of(&self, name: &str, uid: &str, warning: bool, reason: &str, note: &str) {
        let note = event_note(note).to_owned();
        let _ =
            self.0.try_send(Said { object: (name.to_owned(), uid.to_owned()), warning, reason: reason.chars().take(128).collect(), note });
    }
}

/// What was said, and when.
#[derive(Debug, Default)]
struct Memory(BTreeMap<Said, Instant>);

impl Memory {
    /// Whether it is news at `now`; remembers it if so.
    fn is_news(&mut self, said: &Said, now: Instant) -> bool {
        if self.0.get(said).is_some_and(|at| now.duration_since(*at) < QUIET) {
            return false;
        }
        if self.0.len() >= REMEMBERED {
            self.0.retain(|_, at| now.duration_since(*at) < QUIET);
        }
        if self.0.len() >= REMEMBERED {
            return false;
        }
        self.0.insert(said.clone(), now);
        true
    }
}

async fn send(recorder: Recorder, mut queue: mpsc::Receiver<Said>) {
    let mut memory = Memory::default();
    while let Some(said) = queue.recv().await {
        if !memory.is_news(&said, Instant::now()) {
            continue;
        }
        let event = Event {
            type_: if said.warning { EventType::Warning } else { EventType::Normal },
            reason: said.reason,
            note: Some(said.note),
            action: "Reconcile".into(),
            secondary: None,
        };
        if let Err(e) = timed(recorder.publish(&event, &reference(&said.object))).await {
            tracing::debug!(error = %e, reason = event.reason, "an event was not recorded");
        }
        tokio::time::sleep(PACE).await;
    }
}

fn reference((name, uid): &(String, String)) -> ObjectReference {
    ObjectReference {
        api_version: Some(Replica::api_version(&()).into_owned()),
        kind: Some(Replica::kind(&()).into_owned()),
        name: Some(name.clone()),
        uid: Some(uid.clone()).filter(|u| !u.is_empty()),
        ..ObjectReference::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn said(n: usize) -> Said {
        Said { object: (n.to_string(), String::new()), warning: true, reason: "R".into(), note: "n".into() }
    }

    #[test]
    fn the_same_is_said_once_a_minute_and_memory_is_bounded() {
        let mut memory = Memory::default();
        let start = Instant::now();
        assert!(memory.is_news(&said(0), start));
        assert!(!memory.is_news(&said(0), start + QUIET / 2));
        assert!(memory.is_news(&said(0), start + QUIET));
        let news = (1..5000).filter(|n| memory.is_news(&said(*n), start + QUIET)).count();
        assert_eq!(news, REMEMBERED - 1);
        assert!(memory.is_news(&said(9999), start + QUIET * 3), "the old is forgotten");
    }

    #[tokio::test]
    async fn saying_never_waits_and_cuts_long_notes_at_a_character() {
        let (out, mut queue) = mpsc::channel(1);
        let events = Events(out);
        for _ in 0..10 {
            events.say_of("r", "", false, "Reason", &"ü".repeat(2000));
        }
        assert_eq!(queue.recv().await.unwrap().note, "ü".repeat(500));
        assert!(queue.try_recv().is_err(), "the rest was dropped");
    }
}
