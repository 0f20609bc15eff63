//! Deaths on demand, for tests that kill an agent at every journal record; compiled out of release builds.
//!
//! `DOTGRAFT_FAILPOINT` is a comma-separated list of `before:NAME`, `after:NAME` (the process kills itself with SIGKILL before
//! the transaction that holds a record NAME commits, or right after it is durable and before anyone is told) and
//! `error:NAME` (that request fails as on a full disk). `#n` takes the n-th time (default the first), `#*` every time.

#[cfg(debug_assertions)]
pub(super) use armed::Failpoints;
#[cfg(not(debug_assertions))]
pub(super) use inert::Failpoints;

#[cfg(not(debug_assertions))]
mod inert {
    use super::super::Entry;

    #[derive(Debug, Default)]
    pub(in super::super) struct Failpoints;

    impl Failpoints {
        pub(in super::super) fn from_env() -> Self {
            Self
        }
        #[allow(clippy::unused_self)] // same shape as the armed one
        pub(in super::super) fn before(&self, _: &[Entry]) {}
        #[allow(clippy::unused_self)]
        pub(in super::super) fn after(&self, _: &[Entry]) {}
        #[allow(clippy::unused_self)]
        pub(in super::super) fn error(&self, _: &[Entry]) -> bool {
            false
        }
    }
}

#[cfg(debug_assertions)]
mod armed {
    use std::cell::Cell;

    use super::super::Entry;

    #[derive(Debug, Clone, Copy, PartialEq, Eq)]
    enum Act {
        Before,
        After,
        Error,
    }

    #[derive(Debug)]
    struct Point {
        act: Act,
        record: String,
        /// `None`: every time.
        nth: Option<u64>,
        seen: Cell<u64>,
    }

    /// What the environment asks for.
    #[derive(Debug, Default)]
    pub(in super::super) struct Failpoints(Vec<Point>);

    impl Failpoints {
        pub(in super::super) fn from_env() -> Self {
            let text = std::env::var("DOTGRAFT_FAILPOINT").unwrap_or_default();
            let points = Self::parse(&text);
            if !points.0.is_empty() {
                tracing::warn!(failpoints = %text, "fail points are armed");
            }
            points
        }

        fn parse(text: &str) -> Self {
            Self(text.split(',').filter(|s| !s.is_empty()).filter_map(parse_one).collect())
        }

        pub(in super::super) fn before(&self, entries: &[Entry]) {
            if self.hit(Act::Before, entries) {
                die();
            }
        }
        pub(in super::super) fn after(&self, entries: &[Entry]) {
            if self.hit(Act::After, entries) {
                die();
            }
        }
        pub(in super::super) fn error(&self, entries: &[Entry]) -> bool {
            self.hit(Act::Error, entries)
        }

        /// Counts each record of that name once per request it is in.
        fn hit(&self, act: Act, entries: &[Entry]) -> bool {
            let mut hit = false;
            for point in self.0.iter().filter(|p| p.act == act) {
                if entries.iter().any(|e| e.name == point.record) {
                    point.seen.set(point.seen.get() + 1);
                    hit |= point.nth.is_none_or(|n| n == point.seen.get());
                }
            }
            hit
        }
    }

    fn parse_one(text: &str) -> Option<Point> {
        let parsed = text.split_once(':').and_then(|(act, rest)| {
            let act = match act {
                "before" => Act::Before,
                "after" => Act::After,
                "error" => Act::Error,
                _ => return None,
            };
            let (record, nth) = match rest.split_once('#') {
                None => (rest, Some(1)),
                Some((record, "*")) => (record, None),
                Some((record, n)) => (record, Some(n.parse().ok().filter(|n| *n > 0)?)),
            };
            Some(Point { act, record: record.to_owned(), nth, seen: Cell::new(0) })
        });
        if parsed.is_none() {
            tracing::error!(failpoint = text, "not understood; want before|after|error:NAME[#n|#*]");
        }
        parsed
    }

    /// As `kill -9` from outside: no destructor, no flush, no unwinding.
    fn die() -> ! {
        let _ = rustix::process::kill_process(rustix::process::getpid(), rustix::process::Signal::KILL);
        loop {
            std::thread::park();
        }
    }

    #[cfg(test)]
    mod tests {
        use super::*;

        #[test]
        fn a_point_hits_the_asked_occurrence_only() {
            let points = Failpoints::parse("error:A#2,error:B#*,before:nothing,garbage,after:x#0");
            assert_eq!(points.0.len(), 3);
            let a = [Entry::delete("Z", "k"), Entry::delete("A", "k")];
            assert_eq!([points.error(&a), points.error(&a), points.error(&a)], [false, true, false]);
            let b = [Entry::delete("B", "k")];
            assert!(points.error(&b) && points.error(&b));
            points.before(&a);
            points.after(&a);
        }
    }
}
