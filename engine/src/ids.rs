//! Names of things, parsed once at the edge so that the rest of the code can trust them.
//!
//! `FsId` and `CommitId` are UUIDv7 that we generate: the same in every cluster and on every disk
//! (design §1). All of them print as lower-case hyphenated UUIDs and are safe as one path component.

use std::cell::Cell;
use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use uuid::Uuid;

/// Why a text is not an id of ours.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{text}` is not a valid {what}: {why}")]
pub struct IdError {
    /// What was being parsed.
    pub what: &'static str,
    /// The offending text, cut to 80 characters.
    pub text: String,
    /// What is wrong with it.
    pub why: &'static str,
}

fn id_error(what: &'static str, text: &str, why: &'static str) -> IdError {
    IdError { what, text: text.chars().take(80).collect(), why }
}

macro_rules! uuid_id {
    ($(#[$doc:meta])* $name:ident, $what:literal) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(try_from = "String", into = "String")]
        pub struct $name(Uuid);

        impl $name {
            /// Takes 16 bytes of a UUID that the caller made.
            pub const fn from_uuid(uuid: Uuid) -> Self {
                Self(uuid)
            }
            /// The UUID itself.
            pub const fn uuid(self) -> Uuid {
                self.0
            }
        }
        impl FromStr for $name {
            type Err = IdError;
            /// Accepts the lower-case hyphenated form only: one name, one spelling, one path.
            fn from_str(s: &str) -> Result<Self, IdError> {
                let uuid = Uuid::try_parse(s).map_err(|_| id_error($what, s, "not a UUID"))?;
                if uuid.as_hyphenated().to_string() != s {
                    return Err(id_error($what, s, "not in lower-case hyphenated form"));
                }
                if uuid.is_nil() {
                    return Err(id_error($what, s, "the nil UUID names nothing"));
                }
                Ok(Self(uuid))
            }
        }
        impl TryFrom<String> for $name {
            type Error = IdError;
            fn try_from(s: String) -> Result<Self, IdError> {
                s.parse()
            }
        }
        impl From<$name> for String {
            fn from(id: $name) -> Self {
                id.to_string()
            }
        }
        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.as_hyphenated().fmt(f)
            }
        }
        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Display::fmt(self, f)
            }
        }
    };
}

uuid_id!(
    /// Names a Filesystem, everywhere and for ever; never reused.
    FsId, "filesystem id");
uuid_id!(
    /// Names a commit; the same on every node and in every cluster.
    CommitId, "commit id");
uuid_id!(
    /// Names a pool: the btrfs filesystem UUID of one agent's disk.
    PoolId, "pool id");
uuid_id!(
    /// The kernel's boot id (`/proc/sys/kernel/random/boot_id`): an opening lasts for one boot.
    BootId, "boot id");
uuid_id!(
    /// Names one handoff of authority from node to node.
    MigId, "migration id");
uuid_id!(
    /// UID of the ReplicationJob object that owns a run, a cursor or a pin.
    JobUid, "job uid");
uuid_id!(
    /// UID of a Commit object: the key under which a wanted commit is made only once.
    RequestUid, "request uid");

/// Name of a Kubernetes node (RFC 1123 subdomain, at most 253 bytes).
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct NodeName(String);

impl NodeName {
    /// The name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}
impl FromStr for NodeName {
    type Err = IdError;
    fn from_str(s: &str) -> Result<Self, IdError> {
        let label = |l: &str| {
            !l.is_empty()
                && !l.starts_with('-')
                && !l.ends_with('-')
                && l.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-')
        };
        if s.len() > 253 {
            return Err(id_error("node name", s, "longer than 253 bytes"));
        }
        if !s.split('.').all(label) {
            return Err(id_error("node name", s, "not an RFC 1123 subdomain"));
        }
        Ok(Self(s.to_owned()))
    }
}
impl TryFrom<String> for NodeName {
    type Error = IdError;
    fn try_from(s: String) -> Result<Self, IdError> {
        s.parse()
    }
}
impl From<NodeName> for String {
    fn from(n: NodeName) -> Self {
        n.0
    }
}
impl fmt::Display for NodeName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}
impl fmt::Debug for NodeName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Counts changes of authority over a Filesystem; only grows (design §1).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Epoch(pub u64);

impl fmt::Display for Epoch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// Wall-clock time, Unix milliseconds: for people, schedules and the time of a commit. It may jump either way, and differs from node to
/// node; no deadline, backoff or freshness goes by it (that is [`BootTime`]), and it never decides who owns what.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Timestamp(pub i64);

impl Timestamp {
    /// This time plus `ms` milliseconds, saturating.
    #[must_use]
    pub const fn plus_ms(self, ms: u64) -> Self {
        #[allow(clippy::cast_possible_wrap)] // clamped to i64::MAX right here
        let ms = if ms > i64::MAX as u64 { i64::MAX } else { ms as i64 };
        Self(self.0.saturating_add(ms))
    }
    /// Milliseconds from `earlier` to this; 0 if the clock went back.
    #[must_use]
    pub fn since_ms(self, earlier: Self) -> u64 {
        u64::try_from(self.0.saturating_sub(earlier.0)).unwrap_or(0)
    }
}

/// Milliseconds since this node booted (`CLOCK_BOOTTIME` of `clock_gettime(2)`): it goes on while the node is suspended, nobody can set it,
/// and it never goes back. Deadlines, backoff and freshness go by it. A boot ends, so none of it is stored: it is not serialisable.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct BootTime(pub u64);

impl BootTime {
    /// This time plus `ms` milliseconds, saturating.
    #[must_use]
    pub const fn plus_ms(self, ms: u64) -> Self {
        Self(self.0.saturating_add(ms))
    }
    /// Milliseconds from `earlier` to this; 0 if `earlier` is later.
    #[must_use]
    pub const fn since_ms(self, earlier: Self) -> u64 {
        self.0.saturating_sub(earlier.0)
    }
}

/// Both clocks at one moment: what is shown takes `wall`, what is waited for takes `boot`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Now {
    /// For people.
    pub wall: Timestamp,
    /// For deadlines.
    pub boot: BootTime,
}

impl Now {
    /// The moment `ms` milliseconds later, if nobody sets the wall clock in between.
    #[must_use]
    pub const fn plus_ms(self, ms: u64) -> Self {
        Self { wall: self.wall.plus_ms(ms), boot: self.boot.plus_ms(ms) }
    }
}

/// New names, as many as one event asks for. The shell fills it with one fresh UUIDv7; the first name is that, the others have its time
/// and other random bits, so the same seed gives the same names.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fresh {
    seed: Uuid,
    drawn: Cell<u64>,
}

impl Fresh {
    /// From a UUIDv7 that the shell made for this event and uses for nothing else.
    pub const fn new(seed: Uuid) -> Self {
        Self { seed, drawn: Cell::new(0) }
    }

    /// A UUIDv7 that no other call gives.
    pub fn uuid(&self) -> Uuid {
        let nth = self.drawn.get();
        self.drawn.set(nth.wrapping_add(1));
        let (time, random) = self.seed.as_u64_pair();
        if nth == 0 {
            return self.seed;
        }
        Uuid::from_u64_pair(time, random & !RANDOM | mixed(random.wrapping_add(nth.wrapping_mul(GOLDEN))) & RANDOM)
    }
}

/// The low 62 bits of a UUIDv7 are random (RFC 9562 §5.7, `rand_b`); the two above them are the variant.
const RANDOM: u64 = (1 << 62) - 1;
/// The step of `SplitMix64`, and its output function.
const GOLDEN: u64 = 0x9E37_79B9_7F4A_7C15;
const fn mixed(word: u64) -> u64 {
    let z = (word ^ (word >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    let z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    z ^ (z >> 31)
}

/// One operation of one incarnation of a Filesystem: an event with a stale one is dropped (design §4).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct OpId {
    /// Incarnation of the in-memory state; grows at every `recover`.
    pub generation: u64,
    /// Running number within it.
    pub seq: u64,
}

impl fmt::Display for OpId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.generation, self.seq)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_has_one_spelling() {
        let ok = "0198c2a5-7f00-7000-8000-000000000001";
        assert_eq!(ok.parse::<FsId>().unwrap().to_string(), ok);
        assert!(ok.to_uppercase().replace('-', "").parse::<FsId>().is_err());
        assert!("00000000-0000-0000-0000-000000000000".parse::<FsId>().is_err());
        assert!("../etc".parse::<CommitId>().is_err());
    }

    #[test]
    fn node_names_are_subdomains() {
        for good in ["n1", "ip-10-0-0-1.ec2.internal"] {
            assert!(good.parse::<NodeName>().is_ok(), "{good}");
        }
        for bad in ["", "N1", "a/b", "-a", "a.", "a..b"] {
            assert!(bad.parse::<NodeName>().is_err(), "{bad}");
        }
        assert!("a".repeat(254).parse::<NodeName>().is_err());
    }

    #[test]
    fn one_seed_gives_many_names_and_the_same_ones_again() {
        let seed: Uuid = "0198c2a5-7f00-7000-8000-000000000001".parse().unwrap();
        let draw = || {
            let fresh = Fresh::new(seed);
            (0..1_000).map(|_| fresh.uuid()).collect::<Vec<_>>()
        };
        let names = draw();
        assert_eq!(names[0], seed);
        assert_eq!(names, draw());
        assert_eq!(names.iter().collect::<std::collections::BTreeSet<_>>().len(), names.len());
        for name in names {
            assert_eq!((name.get_version_num(), name.as_u64_pair().0), (7, seed.as_u64_pair().0));
            assert_eq!(name.get_variant(), uuid::Variant::RFC4122);
        }
    }

    #[test]
    fn time_never_underflows() {
        assert_eq!(Timestamp(5).since_ms(Timestamp(9)), 0);
        assert_eq!(BootTime(5).since_ms(BootTime(9)), 0);
        assert_eq!(BootTime(5).plus_ms(u64::MAX).0, u64::MAX);
        assert_eq!(Timestamp(i64::MAX).plus_ms(u64::MAX).0, i64::MAX);
    }
}
