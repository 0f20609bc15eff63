//! The CRDs: what the derives make, refined so that the API server reads them as we mean them. `crdgen` writes them to `crds/`,
//! the operator embeds and applies them.
//!
//! Each carries a version, [`VERSION`], that `crdgen` counts up whenever what it writes has changed. CRDs only go forward (csi.md §2):
//! [`judge`] says what a program is to think of the one that a cluster has.

use std::fmt;

use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::{
    CustomResourceDefinition, JSONSchemaProps, JSONSchemaPropsOrArray, JSONSchemaPropsOrBool,
};
use kube::CustomResourceExt;

use crate::{Branch, Commit, Dot, DotOperation, Filesystem, NodePool, Replica, ReplicationJob};

/// The annotation of a CRD that holds its version: a number, 1 for the first.
pub const VERSION: &str = "dotgraft.dev/crd-version";

/// The files of `crds/` as this program was built with: where the versions are kept.
const FILES: [(&str, &str); 8] = [
    ("branches", include_str!("../../crds/dotgraft.dev.branches.yaml")),
    ("commits", include_str!("../../crds/dotgraft.dev.commits.yaml")),
    ("dotoperations", include_str!("../../crds/dotgraft.dev.dotoperations.yaml")),
    ("dots", include_str!("../../crds/dotgraft.dev.dots.yaml")),
    ("filesystems", include_str!("../../crds/dotgraft.dev.filesystems.yaml")),
    ("nodepools", include_str!("../../crds/dotgraft.dev.nodepools.yaml")),
    ("replicas", include_str!("../../crds/dotgraft.dev.replicas.yaml")),
    ("replicationjobs", include_str!("../../crds/dotgraft.dev.replicationjobs.yaml")),
];

/// The version that a file of `crds/` names; 0 if it names none.
pub fn version_in(yaml: &str) -> u32 {
    let value = yaml.lines().find_map(|line| line.trim().strip_prefix(VERSION)?.strip_prefix(':'));
    value.and_then(|v| v.trim().trim_matches(['"', '\'']).parse().ok()).unwrap_or(0)
}

/// The version of a CRD, in a cluster or of ours; 0 without one.
pub fn version(crd: &CustomResourceDefinition) -> u32 {
    crd.metadata.annotations.as_ref().and_then(|a| a.get(VERSION)?.parse().ok()).unwrap_or(0)
}

/// What a program thinks of a CRD that a cluster has.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Judgement {
    /// As new as ours or newer, and served.
    Good,
    /// Older than ours, or not there.
    Old(Old),
    /// Being deleted, or not served yet: to be looked at again.
    Unsettled(String),
}

/// A CRD that is older than a program needs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Old {
    /// Its name, `dots.dotgraft.dev`.
    pub name: String,
    /// Its version; `None`: the cluster doesn't have it.
    pub have: Option<u32>,
    /// The version needed.
    pub need: u32,
}

impl fmt::Display for Old {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { name, have, need } = self;
        match have {
            Some(have) => write!(f, "the CRD {name} has version {have}, this program needs {need}"),
            None => write!(f, "the CRD {name} is missing, this program needs version {need}"),
        }
    }
}

/// Compares a CRD of ours with what the cluster has under its name.
pub fn judge(ours: &CustomResourceDefinition, there: Option<&CustomResourceDefinition>) -> Judgement {
    let name = ours.metadata.name.clone().unwrap_or_default();
    let need = version(ours);
    let Some(there) = there else { return Judgement::Old(Old { name, have: None, need }) };
    if there.metadata.deletion_timestamp.is_some() {
        return Judgement::Unsettled(format!("the CRD {name} is being deleted"));
    }
    if version(there) < need {
        return Judgement::Old(Old { name, have: Some(version(there)), need });
    }
    let conditions = there.status.as_ref().and_then(|s| s.conditions.as_ref());
    match conditions.into_iter().flatten().find(|c| c.type_ == "Established") {
        Some(established) if established.status == "True" => Judgement::Good,
        _ => Judgement::Unsettled(format!("the CRD {name} is not served yet")),
    }
}

/// All kinds, in an order in which they can be applied.
pub fn all_crds() -> Vec<CustomResourceDefinition> {
    let mut crds = vec![
        Dot::crd(),
        Branch::crd(),
        Commit::crd(),
        ReplicationJob::crd(),
        DotOperation::crd(),
        Filesystem::crd(),
        Replica::crd(),
        NodePool::crd(),
    ];
    for crd in &mut crds {
        for version in &mut crd.spec.versions {
            if let Some(schema) = version.schema.as_mut().and_then(|s| s.open_api_v3_schema.as_mut()) {
                refine(schema);
            }
        }
        let version = FILES.iter().find(|(plural, _)| *plural == crd.spec.names.plural).map_or(0, |(_, yaml)| version_in(yaml));
        set_version(crd, version);
    }
    crds
}

fn set_version(crd: &mut CustomResourceDefinition, version: u32) {
    crd.metadata.annotations.get_or_insert_default().insert(VERSION.to_owned(), version.to_string());
}

/// File name and YAML of each CRD, as `crds/` holds them.
///
/// # Errors
///
/// A CRD that can't be written as YAML: an error of this program's types.
pub fn all_yaml() -> Result<Vec<(String, String)>, serde_yaml::Error> {
    all_crds().iter().map(|crd| Ok((file_name(crd), yaml(crd)?))).collect()
}

/// File name and YAML of each CRD, as `crds/` should hold them from now on: one that differs from what `have` gives for its file,
/// in more than the version, gets the next version.
///
/// # Errors
///
/// A CRD that can't be written as YAML, or a file of `have` that isn't YAML.
pub fn next_yaml(have: impl Fn(&str) -> String) -> Result<Vec<(String, String)>, serde_yaml::Error> {
    let next = |mut crd: CustomResourceDefinition| {
        let file = file_name(&crd);
        let old = have(&file);
        set_version(&mut crd, version_in(&old));
        let same = yaml(&crd)?;
        if same == old && version_in(&old) > 0 {
            return Ok((file, same));
        }
        set_version(&mut crd, version_in(&old).saturating_add(1));
        Ok((file, yaml(&crd)?))
    };
    all_crds().into_iter().map(next).collect()
}

fn file_name(crd: &CustomResourceDefinition) -> String {
    format!("{}.{}.yaml", crd.spec.group, crd.spec.names.plural)
}

fn yaml(crd: &CustomResourceDefinition) -> Result<String, serde_yaml::Error> {
    Ok(format!("# Generated by crdgen from the crate dotgraft-api. Don't edit.\n{}", serde_yaml::to_string(crd)?))
}

/// No `nullable` (a null is dropped by the API server, so `has()` in CEL means "is set"), no default of null, and formats of
/// integers that `OpenAPI` knows.
fn refine(schema: &mut JSONSchemaProps) {
    schema.nullable = None;
    if schema.default.as_ref().is_some_and(|d| d.0.is_null()) {
        schema.default = None;
    }
    if matches!(schema.format.as_deref(), Some("uint32" | "uint64" | "int32")) {
        schema.format = Some("int64".to_owned());
    }
    for property in schema.properties.iter_mut().flat_map(|p| p.values_mut()) {
        refine(property);
    }
    match schema.items.as_mut() {
        Some(JSONSchemaPropsOrArray::Schema(item)) => refine(item),
        Some(JSONSchemaPropsOrArray::Schemas(items)) => items.iter_mut().for_each(refine),
        None => {}
    }
    if let Some(JSONSchemaPropsOrBool::Schema(value)) = schema.additional_properties.as_mut() {
        refine(value);
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// Calls `f` with the path of every schema node.
    fn walk(path: &str, schema: &JSONSchemaProps, f: &mut impl FnMut(&str, &JSONSchemaProps)) {
        f(path, schema);
        for (name, property) in schema.properties.iter().flatten() {
            walk(&format!("{path}.{name}"), property, f);
        }
        if let Some(JSONSchemaPropsOrArray::Schema(item)) = &schema.items {
            walk(&format!("{path}[]"), item, f);
        }
        if let Some(JSONSchemaPropsOrBool::Schema(value)) = &schema.additional_properties {
            walk(&format!("{path}{{}}"), value, f);
        }
    }

    /// Calls `f` with every schema node of every kind, by its path: `Dot`, `Dot.spec`, `Dot.spec.capacity`, …
    pub(crate) fn each_schema(mut f: impl FnMut(&str, &JSONSchemaProps)) {
        for crd in all_crds() {
            let kind = &crd.spec.names.kind;
            for version in &crd.spec.versions {
                let root = version.schema.as_ref().unwrap().open_api_v3_schema.as_ref().unwrap();
                f(kind, root);
                for part in ["spec", "status"] {
                    walk(&format!("{kind}.{part}"), &root.properties.as_ref().unwrap()[part], &mut f);
                }
            }
        }
    }

    #[test]
    fn the_files_in_crds_are_what_the_types_say() {
        let dir = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../crds");
        let want = all_yaml().unwrap();
        for (file, yaml) in &want {
            let have = std::fs::read_to_string(dir.join(file)).unwrap_or_default();
            assert!(have == *yaml, "crds/{file} is out of date: run `cargo run -p dotgraft-api --bin crdgen -- crds`");
        }
        let files = std::fs::read_dir(&dir).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap());
        let unknown: Vec<_> = files.filter(|f| !want.iter().any(|(w, _)| w == f)).collect();
        assert!(unknown.is_empty(), "crds/ has files that crdgen doesn't write: {unknown:?}");
    }

    #[test]
    fn every_crd_has_a_version() {
        for crd in all_crds() {
            assert!(version(&crd) > 0, "{:?} has none: is its file in FILES, and written by crdgen?", crd.metadata.name);
        }
    }

    #[test]
    fn a_changed_crd_gets_the_next_version_and_an_unchanged_one_keeps_its_own() {
        let now = all_yaml().unwrap();
        let file = |name: &str| now.iter().find(|(f, _)| f == name).map(|(_, y)| y.clone()).unwrap_or_default();
        assert_eq!(next_yaml(file).unwrap(), now);
        let changed = |name: &str| if name.contains(".dots.") { file(name).replace("kind: Dot\n", "kind: Point\n") } else { file(name) };
        for (name, yaml) in next_yaml(changed).unwrap() {
            let more = u32::from(name.contains(".dots."));
            assert_eq!(version_in(&yaml), version_in(&file(&name)) + more, "{name}");
        }
        let none = next_yaml(|_| String::new()).unwrap();
        assert!(none.iter().all(|(_, yaml)| version_in(yaml) == 1));
    }

    #[test]
    fn a_cluster_s_crd_is_judged_by_its_version_and_served_or_not() {
        let mut ours = Dot::crd();
        set_version(&mut ours, 4);
        let with = |version: u32, established: &str| {
            let status = serde_json::json!({"conditions": [{"type": "Established", "status": established}]});
            let mut crd = Dot::crd();
            set_version(&mut crd, version);
            crd.status = serde_json::from_value(status).unwrap();
            crd
        };
        let old = |have| Judgement::Old(Old { name: "dots.dotgraft.dev".into(), have, need: 4 });
        assert_eq!(judge(&ours, Some(&with(4, "True"))), Judgement::Good);
        assert_eq!(judge(&ours, Some(&with(9, "True"))), Judgement::Good);
        assert_eq!(judge(&ours, Some(&with(3, "True"))), old(Some(3)));
        assert_eq!(judge(&ours, Some(&Dot::crd())), old(Some(0)), "one of the time before versions");
        assert_eq!(judge(&ours, None), old(None));
        assert!(matches!(judge(&ours, Some(&with(4, "False"))), Judgement::Unsettled(_)));
        let mut going = with(3, "True");
        going.metadata.deletion_timestamp = Some(serde_json::from_value("2026-01-01T00:00:00Z".into()).unwrap());
        assert!(matches!(judge(&ours, Some(&going)), Judgement::Unsettled(_)), "what is going is not changed");
    }

    #[test]
    fn every_list_map_and_text_is_bounded() {
        let mut unbounded = Vec::new();
        each_schema(|path, s| {
            let ok = match s.type_.as_deref() {
                Some("string") => s.max_length.is_some() || s.enum_.is_some() || s.format.is_some(),
                Some("array") => s.max_items.is_some() && s.x_kubernetes_list_type.is_some(),
                Some("object") => s.additional_properties.is_none() || s.max_properties.is_some(),
                _ => true,
            };
            if !ok {
                unbounded.push(path.to_owned());
            }
        });
        assert!(unbounded.is_empty(), "without bound: {unbounded:#?}");
    }

    #[test]
    fn every_field_is_described_and_typed() {
        let mut bad = Vec::new();
        each_schema(|path, s| {
            if s.type_.is_none() || (s.description.is_none() && !path.ends_with("[]") && !path.ends_with("{}")) {
                bad.push(path.to_owned());
            }
        });
        assert!(bad.is_empty(), "without type or description: {bad:#?}");
    }

    #[test]
    fn every_rule_says_what_is_wrong() {
        each_schema(|path, s| {
            for rule in s.x_kubernetes_validations.iter().flatten() {
                assert!(rule.message.as_ref().is_some_and(|m| !m.is_empty()), "{path}: {}", rule.rule);
            }
        });
    }
}
