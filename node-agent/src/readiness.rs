//! Why the agent is not ready yet: what it waits for, by name, and checks that are asked each time.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

type Check = Box<dyn Fn() -> Option<String> + Send>;

/// A cheap clone.
#[derive(Clone, Default)]
pub struct Readiness(Arc<Inner>);

#[derive(Default)]
struct Inner {
    waits: Mutex<BTreeMap<&'static str, String>>,
    checks: Mutex<Vec<Check>>,
}

impl Readiness {
    /// The agent waits for something; said again, it replaces what was said.
    pub fn wait(&self, what: &'static str, why: &str) {
        self.0.waits.lock().unwrap_or_else(PoisonError::into_inner).insert(what, format!("{what}: {why}"));
    }
    /// It has it.
    pub fn done(&self, what: &'static str) {
        self.0.waits.lock().unwrap_or_else(PoisonError::into_inner).remove(what);
    }
    /// Asked at each probe; `Some`: why not.
    pub fn check(&self, check: impl Fn() -> Option<String> + Send + 'static) {
        self.0.checks.lock().unwrap_or_else(PoisonError::into_inner).push(Box::new(check));
    }
    /// All that stands in the way, a sentence each.
    pub fn troubles(&self) -> Vec<String> {
        let mut all: Vec<String> = self.0.waits.lock().unwrap_or_else(PoisonError::into_inner).values().cloned().collect();
        all.extend(self.0.checks.lock().unwrap_or_else(PoisonError::into_inner).iter().filter_map(|c| c()));
        all
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ready_means_nothing_is_waited_for_and_every_check_agrees() {
        let ready = Readiness::default();
        assert!(ready.troubles().is_empty());
        ready.wait("pool", "not there");
        ready.check(|| Some("replicas: stale".into()));
        assert_eq!(ready.troubles(), ["pool: not there", "replicas: stale"]);
        ready.done("pool");
        assert_eq!(ready.troubles(), ["replicas: stale"]);
    }
}
