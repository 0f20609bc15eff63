//! Authority between the object and the engine: `Filesystem.status` as [`dotgraft_engine::authority::Read`], and back. Agent, operator and
//! tests read and write it by this alone.

use std::fmt::Display;
use std::str::FromStr;

use dotgraft_engine::authority as engine;
use dotgraft_engine::ids::Epoch;
use dotgraft_engine::model;
use kube::ResourceExt;

use crate::common::Place;
use crate::filesystem::{Authority, Filesystem, FilesystemPhase, ForkPoint, Opened, Pending};

/// A status that doesn't make sense to this program. It is an error, never a default: a wrong guess opens two heads.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("status.authority can't be understood: {what}: {why}")]
pub struct Malformed {
    /// Which field.
    pub what: &'static str,
    /// Why.
    pub why: String,
}

fn parse<T: FromStr<Err: Display>>(what: &'static str, text: &str) -> Result<T, Malformed> {
    text.parse().map_err(|e: T::Err| Malformed { what, why: e.to_string() })
}

/// What a read of the object shows. The caller has made sure that `status.phase` was said: the type's default is `New`.
///
/// # Errors
///
/// [`Malformed`], if an id or a node's name isn't one.
pub fn read(fs: &Filesystem) -> Result<engine::Read, Malformed> {
    let status = fs.status.as_ref();
    let authority = status.and_then(|s| s.authority.as_ref()).map(engine::Authority::try_from).transpose()?;
    let version = fs.resource_version().and_then(|v| v.parse().ok());
    Ok(engine::Read { phase: status.map(|s| s.phase).unwrap_or_default().into(), authority, version })
}

impl From<FilesystemPhase> for engine::Phase {
    fn from(phase: FilesystemPhase) -> Self {
        match phase {
            FilesystemPhase::New => Self::New,
            FilesystemPhase::Active => Self::Active,
            FilesystemPhase::Released => Self::Released,
            FilesystemPhase::Headless => Self::Headless,
            FilesystemPhase::Deleting => Self::Deleting,
        }
    }
}

impl TryFrom<&Place> for model::Place {
    type Error = Malformed;
    fn try_from(p: &Place) -> Result<Self, Malformed> {
        Ok(Self { node: parse("node", &p.node)?, pool: parse("pool", &p.pool)? })
    }
}

impl From<&model::Place> for Place {
    fn from(p: &model::Place) -> Self {
        Self { node: p.node.to_string(), pool: p.pool.to_string() }
    }
}

impl TryFrom<&Authority> for engine::Authority {
    type Error = Malformed;
    fn try_from(a: &Authority) -> Result<Self, Malformed> {
        Ok(Self {
            owner: (&a.owner).try_into()?,
            epoch: Epoch(a.epoch),
            attempt: a.attempt,
            opened: a.opened.as_ref().map(engine::Opened::try_from).transpose()?,
            pending: a.pending.as_ref().map(engine::Pending::try_from).transpose()?,
            fork_points: a.fork_points.iter().map(engine::ForkPoint::try_from).collect::<Result<_, _>>()?,
        })
    }
}

impl From<&engine::Authority> for Authority {
    fn from(a: &engine::Authority) -> Self {
        let pending = |p: &engine::Pending| Pending {
            mig: p.mig.to_string(),
            attempt: p.attempt,
            to: (&p.to).into(),
            final_commit: p.final_commit.to_string(),
        };
        let fork = |f: &engine::ForkPoint| ForkPoint {
            from: (&f.from).into(),
            from_epoch: f.from_epoch.0,
            commit: f.commit.map(|c| c.to_string()),
        };
        Self {
            owner: (&a.owner).into(),
            epoch: a.epoch.0,
            attempt: a.attempt,
            opened: a.opened.map(|o| Opened { epoch: o.epoch.0, boot_id: o.boot.to_string() }),
            pending: a.pending.as_ref().map(pending),
            fork_points: a.fork_points.iter().map(fork).collect(),
        }
    }
}

impl TryFrom<&Opened> for engine::Opened {
    type Error = Malformed;
    fn try_from(o: &Opened) -> Result<Self, Malformed> {
        Ok(Self { epoch: Epoch(o.epoch), boot: parse("opened.bootId", &o.boot_id)? })
    }
}

impl TryFrom<&Pending> for engine::Pending {
    type Error = Malformed;
    fn try_from(p: &Pending) -> Result<Self, Malformed> {
        let final_commit = parse("pending.finalCommit", &p.final_commit)?;
        Ok(Self { mig: parse("pending.mig", &p.mig)?, attempt: p.attempt, to: (&p.to).try_into()?, final_commit })
    }
}

impl TryFrom<&ForkPoint> for engine::ForkPoint {
    type Error = Malformed;
    fn try_from(f: &ForkPoint) -> Result<Self, Malformed> {
        let commit = f.commit.as_deref().map(|c| parse("forkPoints.commit", c)).transpose()?;
        Ok(Self { from: (&f.from).try_into()?, from_epoch: Epoch(f.from_epoch), commit })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn authority_survives_the_way_there_and_back_and_nonsense_is_an_error() {
        let id = "0198c2a5-7f00-7000-8000-000000000001".to_owned();
        let place = Place { node: "n1".into(), pool: id.clone() };
        let whole = Authority {
            owner: place.clone(),
            epoch: 7,
            attempt: 3,
            opened: Some(Opened { epoch: 6, boot_id: id.clone() }),
            pending: Some(Pending {
                mig: id.clone(),
                attempt: 3,
                to: Place { node: "n2".into(), ..place.clone() },
                final_commit: id.clone(),
            }),
            fork_points: vec![ForkPoint { from: place, from_epoch: 5, commit: Some(id) }],
        };
        assert_eq!(Authority::from(&engine::Authority::try_from(&whole).unwrap()), whole);
        let breaks: [fn(&mut Authority); 6] = [
            |a| a.owner.node = "Not A Node".into(),
            |a| a.owner.pool = "x".into(),
            |a| a.opened.as_mut().unwrap().boot_id = String::new(),
            |a| a.pending.as_mut().unwrap().mig = "x".into(),
            |a| a.pending.as_mut().unwrap().to.pool = "x".into(),
            |a| a.fork_points[0].commit = Some("x".into()),
        ];
        for change in breaks {
            let mut broken = whole.clone();
            change(&mut broken);
            assert!(engine::Authority::try_from(&broken).is_err(), "{broken:?}");
        }
    }
}
