//! The journal under `kill -9`: what was acknowledged is there, and of the rest whole batches or nothing.
//!
//! Each case starts this test program again as a child that runs a script of batches; it dies at a fail point or by our hand.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)] // a test says what went wrong by panicking

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Child, Command, Stdio};

use dotgraft_agent::journal::{Entry, Journal, Op, Options, Scope};
use dotgraft_engine::ids::{FsId, PoolId};
use proptest::prelude::*;

const NAMES: [&str; 3] = ["Alpha", "Beta", "Gamma"];

type Batch = Vec<Entry>;
type Model = BTreeMap<String, Vec<u8>>;

fn pool() -> PoolId {
    "0198c2a5-7f00-4000-8000-0000000000aa".parse().unwrap()
}
fn fs(n: usize) -> FsId {
    format!("0198c2a5-7f00-7000-8000-{n:012}").parse().unwrap()
}
fn open(dir: &Path) -> Journal {
    Journal::open_with(&dir.join("journal.db"), pool(), Options { ballast: 64 << 10, observer: None }).unwrap()
}

fn apply(model: &mut Model, batch: &Batch) {
    for entry in batch {
        match &entry.op {
            Op::Put { key, value } => drop(model.insert(key.clone(), value.clone())),
            Op::Delete { key } => drop(model.remove(key)),
            Op::DeleteAll => model.clear(),
        }
    }
}

fn batches() -> impl Strategy<Value = Vec<Batch>> {
    let op = prop_oneof![
        12 => (0u8..8, 0u8..255, 0usize..3000).prop_map(|(key, byte, len)| Op::Put { key: format!("k{key}"), value: vec![byte; len] }),
        5 => (0u8..8).prop_map(|key| Op::Delete { key: format!("k{key}") }),
        1 => Just(Op::DeleteAll),
    ];
    let entry = (0usize..3, op).prop_map(|(name, op)| Entry { name: NAMES[name], op });
    prop::collection::vec(prop::collection::vec(entry, 1..6), 1..40)
}

/// Text form of a script for the child: one batch a line, entries `name key len byte`, `name key -` or `name all *`.
fn script(batches: &[Batch]) -> String {
    let entry = |e: &Entry| match &e.op {
        Op::Put { key, value } => format!("{} {key} {} {}", e.name, value.len(), value.first().copied().unwrap_or(0)),
        Op::Delete { key } => format!("{} {key} -", e.name),
        Op::DeleteAll => format!("{} all *", e.name),
    };
    batches.iter().map(|b| b.iter().map(entry).collect::<Vec<_>>().join(";") + "\n").collect()
}

fn parse(line: &str) -> Batch {
    let entry = |text: &str| {
        let part: Vec<&str> = text.split(' ').collect();
        let name = NAMES[NAMES.iter().position(|n| *n == part[0]).unwrap()];
        match part[2] {
            "-" => Entry::delete(name, part[1]),
            "*" => Entry { name, op: Op::DeleteAll },
            len => Entry::put(name, part[1], vec![part[3].parse().unwrap(); len.parse().unwrap()]),
        }
    };
    line.split(';').map(entry).collect()
}

/// The child: runs `script` in each of `JOURNAL_ACTORS` scopes at once and says `actor index` after each acknowledged batch.
#[test]
#[ignore = "started by the other tests as a child process"]
fn child_runs_a_script() {
    let dir = std::env::var("JOURNAL_DIR").unwrap();
    let actors: usize = std::env::var("JOURNAL_ACTORS").unwrap().parse().unwrap();
    let text = std::fs::read_to_string(Path::new(&dir).join("script")).unwrap();
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).build().unwrap();
    runtime.block_on(async {
        let journal = open(Path::new(&dir));
        let run = |actor: usize| {
            let (journal, batches) = (journal.clone(), text.lines().map(parse).collect::<Vec<_>>());
            tokio::spawn(async move {
                for (i, batch) in batches.into_iter().enumerate() {
                    journal.commit(Scope::Fs(fs(actor)), batch).await.unwrap();
                    let mut out = std::io::stdout().lock();
                    writeln!(out, "\nack {actor} {}", i + 1).unwrap();
                    out.flush().unwrap();
                }
            })
        };
        for task in (0..actors).map(run).collect::<Vec<_>>() {
            task.await.unwrap();
        }
    });
}

fn start(dir: &Path, actors: usize, failpoint: &str) -> Child {
    Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "child_runs_a_script", "--ignored", "--nocapture"])
        .env("JOURNAL_DIR", dir)
        .env("JOURNAL_ACTORS", actors.to_string())
        .env("DOTGRAFT_FAILPOINT", failpoint)
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap()
}

/// Reads acks until the child is gone; kills it after `kill_after` of them. Answers acks per actor and whether it ended well.
fn follow(mut child: Child, actors: usize, kill_after: usize) -> (Vec<usize>, bool) {
    let mut acked = vec![0; actors];
    let mut count = 0;
    let out = child.stdout.take().unwrap();
    for line in BufReader::new(out).lines() {
        let Some(rest) = line.unwrap().strip_prefix("ack ").map(str::to_owned) else {
            continue;
        };
        let (actor, index) = rest.split_once(' ').unwrap();
        acked[actor.parse::<usize>().unwrap()] = index.parse().unwrap();
        count += 1;
        if count == kill_after {
            child.kill().unwrap();
        }
    }
    (acked, child.wait().unwrap().success())
}

fn found(dir: &Path, actor: usize) -> Model {
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    runtime.block_on(async { open(dir).load(Scope::Fs(fs(actor))).await.unwrap().into_iter().collect() })
}

fn model_after(batches: &[Batch], n: usize) -> Model {
    let mut model = Model::new();
    batches.iter().take(n).for_each(|b| apply(&mut model, b));
    model
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, max_shrink_iters: 20, ..ProptestConfig::default() })]

    #[test]
    fn death_at_a_fail_point_leaves_exactly_what_it_should(batches in batches(), name in 0usize..3, nth in 1usize..12, after: bool) {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("script"), script(&batches)).unwrap();
        let name = NAMES[name];
        let point = format!("{}:{name}#{nth}", if after { "after" } else { "before" });
        let (acked, ended) = follow(start(dir.path(), 1, &point), 1, usize::MAX);

        let hit = batches.iter().enumerate().filter(|(_, b)| b.iter().any(|e| e.name == name)).nth(nth - 1).map(|(i, _)| i);
        prop_assert_eq!(ended, hit.is_none());
        let durable = match hit {
            None => batches.len(),
            Some(i) => { prop_assert_eq!(acked[0], i, "no ack of the batch that died"); i + usize::from(after) }
        };
        prop_assert_eq!(found(dir.path(), 0), model_after(&batches, durable));
    }

    #[test]
    fn kill_9_at_any_time_loses_nothing_that_was_acknowledged(batches in batches(), kill_after in 1usize..60) {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("script"), script(&batches)).unwrap();
        let (acked, _) = follow(start(dir.path(), 3, ""), 3, kill_after);
        for (actor, acks) in acked.iter().copied().enumerate().take(3) {
            let now = found(dir.path(), actor);
            // One request per actor can be durable without its ack having been read.
            let possible = [model_after(&batches, acks), model_after(&batches, acks + 1)];
            prop_assert!(possible.contains(&now), "actor {} after {} acks: {:?}", actor, acks, now.keys());
        }
    }
}

#[test]
fn an_error_point_fails_one_request_as_a_full_disk_would() {
    let dir = tempfile::tempdir().unwrap();
    let out = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "child_meets_an_error_point", "--ignored", "--nocapture"])
        .env("JOURNAL_DIR", dir.path())
        .env("DOTGRAFT_FAILPOINT", "error:Beta#2")
        .output()
        .unwrap();
    assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stdout));
    assert_eq!(found(dir.path(), 0).keys().collect::<Vec<_>>(), ["a", "c"]);
}

#[test]
#[ignore = "started by the test above as a child process"]
fn child_meets_an_error_point() {
    let dir = std::env::var("JOURNAL_DIR").unwrap();
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    runtime.block_on(async {
        let journal = open(Path::new(&dir));
        let put = |key: &str| vec![Entry::put("Alpha", "x", *b"1"), Entry::put("Beta", key, *b"v"), Entry::delete("Alpha", "x")];
        journal.commit(Scope::Fs(fs(0)), put("a")).await.unwrap();
        let e = journal.commit(Scope::Fs(fs(0)), put("b")).await.unwrap_err();
        assert_eq!(e.kind(), dotgraft_engine::model::Reason::NoSpace);
        journal.commit(Scope::Fs(fs(0)), put("c")).await.unwrap();
    });
}
