//! Parameters of a `StorageClass` and of a `VolumeAttributesClass`, and sizes: read once, refused by name.

use std::collections::HashMap;

use dotgraft_api::{DeletionPolicy, Fencing, parse_quantity};
use dotgraft_proto::csi::v1::CapacityRange;
use serde_json::json;

use super::error::CsiError;

/// Pool group of the volume.
pub const POOL_GROUP: &str = "dotgraft.dev/pool-group";
/// Read-only copies on other nodes, 0 to 7. Mutable.
pub const REPLICAS: &str = "dotgraft.dev/replicas";
/// Most that commits may take beyond the files. Mutable.
pub const HISTORY_LIMIT: &str = "dotgraft.dev/history-limit";
/// `Proof` or `Manual`.
pub const FENCING: &str = "dotgraft.dev/fencing";
/// `Delete`, `Cascade` or `Retain`: what `DeleteVolume` does with Branches and data.
pub const DELETION_POLICY: &str = "dotgraft.dev/deletion-policy";
/// Namespace of the Dot where the call names no PVC.
pub const NAMESPACE: &str = "dotgraft.dev/namespace";

const OURS: &str = "dotgraft.dev/";
const SIDECARS: &str = "csi.storage.k8s.io/";
const PVC_NAME: &str = "csi.storage.k8s.io/pvc/name";
const PVC_NAMESPACE: &str = "csi.storage.k8s.io/pvc/namespace";
/// Most parameters in a call.
const MOST: usize = 64;
/// Longest value, in bytes: a name of Kubernetes.
const VALUE_MAX: usize = 253;
/// Most copies beside the owner.
const REPLICAS_MAX: u32 = 7;

/// Smallest volume.
pub const SIZE_MIN: u64 = 1 << 20;
/// Largest volume.
pub const SIZE_MAX: u64 = 1 << 60;
/// Size of a volume for which none is asked.
pub const SIZE_DEFAULT: u64 = 1 << 30;

/// What can be changed later (`ControllerModifyVolume`).
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Mutable {
    /// Read-only copies.
    pub replicas: Option<u32>,
    /// Most that commits may take, as an amount of bytes.
    pub history_limit: Option<String>,
}

/// What a `StorageClass` says, and for whom the volume is.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Parameters {
    /// Pool group.
    pub pool_group: Option<String>,
    /// When authority may leave a lost owner.
    pub fencing: Fencing,
    /// What becomes of Branches and data on deletion.
    pub deletion_policy: DeletionPolicy,
    /// Namespace where no PVC is named.
    pub namespace: Option<String>,
    /// Namespace and name of the PVC.
    pub pvc: Option<(String, String)>,
    /// What can be changed later.
    pub mutable: Mutable,
}

fn invalid(key: &str, value: &str, want: &str) -> CsiError {
    CsiError::Invalid(format!("parameter {key}: `{value}` is not {want}"))
}

fn bounded(all: &HashMap<String, String>) -> Result<(), CsiError> {
    if all.len() > MOST || all.iter().any(|(k, v)| k.len() > VALUE_MAX || v.len() > VALUE_MAX) {
        return Err(CsiError::Invalid(format!("more than {MOST} parameters, or one longer than {VALUE_MAX} bytes")));
    }
    Ok(())
}

/// Whether this is a name of a namespace (RFC 1123 label).
pub fn is_namespace(text: &str) -> bool {
    is_name(text) && text.len() <= 63 && !text.contains('.')
}

/// Whether this is a name of an object (RFC 1123 subdomain).
pub fn is_name(text: &str) -> bool {
    let label = |l: &str| {
        let inner = l.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-');
        !l.is_empty() && inner && !l.starts_with('-') && !l.ends_with('-')
    };
    text.len() <= 253 && text.split('.').all(label)
}

impl Mutable {
    fn set(&mut self, key: &str, value: &str) -> Result<bool, CsiError> {
        match key {
            REPLICAS => {
                let number = value.parse().ok().filter(|n| *n <= REPLICAS_MAX);
                self.replicas = Some(number.ok_or_else(|| invalid(key, value, "a number from 0 to 7"))?);
            }
            HISTORY_LIMIT => {
                let fits = parse_quantity(value).is_ok_and(|n| (SIZE_MIN..=SIZE_MAX).contains(&n));
                if !fits {
                    return Err(invalid(key, value, "an amount of bytes from 1Mi to 1Ei"));
                }
                self.history_limit = Some(value.to_owned());
            }
            _ => return Ok(false),
        }
        Ok(true)
    }

    /// From `mutable_parameters`: nothing else can be changed.
    ///
    /// # Errors
    ///
    /// `INVALID_ARGUMENT`, or `OUT_OF_RANGE` for a range that can't be met, by name of what is wrong.
    pub fn read(all: &HashMap<String, String>) -> Result<Self, CsiError> {
        bounded(all)?;
        let mut out = Self::default();
        for (key, value) in all {
            if !out.set(key, value)? && !key.starts_with(SIDECARS) {
                return Err(CsiError::Invalid(format!("parameter {key} can't be changed: only {REPLICAS} and {HISTORY_LIMIT} can")));
            }
        }
        Ok(out)
    }

    /// This, with what `over` says instead.
    fn overlaid(self, over: Self) -> Self {
        Self { replicas: over.replicas.or(self.replicas), history_limit: over.history_limit.or(self.history_limit) }
    }
}

impl Parameters {
    /// From `parameters` and `mutable_parameters`. Parameters of the sidecars are theirs; a word of ours that we don't know is
    /// refused, and so is any other: it would silently do nothing.
    ///
    /// # Errors
    ///
    /// `INVALID_ARGUMENT`, or `OUT_OF_RANGE` for a range that can't be met, by name of what is wrong.
    pub fn read(all: &HashMap<String, String>, mutable: &HashMap<String, String>) -> Result<Self, CsiError> {
        bounded(all)?;
        let mut out = Self::default();
        for (key, value) in all {
            match key.as_str() {
                POOL_GROUP => out.pool_group = Some(value.clone()),
                FENCING => out.fencing = fencing(value)?,
                DELETION_POLICY => out.deletion_policy = deletion_policy(value)?,
                NAMESPACE if is_namespace(value) => out.namespace = Some(value.clone()),
                NAMESPACE => return Err(invalid(key, value, "the name of a namespace")),
                k if k.starts_with(SIDECARS) => {}
                k if out.mutable.set(k, value)? => {}
                k if k.starts_with(OURS) => return Err(CsiError::Invalid(format!("there is no parameter {k}"))),
                k => return Err(CsiError::Invalid(format!("there is no parameter {k}: those of this driver begin with {OURS}"))),
            }
        }
        if let (Some(namespace), Some(name)) = (all.get(PVC_NAMESPACE), all.get(PVC_NAME)) {
            if !is_namespace(namespace) || !is_name(name) {
                return Err(CsiError::Invalid(format!("`{namespace}/{name}` is not the name of a PVC")));
            }
            out.pvc = Some((namespace.clone(), name.clone()));
        }
        out.mutable = std::mem::take(&mut out.mutable).overlaid(Mutable::read(mutable)?);
        Ok(out)
    }

    /// What must be the same in every call of one name, as text: same name, other parameters is `ALREADY_EXISTS`.
    pub fn fixed(&self, source: Option<&str>) -> String {
        json!({
            "poolGroup": self.pool_group, "fencing": self.fencing, "deletionPolicy": self.deletion_policy,
            "replicas": self.mutable.replicas, "historyLimit": self.mutable.history_limit, "source": source,
        })
        .to_string()
    }
}

fn fencing(value: &str) -> Result<Fencing, CsiError> {
    match value {
        "Proof" => Ok(Fencing::Proof),
        "Manual" => Ok(Fencing::Manual),
        _ => Err(invalid(FENCING, value, "Proof or Manual")),
    }
}

fn deletion_policy(value: &str) -> Result<DeletionPolicy, CsiError> {
    match value {
        "Delete" => Ok(DeletionPolicy::Delete),
        "Cascade" => Ok(DeletionPolicy::Cascade),
        "Retain" => Ok(DeletionPolicy::Retain),
        _ => Err(invalid(DELETION_POLICY, value, "Delete, Cascade or Retain")),
    }
}

/// A range of sizes, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Sizes {
    /// At least.
    pub required: u64,
    /// At most; `None`: no bound of the caller.
    pub limit: Option<u64>,
}

impl Sizes {
    /// From a call; zero means "not said" in both fields.
    ///
    /// # Errors
    ///
    /// `INVALID_ARGUMENT`, or `OUT_OF_RANGE` for a range that can't be met, by name of what is wrong.
    pub fn read(range: Option<&CapacityRange>) -> Result<Self, CsiError> {
        let range = range.copied().unwrap_or_default();
        let bytes = |n: i64| u64::try_from(n).map_err(|_| CsiError::Invalid("a negative size".into()));
        let (required, limit) = (bytes(range.required_bytes)?, bytes(range.limit_bytes)?);
        if limit > 0 && required > limit {
            return Err(CsiError::Invalid(format!("required_bytes {required} is more than limit_bytes {limit}")));
        }
        if required > SIZE_MAX || (limit > 0 && limit < SIZE_MIN) {
            return Err(CsiError::OutOfRange(format!("a volume has from {SIZE_MIN} to {SIZE_MAX} bytes")));
        }
        Ok(Self { required, limit: (limit > 0).then_some(limit) })
    }

    /// The size of a new volume, where `usual` is taken if none is asked for.
    pub fn choose(self, usual: u64) -> u64 {
        let want = if self.required == 0 { usual } else { self.required.max(SIZE_MIN) };
        self.limit.map_or(want, |limit| want.min(limit))
    }

    /// Whether a volume of that size is what was asked for.
    pub fn fits(self, size: u64) -> bool {
        size >= self.required && self.limit.is_none_or(|limit| size <= limit)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn map(pairs: &[(&str, &str)]) -> HashMap<String, String> {
        pairs.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect()
    }
    fn read(pairs: &[(&str, &str)]) -> Result<Parameters, CsiError> {
        Parameters::read(&map(pairs), &HashMap::new())
    }

    #[test]
    fn every_parameter_is_read() {
        let p = read(&[
            (POOL_GROUP, "ssd"),
            (REPLICAS, "2"),
            (HISTORY_LIMIT, "5Gi"),
            (FENCING, "Manual"),
            (DELETION_POLICY, "Retain"),
            (PVC_NAME, "data"),
            (PVC_NAMESPACE, "team"),
            ("csi.storage.k8s.io/pv/name", "pvc-1"),
        ])
        .unwrap();
        assert_eq!((p.pool_group.as_deref(), p.fencing, p.deletion_policy), (Some("ssd"), Fencing::Manual, DeletionPolicy::Retain));
        assert_eq!((p.mutable.replicas, p.mutable.history_limit.as_deref()), (Some(2), Some("5Gi")));
        assert_eq!(p.pvc, Some(("team".into(), "data".into())));
    }

    #[test]
    fn what_is_not_known_or_not_allowed_is_refused_by_name() {
        for (key, value) in [
            ("dotgraft.dev/replica", "1"),
            ("type", "ssd"),
            (REPLICAS, "8"),
            (REPLICAS, "-1"),
            (HISTORY_LIMIT, "1k"),
            (HISTORY_LIMIT, "x"),
            (FENCING, "Automatic"),
            (DELETION_POLICY, "delete"),
            (NAMESPACE, "Team"),
        ] {
            let e = read(&[(key, value)]).unwrap_err();
            assert!(matches!(&e, CsiError::Invalid(m) if m.contains(key)), "{key}={value}: {e}");
        }
        assert!(read(&[(PVC_NAME, "../x"), (PVC_NAMESPACE, "team")]).is_err());
    }

    #[test]
    fn mutable_parameters_win_and_only_two_are_there() {
        let p = Parameters::read(&map(&[(REPLICAS, "1"), (HISTORY_LIMIT, "1Gi")]), &map(&[(REPLICAS, "3")])).unwrap();
        assert_eq!((p.mutable.replicas, p.mutable.history_limit.as_deref()), (Some(3), Some("1Gi")));
        assert!(Mutable::read(&map(&[(FENCING, "Manual")])).is_err());
    }

    #[test]
    fn sizes_are_rounded_into_what_can_be_had() {
        let sizes = |required, limit| Sizes::read(Some(&CapacityRange { required_bytes: required, limit_bytes: limit }));
        assert_eq!(sizes(0, 0).unwrap().choose(SIZE_DEFAULT), SIZE_DEFAULT);
        assert_eq!(Sizes::read(None).unwrap().choose(7 << 30), 7 << 30);
        assert_eq!(sizes(1, 0).unwrap().choose(SIZE_DEFAULT), SIZE_MIN);
        assert_eq!(sizes(0, 2 << 20).unwrap().choose(SIZE_DEFAULT), 2 << 20);
        assert!(matches!(sizes(5, 4), Err(CsiError::Invalid(_))));
        assert!(matches!(sizes(-1, 0), Err(CsiError::Invalid(_))));
        assert!(matches!(sizes(0, 1000), Err(CsiError::OutOfRange(_))));
        assert!(matches!(sizes(i64::MAX, 0), Err(CsiError::OutOfRange(_))));
        let range = Sizes { required: 10, limit: Some(20) };
        assert!(range.fits(20) && !range.fits(21) && !range.fits(9));
    }
}
