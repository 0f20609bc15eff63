//! Messages of agent.proto ↔ the engine's nouns. Everything that a peer says is bounded and parsed here, before anything
//! else sees it; what does not fit is `Invalid` (security.md, "Input"; failures.md row 13).

use std::time::Duration;

use bytes::Bytes;
use dotgraft_engine::filesystem::Offer;
use dotgraft_engine::format::Kind;
use dotgraft_engine::ids::{CommitId, Epoch, FsId, JobUid, NodeName, Timestamp};
use dotgraft_engine::model::{Commit, Problem, Reason, ResumeToken, Versions, VersionsRole};
use dotgraft_proto::agent::v1 as wire;
use dotgraft_proto::bounded::{MAX_LISTED_METADATA, MAX_METADATA, MAX_VERSIONS};
use wire::versions_response::Role;

use crate::actor::handle::{Frame, Reply};

/// Largest message of a commit, bytes.
pub const MAX_MESSAGE: usize = 4096;
/// Largest metadata key, bytes.
pub const MAX_KEY: usize = 253;
/// Largest metadata value, bytes.
pub const MAX_VALUE: usize = 1024;
/// Largest payload of one Data frame, bytes.
pub const MAX_FRAME: usize = 1 << 20;
/// A sender with nothing to send says so at least that often …
pub const ALIVE_EVERY: Duration = Duration::from_secs(10);
/// … and no more often than that, whatever the receiver wants.
const ALIVE_SHORTEST: Duration = Duration::from_millis(50);
/// Longest kernel release (`uname -r`), bytes.
const MAX_KERNEL: usize = 128;
/// A listing larger than that goes without messages and metadata: a plan is made from ids, parents and times.
const MAX_LISTING: usize = 8 << 20;
/// Largest listing on the wire, bytes: [`MAX_VERSIONS`] without messages and metadata fit.
pub const MAX_LISTING_WIRE: usize = 16 << 20;

pub(super) fn invalid(what: impl std::fmt::Display) -> Problem {
    Problem::new(Reason::Invalid, format!("malformed request: {what}"))
}

pub(super) fn parse<T: std::str::FromStr<Err: std::fmt::Display>>(text: &str) -> Result<T, Problem> {
    text.parse().map_err(invalid)
}

/// An empty text is "none".
pub(super) fn parse_optional<T: std::str::FromStr<Err: std::fmt::Display>>(text: &str) -> Result<Option<T>, Problem> {
    if text.is_empty() { Ok(None) } else { parse(text).map(Some) }
}

fn digest(bytes: &[u8]) -> Result<[u8; 32], Problem> {
    bytes.try_into().map_err(|_| invalid("a digest has 32 bytes"))
}

fn within(what: &str, len: usize, max: usize) -> Result<(), Problem> {
    if len > max { Err(invalid(format_args!("{what} is {len} long, at most {max} is allowed"))) } else { Ok(()) }
}

/// Which Filesystem, as a request names it.
///
/// # Errors
///
/// Text that is no id.
pub fn fs_id(text: &str) -> Result<FsId, Problem> {
    parse(text)
}

/// Which job, as a request names it.
///
/// # Errors
///
/// Text that is no UID.
pub fn job_uid(text: &str) -> Result<JobUid, Problem> {
    parse(text)
}

/// A commit, as an empty or full text names it.
///
/// # Errors
///
/// Text that is no id.
pub fn commit_id(text: &str) -> Result<Option<CommitId>, Problem> {
    parse_optional(text)
}

/// A commit of `fs`.
///
/// # Errors
///
/// A field that can't be read.
pub fn commit_from_wire(fs: FsId, v: wire::Version) -> Result<Commit, Problem> {
    within("the commit's message", v.message.len(), MAX_MESSAGE)?;
    within("the commit's metadata", v.metadata.len(), MAX_METADATA)?;
    for (key, value) in &v.metadata {
        within("a metadata key", key.len(), MAX_KEY)?;
        within("a metadata value", value.len(), MAX_VALUE)?;
    }
    // 0 is what a program wrote that had no version yet: 1.
    let version = v.format.max(1);
    Kind::Commit.check("a commit in a message", version).map_err(|e| e.problem())?;
    Ok(Commit {
        version,
        id: parse(&v.id)?,
        fs_id: parse_optional(&v.fs_id)?.unwrap_or(fs),
        parent: parse_optional(&v.parent)?,
        time: Timestamp(v.time_ms),
        epoch: Epoch(v.epoch),
        seq: v.seq,
        message: v.message,
        metadata: v.metadata.into_iter().collect(),
        kept: parse_optional(&v.kept)?,
        transient: v.transient,
        reset_to: parse_optional(&v.reset_to)?,
    })
}

/// The other way.
pub fn commit_to_wire(c: &Commit) -> wire::Version {
    wire::Version {
        id: c.id.to_string(),
        parent: c.parent.map(|p| p.to_string()).unwrap_or_default(),
        time_ms: c.time.0,
        epoch: c.epoch.0,
        message: c.message.clone(),
        metadata: c.metadata.clone().into_iter().collect(),
        fs_id: c.fs_id.to_string(),
        kept: c.kept.map(|k| k.to_string()).unwrap_or_default(),
        transient: c.transient,
        format: c.version,
        seq: c.seq,
        reset_to: c.reset_to.map(|to| to.to_string()).unwrap_or_default(),
    }
}

fn resume_from_wire(r: &wire::Resume) -> Result<ResumeToken, Problem> {
    Ok(ResumeToken {
        target: parse(&r.target)?,
        base: parse_optional(&r.base)?,
        offset: r.offset,
        prefix_digest: digest(&r.prefix_digest)?,
        stream_version: r.stream_version,
        kernel_release: kernel(&r.kernel_release)?,
    })
}

fn resume_to_wire(r: &ResumeToken) -> wire::Resume {
    wire::Resume {
        target: r.target.to_string(),
        base: r.base.map(|b| b.to_string()).unwrap_or_default(),
        offset: r.offset,
        prefix_digest: r.prefix_digest.to_vec(),
        stream_version: r.stream_version,
        kernel_release: r.kernel_release.clone(),
    }
}

fn kernel(text: &str) -> Result<String, Problem> {
    within("the kernel release", text.len(), MAX_KERNEL)?;
    if text.bytes().all(|b| b.is_ascii_graphic()) { Ok(text.to_owned()) } else { Err(invalid("a kernel release is printable ASCII")) }
}

/// An offer from the node that the certificate names.
///
/// # Errors
///
/// A field that is missing or can't be read.
pub fn offer_from_wire(o: wire::Offer, from: NodeName) -> Result<(FsId, Offer), Problem> {
    let fs = fs_id(&o.fs_id)?;
    let target = o.target.ok_or_else(|| invalid("an offer without target"))?;
    let offer = Offer {
        target: commit_from_wire(fs, target)?,
        base: parse_optional(&o.base)?,
        job: parse(&o.job_uid)?,
        run_id: uuid::Uuid::try_parse(&o.run_id).map_err(|_| invalid("the run id is not a UUID"))?,
        epoch: Epoch(o.epoch),
        expected: Some(o.expected_bytes).filter(|n| *n > 0),
        stream_version: o.stream_version,
        kernel_release: kernel(&o.kernel_release)?,
        resume: o.resume.as_ref().map(resume_from_wire).transpose()?,
        from,
    };
    if offer.base == Some(offer.target.id) {
        return Err(invalid("a commit can't be its own base"));
    }
    Ok((fs, offer))
}

/// The other way; `from` is left to the certificate.
pub fn offer_to_wire(fs: FsId, o: &Offer) -> wire::Offer {
    wire::Offer {
        fs_id: fs.to_string(),
        job_uid: o.job.to_string(),
        run_id: o.run_id.to_string(),
        epoch: o.epoch.0,
        base: o.base.map(|b| b.to_string()).unwrap_or_default(),
        target: Some(commit_to_wire(&o.target)),
        expected_bytes: o.expected.unwrap_or_default(),
        stream_version: o.stream_version,
        kernel_release: o.kernel_release.clone(),
        resume: o.resume.as_ref().map(resume_to_wire),
    }
}

/// A frame after the offer.
///
/// # Errors
///
/// An offer in mid-stream, an empty message, or a frame over [`MAX_FRAME`].
pub fn frame_from_wire(m: wire::ReceiveRequest) -> Result<Frame, Problem> {
    use wire::receive_request::Message as M;
    match m.message {
        Some(M::Data(data)) if data.is_empty() => Err(invalid("an empty frame")),
        Some(M::Data(data)) => within("a frame", data.len(), MAX_FRAME).map(|()| Frame::Data(data)),
        Some(M::Alive(wire::Alive {})) => Ok(Frame::Alive),
        Some(M::End(end)) => Ok(Frame::End { bytes: end.bytes, digest: digest(&end.digest)? }),
        Some(M::Offer(_)) => Err(invalid("a second offer in one stream")),
        None => Err(invalid("an empty message")),
    }
}

/// The offer that starts a stream.
///
/// # Errors
///
/// Anything but an offer that can be read.
pub fn first_from_wire(m: wire::ReceiveRequest, from: NodeName) -> Result<(FsId, Offer), Problem> {
    match m.message {
        Some(wire::receive_request::Message::Offer(offer)) => offer_from_wire(offer, from),
        _ => Err(invalid("a stream starts with an offer")),
    }
}

/// A Data message.
pub fn data_to_wire(data: Bytes) -> wire::ReceiveRequest {
    wire::ReceiveRequest { message: Some(wire::receive_request::Message::Data(data)) }
}

/// A sign of life, for a receiver that asked for it ([`alive_wanted`]).
pub fn alive_to_wire() -> wire::ReceiveRequest {
    wire::ReceiveRequest { message: Some(wire::receive_request::Message::Alive(wire::Alive {})) }
}

/// Says in an `Accepted` that this receiver takes `Alive`, and how often it wants one. Other answers stay as they are.
pub fn want_alive(answer: &mut wire::ReceiveResponse, every: Duration) {
    if let Some(wire::receive_response::Message::Accepted(accepted)) = &mut answer.message {
        accepted.alive_ms = u64::try_from(every.as_millis()).unwrap_or(u64::MAX).max(1);
    }
}

/// How often the receiver wants an `Alive`, within what is sensible; `None`: it must not be sent one. A receiver that does not know
/// `Alive` takes it for an empty message and ends the stream for good.
pub fn alive_wanted(answer: &wire::ReceiveResponse) -> Option<Duration> {
    match &answer.message {
        Some(wire::receive_response::Message::Accepted(a)) if a.alive_ms > 0 => {
            Some(Duration::from_millis(a.alive_ms).clamp(ALIVE_SHORTEST, ALIVE_EVERY))
        }
        _ => None,
    }
}

/// An answer of the actor: a message, or the problem that ends the stream.
///
/// # Errors
///
/// The problem of a [`Reply::Refused`].
pub fn reply_to_wire(reply: Reply) -> Result<wire::ReceiveResponse, Problem> {
    use wire::receive_response::Message as M;
    let message = match reply {
        Reply::Accepted { offset } => M::Accepted(wire::Accepted { offset, alive_ms: 0 }),
        Reply::Durable { offset } => M::Durable(wire::Durable { offset }),
        Reply::Stored { commit, already } => M::Stored(wire::Stored { commit: commit.to_string(), already }),
        Reply::Refused(problem) => return Err(problem),
    };
    Ok(wire::ReceiveResponse { message: Some(message) })
}

/// The other way; `Refused` never comes as a message.
///
/// # Errors
///
/// An empty message, or one that can't be read.
pub fn reply_from_wire(m: wire::ReceiveResponse) -> Result<Reply, Problem> {
    use wire::receive_response::Message as M;
    Ok(match m.message {
        Some(M::Accepted(a)) => Reply::Accepted { offset: a.offset },
        Some(M::Durable(d)) => Reply::Durable { offset: d.offset },
        Some(M::Stored(s)) => Reply::Stored { commit: parse(&s.commit)?, already: s.already },
        None => return Err(invalid("an empty answer")),
    })
}

/// A listing for a peer.
pub fn versions_to_wire(v: &Versions) -> wire::VersionsResponse {
    let role = match v.role {
        VersionsRole::Absent => Role::Absent,
        VersionsRole::Replica => Role::Replica,
        VersionsRole::Owner => Role::Owner,
        VersionsRole::Deleting => Role::Deleting,
    };
    let mut versions: Vec<_> = v.commits.iter().map(commit_to_wire).collect();
    let bytes: usize = versions.iter().map(prost::Message::encoded_len).sum();
    let entries: usize = versions.iter().map(|v| v.metadata.len()).sum();
    if bytes > MAX_LISTING || entries > MAX_LISTED_METADATA {
        for version in &mut versions {
            version.message.clear();
            version.metadata.clear();
        }
    }
    wire::VersionsResponse {
        role: role.into(),
        epoch: v.epoch.0,
        versions,
        resume: v.resume.as_ref().map(resume_to_wire),
        free_bytes: v.free_bytes,
        stream_version: v.stream_version,
        takes_older: v.takes_older,
    }
}

/// A peer's listing of `fs`.
///
/// # Errors
///
/// A field that can't be read.
pub fn versions_from_wire(fs: FsId, v: wire::VersionsResponse) -> Result<Versions, Problem> {
    let role = match v.role() {
        Role::Absent => VersionsRole::Absent,
        Role::Replica => VersionsRole::Replica,
        Role::Owner => VersionsRole::Owner,
        Role::Deleting => VersionsRole::Deleting,
        Role::Unspecified => return Err(invalid("a listing without a role that is known here")),
    };
    within("the listing", v.versions.len(), MAX_VERSIONS)?;
    Ok(Versions {
        role,
        epoch: Epoch(v.epoch),
        commits: v.versions.into_iter().map(|c| commit_from_wire(fs, c)).collect::<Result<_, _>>()?,
        resume: v.resume.as_ref().map(resume_from_wire).transpose()?,
        free_bytes: v.free_bytes,
        stream_version: v.stream_version,
        takes_older: v.takes_older,
    })
}

#[cfg(test)]
#[path = "convert_tests.rs"]
mod tests;
