//! `kubectl dot push`: starts a run of a ReplicationJob (made if there is none) and shows how it goes.

use anyhow::{Result, bail};
use clap::Args;
use dotgraft_api::{
    ClaimKind, ConditionType, Direction, JobSource, JobTarget, ReplicationJob, ReplicationJobSpec, RunState, condition, says,
};
use kube::api::{DeleteParams, ObjectMeta, Patch, PatchParams, PostParams, Preconditions};
use kube::{Api, Client, ResourceExt};

use crate::Common;
use crate::client::source;
use crate::output::{self, Table, bytes};
use crate::progress::Display;
use crate::wait::{Seen, is_of, until};

#[derive(Debug, Args)]
pub struct PushArgs {
    /// The Dot.
    source: String,
    /// Node to push to.
    #[arg(long)]
    to: String,
    /// Name of the job; by default DOT-to-NODE.
    #[arg(long)]
    job: Option<String>,
}

pub async fn run(client: &Client, common: &Common, args: PushArgs) -> Result<()> {
    let source = source(client, &args.source).await?;
    if source.kind != ClaimKind::Dot {
        bail!("{} is a Branch: a job pushes Dots", args.source);
    }
    let name = args.job.unwrap_or_else(|| format!("{}-to-{}", source.name, args.to));
    let trigger = jiff::Timestamp::now().to_string();
    let api = Api::<ReplicationJob>::default_namespaced(client.clone());
    let made = if let Some(job) = api.get_opt(&name).await? {
        if job.spec.target.node != args.to || !job.spec.source.names.contains(&source.name) {
            bail!("job {name} exists and pushes something else: give another name with --job");
        }
        let patch = serde_json::json!({"spec": {"trigger": trigger}});
        api.patch(&name, &PatchParams::default(), &Patch::Merge(patch)).await?;
        None
    } else {
        let job = new_job(&name, &source.name, &args.to, &trigger);
        api.create(&PostParams::default(), &job).await?.uid()
    };
    let Some(timeout) = common.wait() else {
        println!("replicationjob.dotgraft.dev/{name} started");
        return Ok(());
    };
    let mut display = Display::new();
    let result = until(&api, &name, timeout, |job| look(job, &trigger, &mut display)).await;
    display.end();
    let job = match result {
        Ok(Pushed::Done(job)) => job,
        Ok(Pushed::Impossible(why)) => {
            if let Some(uid) = made {
                let ours = DeleteParams::default().preconditions(Preconditions { uid: Some(uid), resource_version: None });
                api.delete(&name, &ours).await?;
            }
            bail!("{why}");
        }
        Err(e) => return Err(e),
    };
    output::print(common.output, &job, |_| {
        let status = job.status.clone().unwrap_or_default();
        let mut table = Table::new(&["JOB", "STATE", "SENT", "DURATION"]);
        table.row(vec![
            name.clone(),
            status.state.unwrap_or_default(),
            status.last_bytes.map(bytes).unwrap_or_default(),
            status.last_duration.unwrap_or_default(),
        ]);
        table.text()
    })
}

fn new_job(name: &str, dot: &str, node: &str, trigger: &str) -> ReplicationJob {
    let spec = ReplicationJobSpec {
        direction: Direction::Push,
        source: JobSource { names: vec![dot.to_owned()], ..JobSource::default() },
        target: JobTarget { node: node.to_owned() },
        trigger: Some(trigger.to_owned()),
        ..ReplicationJobSpec::default()
    };
    ReplicationJob { metadata: ObjectMeta { name: Some(name.to_owned()), ..ObjectMeta::default() }, spec, status: None }
}

/// What became of it.
enum Pushed {
    /// It is there.
    Done(Box<ReplicationJob>),
    /// What was asked for can't be, whatever is waited for: a job that was made for it goes again.
    Impossible(String),
}

fn look(job: &ReplicationJob, trigger: &str, display: &mut Display) -> Seen<Pushed> {
    let status = job.status.clone().unwrap_or_default();
    let refused = condition(&status.conditions, ConditionType::Ready).filter(|c| says(c) == Some(false)).filter(|c| {
        let reason = c.reason.parse();
        matches!(reason, Ok(ConditionType::TargetNotFound | ConditionType::TargetIsOwner | ConditionType::SourceNotFound))
    });
    if let Some(refused) = refused.filter(|_| is_of(job.metadata.generation, status.observed_generation)) {
        return Seen::Done(Pushed::Impossible(format!("{}: {}", refused.reason, refused.message)));
    }
    let problem = status.problem.as_ref().map(|p| format!("{}: {}", p.reason, p.message));
    if status.observed_trigger.as_deref() != Some(trigger) {
        return Seen::NotYet(problem.unwrap_or_else(|| "the owner has not started the run yet".into()));
    }
    display.show(&status);
    let state = status.state.as_deref().and_then(|s| s.parse().ok());
    match (state, problem) {
        (Some(RunState::Completed), None) => Seen::Done(Pushed::Done(Box::new(job.clone()))),
        (Some(RunState::Completed | RunState::ContextDone), problem) => {
            Seen::Failed(problem.unwrap_or_else(|| "the run was stopped".into()))
        }
        (_, problem) => Seen::NotYet(problem.or(status.state).unwrap_or_else(|| "Pending".to_owned())),
    }
}
