//! What becomes of facts and objects, without a network.

use super::*;
use dotgraft_api::NodePoolSpec;

const GIB: u64 = 1 << 30;

fn pool(status: Option<NodePoolStatus>) -> NodePool {
    let mut pool = NodePool::new("n1", NodePoolSpec { node: "n1".into(), ..NodePoolSpec::default() });
    pool.metadata.generation = Some(3);
    pool.status = status;
    pool
}

fn facts(available: u64) -> PoolFacts {
    let ready = Fact { kind: "Ready".into(), status: Some(true), reason: "Mounted".into(), message: String::new() };
    PoolFacts { capacity: 100 * GIB, available, conditions: vec![ready], ..PoolFacts::default() }
}

fn at(second: i64) -> Timestamp {
    Timestamp::new(second, 123_456_789).unwrap()
}

#[test]
fn nothing_changes_while_nothing_changes() {
    let first = status(&facts(50 * GIB + 7), &pool(None), at(1000));
    assert_eq!(first.available_bytes, 50 * GIB);
    let echo: NodePoolStatus = serde_json::from_str(&serde_json::to_string(&first).unwrap()).unwrap();
    assert_eq!(echo, first, "our own write doesn't look like a change");
    let again = status(&facts(50 * GIB + 700_000), &pool(Some(echo)), at(2000));
    assert_eq!(again, first);
}

#[test]
fn a_value_at_an_edge_does_not_flap_but_a_full_step_shows() {
    let shown = Some(50 * GIB);
    for near in [50 * GIB - GIB / 4, 50 * GIB, 51 * GIB, 51 * GIB + GIB / 4] {
        assert_eq!(quantise(near, 100 * GIB, shown), 50 * GIB, "{near}");
    }
    assert_eq!(quantise(49 * GIB, 100 * GIB, shown), 49 * GIB);
    assert_eq!(quantise(52 * GIB, 100 * GIB, shown), 52 * GIB);
    assert_eq!(quantise(7, 0, None), 7);
}

#[test]
fn conditions_that_are_no_fact_any_more_go_and_times_move_with_the_status_only() {
    let mut trouble = facts(0);
    trouble.conditions.push(Fact { kind: "PoolFailed".into(), status: Some(true), reason: "ReadOnly".into(), message: "m".into() });
    let first = status(&trouble, &pool(None), at(1000));
    assert_eq!(first.conditions.len(), 2);
    let mut calm = facts(0);
    calm.conditions[0].message = "other words".into();
    let second = status(&calm, &pool(Some(first.clone())), at(2000));
    assert_eq!(second.conditions.len(), 1);
    assert_eq!(second.conditions[0].last_transition_time, first.conditions[0].last_transition_time);
    assert_eq!(second.conditions[0].observed_generation, Some(3));
}

#[test]
fn all_orphans_are_counted_and_a_hundred_named() {
    let mut many = facts(0);
    many.orphans = (0..250).map(|i| Orphan { fs_id: format!("{:03}", 249 - i), ..Orphan::default() }).collect();
    let status = status(&many, &pool(None), at(0));
    assert_eq!((status.orphans.count, status.orphans.items.len()), (250, 100));
    assert_eq!(status.orphans.items[0].fs_id, "000", "in an order that doesn't change by itself");
}

#[test]
fn a_peer_needs_an_address_and_a_certificate() {
    let mut p = pool(None);
    assert!(peer(&p).is_none());
    p.spec.address = "10.0.0.1:7000".into();
    assert!(peer(&p).is_none(), "revoked");
    p.spec.fingerprints = vec!["rubbish".into(), "ab".repeat(32)];
    assert_eq!(peer(&p).unwrap().fingerprints.len(), 1);
    p.spec.address = "example.com:1".into();
    assert!(peer(&p).is_none());
}

#[test]
fn our_own_answered_write_counts_until_the_watch_is_as_new() {
    let version = |v: &str| {
        let mut p = pool(None);
        p.metadata.uid = Some("u".into());
        p.metadata.resource_version = Some(v.into());
        p
    };
    let pick = |watched: &str, written: &str| newest(Some(&version(watched)), Some(&version(written))).unwrap().resource_version().unwrap();
    assert_eq!(pick("9", "10"), "10");
    assert_eq!(pick("11", "10"), "11");
    let mut other = version("12");
    other.metadata.uid = Some("old object".into());
    assert_eq!(newest(Some(&version("11")), Some(&other)).unwrap().resource_version().unwrap(), "11");
    assert!(newest(None, Some(&version("1"))).is_none());
}
