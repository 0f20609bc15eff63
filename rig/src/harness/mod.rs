//! How end-to-end tests are written and run: a [`Case`] has an id, a title and a body; the body gets a [`Test`].
//!
//! Ids follow the rows of the design's table of failures (`1-push`: row 1, during a push); see [`ids`]. Cases share a
//! rig; each has a namespace and a scratch directory of its own, and is cleaned up after, which is itself checked.

pub mod figures;
pub mod ids;
pub mod runner;
pub mod test;
pub mod timeline;

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Result;
use futures::future::BoxFuture;

use crate::rig::Options;
pub use test::Test;

/// What a case needs to run.
#[derive(Clone, Debug)]
pub enum Needs {
    /// The API server with CRDs, rights and tokens; no program of ours runs beside it.
    Api,
    /// The shared rig: operator and two agents.
    Agents,
    /// The shared rig of three nodes that run pods, with operator and agents.
    Kubelets,
    /// A rig of its own.
    Own(Options),
}

type Body = Arc<dyn Fn(Arc<Test>) -> BoxFuture<'static, Result<()>> + Send + Sync>;

/// One test.
#[derive(Clone)]
pub struct Case {
    /// Unique; what filters match.
    pub id: String,
    /// What must happen, as a sentence.
    pub title: String,
    /// The rig it runs on.
    pub needs: Needs,
    /// It fails if it takes longer.
    pub timeout: Duration,
    /// A long measurement: runs only if a filter takes it.
    pub measures: bool,
    /// It needs the programs of the release before; skipped, by name, where they aren't.
    pub older: bool,
    body: Body,
}

impl Case {
    /// A case on the shared rig, with seven minutes: far more than any takes, also on a machine that does much else.
    pub fn new<F, Fut>(id: impl Into<String>, title: impl Into<String>, body: F) -> Self
    where
        F: Fn(Arc<Test>) -> Fut + Send + Sync + 'static,
        Fut: Future<Output = Result<()>> + Send + 'static,
    {
        let body: Body = Arc::new(move |t| Box::pin(body(t)));
        Self {
            id: id.into(),
            title: title.into(),
            needs: Needs::Agents,
            timeout: Duration::from_secs(420),
            measures: false,
            older: false,
            body,
        }
    }

    /// Needs only the API server.
    #[must_use]
    pub fn api(mut self) -> Self {
        self.needs = Needs::Api;
        self.timeout = Duration::from_secs(120);
        self
    }

    /// Needs pods: three nodes with kubelets.
    #[must_use]
    pub fn kubelets(mut self) -> Self {
        self.needs = Needs::Kubelets;
        self
    }

    /// Gets a rig of its own.
    #[must_use]
    pub fn own(mut self, options: Options) -> Self {
        self.needs = Needs::Own(options);
        self
    }

    /// A long measurement, for `make measure`: it runs only if it is asked for by its id.
    #[must_use]
    pub fn measures(mut self) -> Self {
        self.measures = true;
        self
    }

    /// Needs the programs of the release before (`DOTGRAFT_OLD_BIN_DIR`): skipped, by name, where they aren't at hand.
    #[must_use]
    pub fn older(mut self) -> Self {
        self.older = true;
        self
    }

    /// With another time limit.
    #[must_use]
    pub fn within(mut self, timeout: Duration) -> Self {
        self.timeout = timeout;
        self
    }

    /// The case's body on a rig.
    pub fn run(&self, test: Arc<Test>) -> BoxFuture<'static, Result<()>> {
        (self.body)(test)
    }
}
