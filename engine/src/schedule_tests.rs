#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use proptest::prelude::*;

use super::*;

fn at(text: &str) -> Timestamp {
    Timestamp(text.parse::<jiff::Timestamp>().unwrap().as_millisecond())
}

fn text(at: Timestamp) -> String {
    jiff::Timestamp::from_millisecond(at.0).unwrap().to_string()
}

fn whose(n: u128) -> JobUid {
    JobUid::from_uuid(uuid::Uuid::from_u128(n))
}

/// The firings after `from`, as far as `to`.
fn firings(schedule: &Schedule, from: &str, to: &str) -> Vec<String> {
    let mut list = Vec::new();
    let mut last = at(from);
    while let Some(next) = schedule.after(last).filter(|next| *next <= at(to)) {
        assert!(next > last);
        list.push(text(next));
        last = next;
    }
    list
}

fn berlin(pattern: &str) -> Schedule {
    Schedule::cron(pattern, Some("Europe/Berlin")).unwrap()
}

#[test]
fn a_wall_time_that_summer_time_skips_fires_once_at_the_end_of_the_gap() {
    // 2026-03-29: 01:59:59 +01:00 is followed by 03:00:00 +02:00, which is 01:00 UTC.
    let fired = firings(&berlin("30 2 * * *"), "2026-03-27T12:00:00Z", "2026-03-30T12:00:00Z");
    assert_eq!(fired, ["2026-03-28T01:30:00Z", "2026-03-29T01:00:00Z", "2026-03-30T00:30:00Z"]);
}

#[test]
fn a_wall_time_that_comes_twice_fires_the_first_time_only() {
    // 2026-10-25: 02:59:59 +02:00 is followed by 02:00:00 +01:00, which is 01:00 UTC.
    let fired = firings(&berlin("30 2 * * *"), "2026-10-23T12:00:00Z", "2026-10-26T12:00:00Z");
    assert_eq!(fired, ["2026-10-24T00:30:00Z", "2026-10-25T00:30:00Z", "2026-10-26T01:30:00Z"]);
    // Seen from within the second of the two hours.
    let nightly = berlin("30 2 * * *");
    assert_eq!(nightly.due(at("2026-10-25T00:30:00Z"), at("2026-10-25T01:45:00Z"), whose(1)), None);
    assert_eq!(nightly.due(at("2026-10-24T00:30:00Z"), at("2026-10-25T01:45:00Z"), whose(1)), Some(at("2026-10-25T00:30:00Z")));
}

#[test]
fn open_hours_go_by_real_time_both_ways() {
    let quarter = berlin("*/30 * * * *");
    let spring = firings(&quarter, "2026-03-29T00:29:00Z", "2026-03-29T01:31:00Z");
    assert_eq!(spring, ["2026-03-29T00:30:00Z", "2026-03-29T01:00:00Z", "2026-03-29T01:30:00Z"]);
    let autumn = firings(&quarter, "2026-10-24T23:59:00Z", "2026-10-25T02:01:00Z");
    assert_eq!(autumn.len(), 5, "{autumn:?}");
}

#[test]
fn leap_days_ends_of_months_and_names() {
    let utc = |pattern| Schedule::cron(pattern, None).unwrap();
    let leap = firings(&utc("0 0 29 2 *"), "2026-01-01T00:00:00Z", "2036-12-31T00:00:00Z");
    assert_eq!(leap, ["2028-02-29T00:00:00Z", "2032-02-29T00:00:00Z", "2036-02-29T00:00:00Z"]);
    assert_eq!(utc("@daily").after(at("2026-12-31T05:00:00Z")).map(text).unwrap(), "2027-01-01T00:00:00Z");
    assert_eq!(utc("@hourly").after(at("2026-12-31T23:59:59Z")).map(text).unwrap(), "2027-01-01T00:00:00Z");
    assert_eq!(utc("@weekly").after(at("2026-11-30T00:00:00Z")).map(text).unwrap(), "2026-12-06T00:00:00Z", "a Sunday");
    assert_eq!(utc("0 6 * * MON-FRI").after(at("2026-11-27T06:00:00Z")).map(text).unwrap(), "2026-11-30T06:00:00Z");
}

#[test]
fn what_is_none_is_said_with_what_to_do() {
    let refused = |pattern: &str, zone| Schedule::cron(pattern, zone).expect_err(pattern).to_string();
    for bad in ["", "* * * *", "* * * * * *", "60 * * * *", "* 24 * * *", "@sometimes", "@daily *", "nightly", "0 0 * * MOM", "-1 * * * *"]
    {
        assert!(refused(bad, None).contains("take five fields"), "{bad}");
    }
    assert!(refused(&"1".repeat(4_000), None).len() < 400);
    assert!(refused("0 0 30 2 *", None).contains("never fires"));
    assert!(refused("@daily", Some("Europe/Berln")).contains("IANA"));
    assert!(refused("@daily", Some("../../etc/passwd")).contains("IANA"));
    assert!(Schedule::interval(9).is_err() && Schedule::interval(MAX_INTERVAL + 1).is_err() && Schedule::interval(10).is_ok());
}

#[test]
fn what_was_missed_is_one_firing() {
    let nightly = berlin("30 2 * * *");
    let (last, now) = (at("2026-11-01T01:30:00Z"), at("2026-11-20T12:00:00Z"));
    assert_eq!(nightly.due(last, now, whose(1)), Some(at("2026-11-20T01:30:00Z")));
    assert_eq!(nightly.due(at("2026-11-20T01:30:00Z"), now, whose(1)), None);
    let hourly = Schedule::interval(3_600).unwrap();
    assert_eq!(hourly.due(at("2026-11-20T00:05:00Z"), now, whose(1)), Some(at("2026-11-20T11:05:00Z")), "on its own minute");
}

#[test]
fn one_that_was_missed_is_made_up_for_while_the_next_waits_for_its_turn() {
    let minutely = Schedule::cron("* * * * *", None).unwrap();
    let uid = (1..100).map(whose).find(|uid| minutely.jitter_ms(at("2026-11-20T12:00:00Z"), *uid) > 2_000).unwrap();
    let due = minutely.due(at("2026-11-20T11:58:00Z"), at("2026-11-20T12:00:01Z"), uid);
    assert_eq!(due, Some(at("2026-11-20T11:59:00Z")));
    assert_eq!(minutely.due(due.unwrap(), at("2026-11-20T12:00:01Z"), uid), None);
}

#[test]
fn a_clock_that_was_far_ahead_is_not_waited_for() {
    let now = at("2026-11-20T12:00:00Z");
    assert_eq!(Schedule::counted(at("2027-11-20T12:00:00Z"), now), now);
    let hour = at("2026-11-20T13:00:00Z");
    assert_eq!(Schedule::counted(hour, now), hour, "an hour is: or what fired would fire again");
}

#[test]
fn many_at_one_moment_are_spread_and_none_by_more_than_a_tenth() {
    let (daily, quick) = (Schedule::cron("@daily", None).unwrap(), Schedule::interval(10).unwrap());
    let midnight = at("2026-11-20T00:00:00Z");
    let spread: Vec<u64> = (0..200_u128).map(|n| daily.jitter_ms(midnight, whose(n * 0x1_0000_0001))).collect();
    assert!(spread.iter().all(|ms| *ms < MAX_JITTER_MS));
    for part in 0..6 {
        let there = spread.iter().filter(|ms| **ms / 10_000 == part).count();
        assert!(there > 10, "{there} of 200 in the {part}th ten seconds");
    }
    assert!((0..200).all(|n| quick.jitter_ms(midnight, whose(n)) < 1_000));
}

#[test]
fn it_is_read_as_it_was_written() {
    for schedule in [berlin("30 2 * * *"), Schedule::interval(90).unwrap()] {
        let json = serde_json::to_string(&schedule).unwrap();
        assert_eq!(serde_json::from_str::<Schedule>(&json).unwrap(), schedule);
    }
    assert!(serde_json::from_str::<Schedule>(r#"{"interval":{"seconds":1}}"#).is_err());
}

/// Patterns of which no two fire at the same rate, and zones with and without summer time, on both halves of the globe.
fn some() -> impl Strategy<Value = Schedule> {
    let pattern = prop::sample::select(vec!["*/7 * * * *", "30 2 * * *", "15 1,2,3 * * *", "0 */5 * * *", "5 2 * * SUN", "59 1 1 * *"]);
    let zone = prop::sample::select(vec![
        "UTC",
        "Europe/Berlin",
        "America/New_York",
        "Australia/Lord_Howe",
        "Asia/Kathmandu",
        "Africa/Casablanca",
    ]);
    (pattern, zone).prop_map(|(pattern, zone)| Schedule::cron(pattern, Some(zone)).unwrap())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    /// However often somebody looks, and however long nobody does, what is due is each firing that a look could see last, once and in order.
    #[test]
    fn each_is_due_once(schedule in some(), start in 1_770_000_000_i64..1_800_000_000, looks in prop::collection::vec(1_u64..7 * 86_400, 1..60), uid: u128) {
        let (mut last, mut now) = (Timestamp(start * 1000), Timestamp(start * 1000));
        for seconds in looks {
            let before = last;
            now = now.plus_ms(seconds * 1000);
            if let Some(due) = schedule.due(last, now, whose(uid)) {
                prop_assert!(due > last && due <= now);
                prop_assert_eq!(schedule.after(Timestamp(due.0 - 1)), Some(due), "a time that the calendar has");
                last = due;
            }
            // What is not due yet is so by its jitter alone.
            let mut next = last;
            while let Some(at) = schedule.after(next).filter(|at| *at <= now) {
                prop_assert!(at.plus_ms(MAX_JITTER_MS) > now, "{} is forgotten at {}", text(at), text(now));
                next = at;
            }
            prop_assert!(last == before || schedule.due(last, now, whose(uid)).is_none(), "twice");
            prop_assert!(schedule.next_due(last, whose(uid)).unwrap() > now);
        }
    }
}
