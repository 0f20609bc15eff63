//! Gets and renews the agent's certificate by `CertificateSigningRequest` (security.md, "Certificates"). The operator
//! approves and signs; while it is away the agent waits and goes on with what it has. Volumes mount without any of it.

use std::net::SocketAddr;
use std::time::Duration;

use k8s_openapi::ByteString;
use k8s_openapi::api::certificates::v1::{CertificateSigningRequest, CertificateSigningRequestSpec};
use kube::api::{Api, ObjectMeta, PostParams};
use tokio_util::sync::CancellationToken;

use super::identity::{Identity, IdentityError, IdentityStore, Pending};
use super::status::cut;
use super::unix_now;

/// Who signs.
pub const SIGNER: &str = "dotgraft.dev/agent";
/// Annotation that tells the operator the port of our Peer service.
pub const PORT_ANNOTATION: &str = "dotgraft.dev/peer-port";
/// Asked for, seconds; the signer decides.
const LIFETIME_SECONDS: i32 = 7 * 24 * 3600;
/// A chain larger than that is not looked at, bytes.
const MAX_CHAIN: usize = 64 << 10;

/// How long to wait for what.
#[derive(Debug, Clone, Copy)]
pub struct RenewSettings {
    /// First pause between looks at a request; doubles up to `poll_max`.
    pub poll_min: Duration,
    /// Longest pause between looks.
    pub poll_max: Duration,
    /// One round of waiting for an answer; the same request is waited for in the next round.
    pub patience: Duration,
    /// First pause after a failure; doubles up to `backoff_max`.
    pub backoff_min: Duration,
    /// Longest pause after failures.
    pub backoff_max: Duration,
    /// Longest sleep before the clock is looked at again.
    pub clock_check: Duration,
    /// One call to the API server.
    pub call_timeout: Duration,
}

impl Default for RenewSettings {
    fn default() -> Self {
        Self {
            poll_min: Duration::from_millis(250),
            poll_max: Duration::from_secs(5),
            patience: Duration::from_secs(300),
            backoff_min: Duration::from_secs(1),
            backoff_max: Duration::from_secs(60),
            clock_check: Duration::from_secs(600),
            call_timeout: Duration::from_secs(20),
        }
    }
}

/// Why there is no (new) certificate yet. All of it is tried again.
#[derive(Debug, thiserror::Error)]
pub enum CsrError {
    /// `--listen` has no address that could stand in a certificate.
    #[error("--listen {0} is no address that peers can reach: give the node's own IP")]
    Unspecified(SocketAddr),
    /// The API server refused or was not reached.
    #[error("{what}: {source}")]
    Api {
        /// What was being done.
        what: &'static str,
        /// The client's error.
        source: Box<kube::Error>,
    },
    /// The API server did not answer.
    #[error("{what}: no answer from the API server")]
    ApiTimeout {
        /// What was being done.
        what: &'static str,
    },
    /// The operator said no.
    #[error("CertificateSigningRequest {name} was {verdict}: {message}")]
    Refused {
        /// The request.
        name: String,
        /// `Denied` or `Failed`.
        verdict: String,
        /// The operator's reason.
        message: String,
    },
    /// Nobody has answered yet.
    #[error("CertificateSigningRequest {name} waits for the operator")]
    Unanswered {
        /// The request.
        name: String,
    },
    /// What was signed is not usable.
    #[error("the certificate of {name}: {why}")]
    BadCertificate {
        /// The request.
        name: String,
        /// What is wrong.
        why: String,
    },
    /// The files of the state directory.
    #[error(transparent)]
    Identity(#[from] IdentityError),
}

/// How often the renewer looks whether anything is due: two readings of memory.
const LOOK: Duration = Duration::from_secs(1);
/// So many looks in a row must find no `NodePool`: after a signature it takes a moment until the watch shows it.
const UNLISTED_LOOKS: u32 = 3;

/// Keeps the certificate of one agent alive.
#[derive(Clone)]
pub struct Renewer {
    requests: Api<CertificateSigningRequest>,
    store: IdentityStore,
    listen: SocketAddr,
    settings: RenewSettings,
}

impl Renewer {
    /// For the agent whose Peer service peers reach at `listen`.
    ///
    /// # Errors
    ///
    /// [`CsrError`] if peers can't reach `listen`: an unspecified or loopback address.
    pub fn new(client: kube::Client, store: IdentityStore, listen: SocketAddr, settings: RenewSettings) -> Result<Self, CsrError> {
        if listen.ip().is_unspecified() {
            return Err(CsrError::Unspecified(listen));
        }
        Ok(Self { requests: Api::all(client), store, listen, settings })
    }

    /// Renews for ever, at two thirds of each lifetime; and when `unlisted` says for a while that the API has no `NodePool`
    /// of this node (its objects were lost): the operator, as signer, makes it anew with the certificate.
    pub async fn run(&self, unlisted: impl Fn() -> bool + Send, cancel: CancellationToken) {
        let mut backoff = self.settings.backoff_min;
        let mut looks = 0;
        // One that we were killed over: the operator may have listed its certificate already, in place of ours.
        let mut resume = matches!(self.store.pending(), Ok(Some(_)));
        loop {
            looks = if unlisted() { looks + 1 } else { 0 };
            let wait = if resume || looks > UNLISTED_LOOKS { Duration::ZERO } else { self.due_in(unix_now()) };
            let pause = if wait.is_zero() {
                match self.obtain().await {
                    Ok(()) => {
                        backoff = self.settings.backoff_min;
                        (looks, resume) = (0, false);
                        // Never two requests at once, whatever lifetime the signer gives or the clock says.
                        self.settings.backoff_min
                    }
                    Err(error) => {
                        tracing::warn!(%error, retry_in = ?backoff, "no new certificate yet");
                        let pause = jittered(backoff);
                        backoff = (backoff * 2).min(self.settings.backoff_max);
                        pause
                    }
                }
            } else {
                wait.min(self.settings.clock_check).min(LOOK)
            };
            tokio::select! {
                () = cancel.cancelled() => return,
                () = tokio::time::sleep(pause) => {}
            }
        }
    }

    /// How long until a new certificate is due at `now` (Unix seconds): none, expired, for another address, or past two
    /// thirds of its life.
    pub fn due_in(&self, now: i64) -> Duration {
        let Some(identity) = self.store.current() else { return Duration::ZERO };
        let leaf = &identity.leaf;
        if !leaf.valid_at(now) || !leaf.addresses.contains(&self.listen.ip()) {
            return Duration::ZERO;
        }
        let life = leaf.not_after.saturating_sub(leaf.not_before);
        let due = leaf.not_before.saturating_add(life / 3 * 2);
        Duration::from_secs(u64::try_from(due.saturating_sub(now)).unwrap_or(0))
    }

    /// One attempt: sends a request, or goes on waiting for the one that is open, and installs the answer.
    ///
    /// # Errors
    ///
    /// What the API server or the signer said, that there is no answer yet, or that the answer is not of this key.
    pub async fn obtain(&self) -> Result<(), CsrError> {
        let (pending, found) = self.open_request().await?;
        let answer = self.await_answer(&pending.name, found).await;
        if matches!(answer, Err(CsrError::Refused { .. } | CsrError::BadCertificate { .. })) {
            self.store.clear_pending()?;
        }
        let identity = answer.and_then(|chain| self.install(&pending, &chain));
        if matches!(identity, Err(CsrError::BadCertificate { .. })) {
            self.store.clear_pending()?;
        }
        let identity = identity?;
        self.store.clear_pending()?;
        tracing::info!(request = %pending.name, fingerprint = %identity.leaf.fingerprint, "a new certificate is in use");
        Ok(())
    }

    /// The request that is open at the API server: the remembered one if it is still there, else a new one.
    async fn open_request(&self) -> Result<(Pending, CertificateSigningRequest), CsrError> {
        if let Some(pending) = self.store.pending()?.filter(|p| p.address == self.listen.ip()) {
            if let Some(found) = self.get(&pending.name).await? {
                return Ok((pending, found));
            }
            // Never arrived, or was cleaned up (after an hour answered, a day unanswered).
            self.store.clear_pending()?;
        }
        let pending = Pending::generate(self.store.node(), self.listen.ip(), self.fresh_name())?;
        self.store.set_pending(&pending)?;
        let object = self.object(&pending);
        let created = self.call("sending a CertificateSigningRequest", self.requests.create(&PostParams::default(), &object)).await?;
        Ok((pending, created))
    }

    fn fresh_name(&self) -> String {
        let random = uuid::Uuid::new_v4().simple().to_string();
        let node = cut(self.store.node().as_str(), 200);
        format!("dotgraft-agent-{node}-{}", cut(&random, 10))
    }

    fn object(&self, pending: &Pending) -> CertificateSigningRequest {
        let usages = ["digital signature", "server auth", "client auth"];
        CertificateSigningRequest {
            metadata: ObjectMeta {
                name: Some(pending.name.clone()),
                annotations: Some([(PORT_ANNOTATION.to_owned(), self.listen.port().to_string())].into()),
                ..ObjectMeta::default()
            },
            spec: CertificateSigningRequestSpec {
                request: ByteString(pending.request.clone().into_bytes()),
                signer_name: SIGNER.to_owned(),
                expiration_seconds: Some(LIFETIME_SECONDS),
                usages: Some(usages.map(str::to_owned).to_vec()),
                ..CertificateSigningRequestSpec::default()
            },
            status: None,
        }
    }

    async fn await_answer(&self, name: &str, mut found: CertificateSigningRequest) -> Result<String, CsrError> {
        let until = tokio::time::Instant::now() + self.settings.patience;
        let mut pause = self.settings.poll_min;
        loop {
            if let Some(chain) = answer_of(name, &found)? {
                return Ok(chain);
            }
            if tokio::time::Instant::now() + pause > until {
                return Err(CsrError::Unanswered { name: name.to_owned() });
            }
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(self.settings.poll_max);
            found = self.get(name).await?.ok_or_else(|| CsrError::Unanswered { name: name.to_owned() })?;
        }
    }

    fn install(&self, pending: &Pending, chain: &str) -> Result<std::sync::Arc<Identity>, CsrError> {
        let bad = |why: String| CsrError::BadCertificate { name: pending.name.clone(), why };
        let identity = Identity::from_pem(self.store.node(), &pending.key, chain).map_err(|e| bad(e.to_string()))?;
        if !identity.leaf.addresses.contains(&pending.address) {
            return Err(bad(format!("it is not for {}", pending.address)));
        }
        // A signer whose clock is a little ahead is no reason to ask again.
        if unix_now() > identity.leaf.not_after {
            return Err(bad("it is expired".into()));
        }
        Ok(self.store.install(&pending.key, chain)?)
    }

    async fn get(&self, name: &str) -> Result<Option<CertificateSigningRequest>, CsrError> {
        self.call("reading a CertificateSigningRequest", self.requests.get_opt(name)).await
    }

    async fn call<T>(&self, what: &'static str, call: impl Future<Output = Result<T, kube::Error>>) -> Result<T, CsrError> {
        match tokio::time::timeout(self.settings.call_timeout, call).await {
            Ok(result) => result.map_err(|e| CsrError::Api { what, source: Box::new(e) }),
            Err(_) => Err(CsrError::ApiTimeout { what }),
        }
    }
}

/// The chain if it is signed, an error if it was refused, nothing while it is open.
fn answer_of(name: &str, csr: &CertificateSigningRequest) -> Result<Option<String>, CsrError> {
    let Some(status) = &csr.status else { return Ok(None) };
    let conditions = status.conditions.as_deref().unwrap_or_default();
    if let Some(no) = conditions.iter().find(|c| c.type_ == "Denied" || c.type_ == "Failed") {
        let message = no.message.as_deref().or(no.reason.as_deref()).unwrap_or("no reason given");
        let (name, message) = (name.to_owned(), cut(message, 500).to_owned());
        return Err(CsrError::Refused { name, verdict: no.type_.clone(), message });
    }
    let Some(ByteString(pem)) = status.certificate.as_ref().filter(|c| !c.0.is_empty()) else { return Ok(None) };
    let bad = |why: &str| CsrError::BadCertificate { name: name.to_owned(), why: why.to_owned() };
    if pem.len() > MAX_CHAIN {
        return Err(bad("the chain is longer than 64 KiB"));
    }
    String::from_utf8(pem.clone()).map(Some).map_err(|_| bad("it is not PEM"))
}

/// Between three quarters and five quarters.
fn jittered(pause: Duration) -> Duration {
    let random = u32::from(uuid::Uuid::new_v4().as_bytes()[0]);
    pause / 4 * 3 + pause * random / 512
}
