//! The table of job statuses.

use dotgraft_api::{ConditionType, LastRun, Place, ReplicaJobStatus, Schedule, condition};
use dotgraft_engine::behind::Behind;
use serde_json::json;

use super::*;
use crate::conditions::Block;
use crate::testing::{FS, job};

const C1: &str = "0198c2a5-7f00-7000-8000-0000000000c1";

fn at(s: i64) -> Time {
    Time(Timestamp::from_second(s).unwrap())
}
fn report(state: &str, edit: impl FnOnce(&mut serde_json::Value)) -> serde_json::Value {
    let mut r = json!({
        "state": state, "attempt": 1, "startedAt": 1_000_000, "finishedAt": null, "sleepUntil": null, "problem": null,
        "resolution": null, "stepsDone": 0, "stepsTotal": 2, "current": null, "expectedBytes": null, "replicatedBytes": 0,
        "bytesPerSecond": null, "imprecise": false, "conflict": null, "attempts": [], "replicated": null,
    });
    edit(&mut r);
    r
}
fn item(name: &str, report: Option<serde_json::Value>) -> Item {
    let report = report.map(|r| serde_json::from_value(r).unwrap());
    let job = report.map(|r| ReplicaJobStatus { uid: FS.into(), report: Some(r), ..ReplicaJobStatus::default() });
    let target = Ok(Place { node: "n2".into(), pool: FS.into() });
    Item { name: name.into(), target, job, behind: None, away: None }
}
fn done() -> serde_json::Value {
    report("Completed", |r| {
        r["finishedAt"] = json!(1_090_000);
        r["stepsDone"] = json!(2);
        r["replicatedBytes"] = json!(100);
        r["expectedBytes"] = json!(100);
    })
}
fn ready(s: &ReplicationJobStatus) -> (&str, &str) {
    let c = condition(&s.conditions, "Ready").unwrap();
    (&c.status, &c.reason)
}
fn is_true(s: &ReplicationJobStatus, type_: &str) -> bool {
    condition(&s.conditions, type_).is_some_and(|c| c.status == "True")
}

#[test]
fn a_run_in_hand_shows_progress_rate_and_time_left() {
    let r = report("Working", |r| {
        r["expectedBytes"] = json!(1000);
        r["replicatedBytes"] = json!(400);
        r["bytesPerSecond"] = json!(5);
        r["current"] = json!({"from": null, "to": C1, "state": "Sending", "resumed": true, "expected": 1000, "replicated": 400});
    });
    let s = status(&job("j", "n2", 1), vec![item("db", Some(r))], &at(2000));
    assert_eq!(s.state.as_deref(), Some("Working"));
    let p = s.progress.as_ref().unwrap();
    assert_eq!((p.expected_bytes, p.replicated_bytes, p.eta.as_deref()), (Some(1000), 400, Some("2m")));
    assert_eq!(ready(&s), ("False", "Running"));
    assert!(is_true(&s, "Progressing") && !is_true(&s, "Degraded"));
    let line = &s.report.as_ref().unwrap().items[0];
    assert_eq!(line.state, "Active");
    assert!(line.current.as_ref().unwrap().resumed);
    assert_eq!(s.finished_at, None);
}

#[test]
fn a_send_without_a_byte_says_what_it_waits_for_and_is_no_trouble() {
    let silent = |seconds: Option<u64>| {
        let r = report("Working", |r| {
            let current = json!({"from": null, "to": C1, "state": "Sending", "resumed": false, "expected": null, "replicated": 4});
            r["current"] = current;
            if let Some(seconds) = seconds {
                r["current"]["silentSeconds"] = json!(seconds);
            }
        });
        let s = status(&job("j", "n2", 1), vec![item("db", Some(r))], &at(2000));
        assert_eq!((ready(&s), is_true(&s, "Degraded")), (("False", "Running"), false));
        s.report.unwrap().items[0].blocked_on.clone()
    };
    assert_eq!(silent(None), None, "as an older agent says it, too");
    assert!(silent(Some(20)).unwrap().ends_with("no bytes for 20s"));
    assert_eq!(silent(Some(125)), silent(Some(170)), "a status is not written for every second");
    assert!(silent(Some(125)).unwrap().ends_with("no bytes for 2m"));
}

#[test]
fn a_copy_that_is_being_made_is_no_trouble_and_one_that_never_comes_is() {
    let waiting = |attempt: u32| {
        let r = report("PlanningError", |r| {
            r["attempt"] = json!(attempt);
            r["problem"] = json!({"reason": "NotPlaced", "message": "no Replica here (yet)"});
        });
        status(&job("j", "n2", 1), vec![item("db", Some(r))], &at(2000))
    };
    let soon = waiting(3);
    assert_eq!(ready(&soon), ("False", "Running"));
    assert_eq!((soon.state.as_deref(), soon.consecutive_failures), (Some("Planning"), 0));
    assert!(!is_true(&soon, "Degraded") && !is_true(&soon, "NotPlaced") && soon.problem.is_none());
    assert!(soon.report.unwrap().items[0].blocked_on.as_deref().unwrap().contains("copy"));
    let late = waiting(4);
    assert_eq!(ready(&late), ("False", "NotPlaced"));
    assert!(is_true(&late, "Degraded") && is_true(&late, "NotPlaced"));
}

#[test]
fn a_run_that_has_ended_is_ready_and_never_changes_again() {
    let mut j = job("j", "n2", 1);
    let mut i = item("db", Some(done()));
    let last = LastRun { finished_at: at(1090), started_at: at(1000), bytes: 100, commit: None, success: true };
    i.job.as_mut().unwrap().last = Some(last);
    i.job.as_mut().unwrap().last_successful_time = Some(at(1090));
    let s = status(&j, vec![i], &at(2000));
    assert_eq!(ready(&s), ("True", "Completed"));
    assert_eq!((s.finished_at.clone(), s.last_successful_time.clone()), (Some(at(1090)), Some(at(1090))));
    assert_eq!((s.last_duration.as_deref(), s.last_bytes), (Some("1m30s"), Some(100)));
    j.status = Some(s.clone());
    assert_eq!(status(&j, vec![], &at(9000)), s, "even when its sources are gone");
    j.spec.trigger = Some("again".into());
    let again = status(&j, vec![item("db", Some(done()))], &at(9000));
    assert_eq!(again.finished_at, None, "the old run's report isn't the new one's");
    assert_eq!(ready(&again), ("False", "Pending"));
    assert_eq!(again.last_successful_time, Some(at(1090)), "what was reached stays");
}

#[test]
fn a_run_that_was_stopped_from_outside_is_not_the_end() {
    let stopped = |reason| {
        let end = |r: &mut serde_json::Value| {
            r["finishedAt"] = json!(1_001_000);
            r["problem"] = json!({"reason": reason, "message": "stopped"});
        };
        status(&job("j", "n2", 1), vec![item("a", Some(report("ContextDone", end)))], &at(1))
    };
    let owed = stopped("Cancelled");
    assert_eq!((owed.state.as_deref(), owed.finished_at.is_none()), (Some("ContextDone"), true));
    assert_eq!(ready(&owed), ("False", "Pending"));
    assert!(stopped("Timeout").finished_at.is_some(), "its deadline is its own end");
}

#[test]
fn the_state_is_the_worst_of_those_that_still_run() {
    let of = |states: &[&str]| {
        let items = states.iter().enumerate().map(|(i, s)| item(&format!("d{i}"), Some(report(s, |_| {})))).collect();
        status(&job("j", "n2", 1), items, &at(1)).state.unwrap()
    };
    assert_eq!(of(&["Completed", "Working", "WorkingWait"]), "WorkingWait");
    assert_eq!(of(&["Working", "PlanningError"]), "PlanningError");
    assert_eq!(of(&["Completed", "ContextDone"]), "ContextDone");
    assert_eq!(of(&["Completed", "Planning"]), "Planning");
    let s = status(&job("j", "n2", 1), vec![item("a", Some(done())), item("b", None)], &at(1));
    assert_eq!((s.state.as_deref(), s.finished_at), (Some("Planning"), None), "one that hasn't begun is no end");
}

#[test]
fn a_divergence_is_named_and_the_failed_come_first() {
    let apart = report("Completed", |r| {
        r["finishedAt"] = json!(1_090_000);
        r["problem"] = json!({"reason": "Diverged", "message": "both sides have commits"});
    });
    let items = vec![item("a-fine", Some(done())), item("z-apart", Some(apart))];
    let s = status(&job("j", "n2", 1), items, &at(2000));
    assert_eq!(ready(&s), ("False", "Diverged"));
    assert!(is_true(&s, "Diverged") && is_true(&s, "Degraded"));
    let r = s.report.unwrap();
    assert_eq!(r.items[0].name, "z-apart");
    assert_eq!(r.filesystems.unwrap(), FilesystemCounts { total: 2, completed: 1, failed: 1, active: 0, pending: 0 });
}

#[test]
fn a_temporary_error_shows_when_it_is_tried_again_and_clears_on_success() {
    let mut j = job("j", "n2", 1);
    let wait = report("WorkingWait", |r| {
        r["sleepUntil"] = json!(1_050_000);
        r["problem"] = json!({"reason": "NoSpace", "message": "full"});
        let attempt =
            json!({"state": "WorkingWait", "startedAt": 1, "finishedAt": null, "error": {"reason": "NoSpace", "message": "full"}});
        r["attempts"] = json!([attempt, attempt, attempt, attempt]);
    });
    let s = status(&j, vec![item("db", Some(wait))], &at(1000));
    assert_eq!(s.sleep_until, Some(at(1050)));
    assert!(is_true(&s, "NoSpace") && is_true(&s, "Degraded"));
    let attempts = &s.report.as_ref().unwrap().attempts;
    assert_eq!((attempts.len(), attempts[0].error.as_ref().unwrap().class.as_str()), (3, "Temporary"));
    assert_eq!(s.consecutive_failures, 4, "four attempts have failed");
    j.status = Some(s);
    let s = status(&j, vec![item("db", Some(done()))], &at(2000));
    assert!(s.problem.is_none() && condition(&s.conditions, "NoSpace").is_none() && !is_true(&s, "Degraded"));
}

#[test]
fn a_job_that_cannot_begin_says_why_in_a_condition_of_that_type() {
    use ConditionType::{TargetBusy, TargetIsOwner, TargetNotFound, TargetNotReady};
    for reason in [TargetNotFound, TargetIsOwner, TargetBusy, TargetNotReady] {
        let mut i = item("db", None);
        i.target = Err(Block::new(reason, "why"));
        let s = status(&job("j", "n2", 1), vec![i], &at(1));
        assert_eq!(ready(&s), ("False", reason.as_str()));
        assert!(is_true(&s, reason.as_str()) && s.finished_at.is_none());
    }
    assert_eq!(ready(&status(&job("j", "n2", 1), vec![], &at(1))), ("False", "NoSources"));
}

fn lacks(commits: usize, since: Option<i64>) -> Behind<Timestamp> {
    Behind { commits, or_more: false, since: since.map(|s| at(s).0) }
}

#[test]
fn lag_is_what_the_target_lacks_whatever_the_last_run_said() {
    let on_commit = {
        let mut j = job("j", "n2", 1);
        j.spec.schedule = Some(Schedule { on_commit: true, ..Schedule::default() });
        j
    };
    let seen = |behind: Option<Behind<Timestamp>>, now: i64| {
        let i = Item { behind, ..item("db", Some(done())) };
        let s = status(&on_commit, vec![i], &at(now));
        let ready = ready(&s);
        (s.lag.clone(), s.behind_since.clone(), (ready.0 == "True", ready.1.to_owned()))
    };
    let up_to_date = (true, "UpToDate".to_owned());
    assert_eq!(seen(None, 2000), (None, None, up_to_date.clone()), "nobody knows");
    assert_eq!(seen(Some(lacks(0, None)), 2000), (Some("0s".into()), None, up_to_date.clone()));
    assert_eq!(seen(Some(lacks(1, Some(1998))), 2000), (Some("0s".into()), Some(at(1998)), up_to_date.clone()), "it is on its way");
    assert_eq!(seen(Some(lacks(1, Some(1990))), 2000), (Some("10s".into()), Some(at(1990)), (false, "Behind".into())));
    assert_eq!(
        seen(Some(lacks(0, Some(1900))), 2000),
        (Some("1m".into()), Some(at(1900)), up_to_date),
        "no commit is missing, and it isn't up to date"
    );
}

#[test]
fn a_one_shot_job_that_has_ended_tells_how_old_its_copy_is_by_now() {
    let mut j = job("j", "n2", 1);
    let with = |behind| Item { behind: Some(behind), ..item("db", Some(done())) };
    j.status = Some(status(&j, vec![with(lacks(0, None))], &at(1100)));
    assert_eq!(j.status.as_ref().unwrap().lag.as_deref(), Some("0s"));
    let later = status(&j, vec![with(lacks(2, Some(1200)))], &at(1500));
    assert_eq!((later.lag.as_deref(), later.behind_since.clone()), (Some("5m"), Some(at(1200))));
    assert_eq!(ready(&later), ("True", "Completed"), "it has done what it was asked for");
}

#[test]
fn a_standing_job_stays_ready_while_it_brings_newer_commits() {
    let mut j = job("j", "n2", 1);
    j.spec.schedule = Some(Schedule { on_commit: true, ..Schedule::default() });
    let mut i = item("db", Some(report("Working", |_| {})));
    i.job.as_mut().unwrap().last_successful_time = Some(at(900));
    assert_eq!(ready(&status(&j, vec![i.clone()], &at(1000))), ("True", "Running"));
    i.behind = Some(lacks(1, Some(950)));
    assert_eq!(ready(&status(&j, vec![i], &at(1000))), ("False", "Behind"), "but not for long");
    j.spec.suspend = true;
    let s = status(&j, vec![item("db", None)], &at(1000));
    assert_eq!(ready(&s), ("False", "Suspended"));
    assert!(is_true(&s, "Suspended"));
}

#[test]
fn a_scheduled_job_says_when_it_runs_and_goes_on_after_each_run() {
    let mut j = job("j", "n2", 1);
    j.spec.schedule = Some(Schedule { cron: Some("0 * * * *".into()), ..Schedule::default() });
    let next = at(7200);
    let with = |report: Option<serde_json::Value>, success: Option<i64>| {
        let mut i = item("db", report);
        let job = i.job.get_or_insert_default();
        (job.next_schedule_time, job.last_successful_time) = (Some(next.clone()), success.map(at));
        i
    };
    let waits = status(&j, vec![with(None, None)], &at(4000));
    assert_eq!((ready(&waits), waits.next_schedule_time.clone()), (("False", "Scheduled"), Some(at(7200))));
    assert_eq!(waits.report.as_ref().unwrap().items[0].blocked_on.as_deref(), Some("its schedule"));
    j.status = Some(status(&j, vec![with(Some(done()), Some(900))], &at(4000)));
    assert_eq!((ready(j.status.as_ref().unwrap()), j.status.as_ref().unwrap().finished_at.is_some()), (("True", "Completed"), true));
    let again = status(&j, vec![with(Some(report("Working", |_| {})), Some(900))], &at(8000));
    assert_eq!(ready(&again), ("True", "Running"), "the end of one run isn't the job's");
}

#[test]
fn numbers_alone_are_throttled_and_words_are_not() {
    let j = job("j", "n2", 1);
    let with = |bytes: u64, state: &str| {
        let r = report(state, |r| {
            r["replicatedBytes"] = json!(bytes);
            r["current"] = json!({"from": null, "to": C1, "state": "Sending", "resumed": false, "expected": null, "replicated": bytes});
        });
        status(&j, vec![item("db", Some(r))], &at(1))
    };
    assert!(!differs_much(&with(1, "Working"), &with(2, "Working")));
    assert!(differs_much(&with(1, "Working"), &with(1, "WorkingWait")));
}

#[test]
fn durations_read_like_kubectls() {
    for (s, text) in [(0, "0s"), (59, "59s"), (60, "1m"), (90, "1m30s"), (3600, "1h"), (90000, "1d1h")] {
        assert_eq!(spell(s), text);
    }
}

#[test]
fn a_report_that_cannot_be_read_is_said_and_changes_nothing_else() {
    let newer = report("Verifying", |_| {}); // a state that this version doesn't know
    let s = status(&job("j", "n2", 1), vec![item("db", Some(newer))], &at(2000));
    assert_eq!(ready(&s), ("False", "ReportUnreadable"));
    assert!(is_true(&s, "ReportUnreadable"));
    let problem = s.problem.unwrap();
    assert!(problem.message.contains("Verifying"), "{problem:?}");
    assert_eq!((s.state.as_deref(), s.finished_at), (Some("Planning"), None));
}

#[test]
fn what_an_agent_that_is_away_said_last_is_not_the_state_of_things() {
    let on_commit = || {
        let mut j = job("j", "n2", 1);
        j.spec.schedule = Some(Schedule { on_commit: true, ..Schedule::default() });
        j
    };
    let away = |mut item: Item| {
        item.away = Some("the pool of the owner's node `n1` is not ready: AgentSilent".into());
        item
    };
    assert_eq!(ready(&status(&on_commit(), vec![item("db", Some(done()))], &at(2000))), ("True", "UpToDate"));
    let s = status(&on_commit(), vec![away(item("db", Some(done())))], &at(2000));
    assert_eq!(ready(&s), ("False", "OwnerNotReady"));
    assert!(is_true(&s, "OwnerNotReady"));
    let line = &s.report.as_ref().unwrap().items[0];
    assert!(line.blocked_on.as_ref().unwrap().contains("n1"), "{line:?}");
    // What can never begin says so, whoever is away.
    let mut never = away(item("db", None));
    never.target = Err(Block::new(ConditionType::TargetNotFound, "no such node"));
    assert_eq!(ready(&status(&on_commit(), vec![never], &at(2000))), ("False", "TargetNotFound"));
}
