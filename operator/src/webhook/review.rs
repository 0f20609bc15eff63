//! `AdmissionReview` `admission.k8s.io/v1`: what is asked, and the answer with its JSON patch. Pure; takes what anyone may send.
//!
//! <https://kubernetes.io/docs/reference/access-authn-authz/extensible-admission-controllers/>

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::Deserialize;
use serde_json::{Value, json};

/// The label that every kubelet sets, and the scheduler's own default topology.
pub const HOSTNAME: &str = "kubernetes.io/hostname";
/// The field of the preferred terms.
const PREFERRED: &str = "preferredDuringSchedulingIgnoredDuringExecution";

/// What came.
#[derive(Debug, Clone, PartialEq)]
pub struct Asked {
    /// To be repeated in the answer.
    pub uid: String,
    /// The pod, if it is one that we can read.
    pub pod: Option<Pod>,
}

/// The little that we read of a pod. What is left out here may be of any shape.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Pod {
    /// Where it is being made.
    pub namespace: String,
    /// Names of its PVCs, each once.
    pub claims: Vec<String>,
    /// It has a node already: no scheduler looks at it.
    pub placed: bool,
    /// Its `affinity`, as it came.
    pub affinity: Option<Value>,
}

/// One preference to add.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Term {
    /// Value of [`HOSTNAME`].
    pub host: String,
    /// 1 to 100.
    pub weight: i32,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Review {
    api_version: String,
    kind: String,
    request: Request,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Request {
    uid: String,
    #[serde(default)]
    namespace: String,
    #[serde(default)]
    object: Value,
}

#[derive(Deserialize)]
struct RawPod {
    #[serde(default)]
    metadata: RawMeta,
    spec: RawSpec,
}

#[derive(Deserialize, Default)]
struct RawMeta {
    #[serde(default)]
    name: Option<String>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct RawSpec {
    #[serde(default)]
    node_name: Option<String>,
    #[serde(default)]
    volumes: Option<Vec<RawVolume>>,
    #[serde(default)]
    affinity: Option<Value>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct RawVolume {
    #[serde(default)]
    name: String,
    #[serde(default)]
    persistent_volume_claim: Option<RawClaim>,
    #[serde(default)]
    ephemeral: Option<Value>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct RawClaim {
    #[serde(default)]
    claim_name: String,
}

/// Reads a request's body. `None`: no `AdmissionReview` v1 with a request; there is nobody to answer to.
pub fn read(body: &[u8]) -> Option<Asked> {
    let review: Review = serde_json::from_slice(body).ok()?;
    if review.api_version != "admission.k8s.io/v1" || review.kind != "AdmissionReview" {
        return None;
    }
    let Request { uid, namespace, object } = review.request;
    let pod = serde_json::from_value::<RawPod>(object).ok().filter(|_| !namespace.is_empty()).map(|raw| pod(namespace, raw));
    Some(Asked { uid, pod })
}

fn pod(namespace: String, raw: RawPod) -> Pod {
    let name = raw.metadata.name.unwrap_or_default();
    let mut claims: Vec<String> = Vec::new();
    for volume in raw.spec.volumes.unwrap_or_default() {
        let claim = match (volume.persistent_volume_claim, volume.ephemeral) {
            (Some(claim), _) => claim.claim_name,
            // The name that the API gives the PVC of a generic ephemeral volume.
            (None, Some(_)) if !name.is_empty() => format!("{name}-{}", volume.name),
            _ => continue,
        };
        if !claim.is_empty() && !claims.contains(&claim) {
            claims.push(claim);
        }
    }
    Pod { namespace, claims, placed: raw.spec.node_name.is_some_and(|n| !n.is_empty()), affinity: raw.spec.affinity }
}

/// The answer: allowed, and changed by `patch` if there is one.
pub fn answer(uid: &str, patch: Option<&Value>) -> Value {
    let mut response = json!({ "uid": uid, "allowed": true });
    if let Some(patch) = patch {
        response["patchType"] = json!("JSONPatch");
        response["patch"] = json!(STANDARD.encode(patch.to_string()));
    }
    json!({ "apiVersion": "admission.k8s.io/v1", "kind": "AdmissionReview", "response": response })
}

/// The JSON patch (RFC 6902) that adds the terms behind those that the pod has. `None`: nothing to add, or an affinity of a shape that
/// the API server will refuse by itself.
pub fn patch(affinity: Option<&Value>, terms: &[Term]) -> Option<Value> {
    let terms: Vec<Value> = terms.iter().map(term).collect();
    let node = match affinity {
        None | Some(Value::Null) => return add("/spec/affinity", &terms, |t| json!({ "nodeAffinity": { PREFERRED: t } })),
        Some(Value::Object(map)) => map.get("nodeAffinity"),
        Some(_) => return None,
    };
    let preferred = match node {
        None | Some(Value::Null) => return add("/spec/affinity/nodeAffinity", &terms, |t| json!({ PREFERRED: t })),
        Some(Value::Object(map)) => map.get(PREFERRED),
        Some(_) => return None,
    };
    let path = format!("/spec/affinity/nodeAffinity/{PREFERRED}");
    match preferred {
        None | Some(Value::Null) => add(&path, &terms, |t| json!(t)),
        Some(Value::Array(known)) => {
            let new = terms.iter().filter(|t| !known.contains(t));
            let all: Vec<Value> = new.map(|t| json!({ "op": "add", "path": format!("{path}/-"), "value": t })).collect();
            (!all.is_empty()).then_some(Value::Array(all))
        }
        Some(_) => None,
    }
}

fn add(path: &str, terms: &[Value], value: impl Fn(&[Value]) -> Value) -> Option<Value> {
    (!terms.is_empty()).then(|| json!([{ "op": "add", "path": path, "value": value(terms) }]))
}

fn term(term: &Term) -> Value {
    json!({
        "weight": term.weight,
        "preference": { "matchExpressions": [{ "key": HOSTNAME, "operator": "In", "values": [term.host] }] },
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn review(object: &Value) -> Vec<u8> {
        let request = json!({ "uid": "u", "namespace": "team", "operation": "CREATE", "object": object });
        json!({ "apiVersion": "admission.k8s.io/v1", "kind": "AdmissionReview", "request": request }).to_string().into_bytes()
    }
    fn terms() -> Vec<Term> {
        vec![Term { host: "n1".into(), weight: 100 }, Term { host: "n2".into(), weight: 60 }]
    }
    fn paths(patch: Option<Value>) -> Vec<(String, i64)> {
        let list = patch.and_then(|p| p.as_array().cloned()).unwrap_or_default();
        let weight = |op: &Value| {
            let v = &op["value"];
            let first = [v, &v[0], &v[PREFERRED][0], &v["nodeAffinity"][PREFERRED][0]].into_iter().find_map(|v| v["weight"].as_i64());
            first.unwrap()
        };
        list.iter().map(|op| (op["path"].as_str().unwrap().to_owned(), weight(op))).collect()
    }

    #[test]
    fn the_claims_of_a_pod_are_read_each_once() {
        let pod = json!({ "metadata": { "name": "web-0" }, "spec": { "volumes": [
            { "name": "a", "persistentVolumeClaim": { "claimName": "data-web-0" } },
            { "name": "b", "persistentVolumeClaim": { "claimName": "data-web-0", "readOnly": true } },
            { "name": "c", "ephemeral": { "volumeClaimTemplate": {} } },
            { "name": "d", "emptyDir": {} },
        ] } });
        let asked = read(&review(&pod)).unwrap();
        let pod = asked.pod.unwrap();
        assert_eq!((asked.uid.as_str(), pod.namespace.as_str(), pod.placed), ("u", "team", false));
        assert_eq!(pod.claims, ["data-web-0", "web-0-c"]);
    }

    #[test]
    fn what_is_no_pod_is_answered_and_what_is_no_review_is_not() {
        for object in [json!(null), json!({}), json!({ "spec": 1 }), json!({ "spec": { "volumes": "none" } })] {
            let asked = read(&review(&object)).unwrap();
            assert_eq!((asked.uid.as_str(), asked.pod), ("u", None), "{object}");
        }
        assert!(read(&review(&json!({ "spec": {} }))).unwrap().pod.is_some());
        for body in ["", "{", "[]", r#"{"apiVersion":"admission.k8s.io/v1","kind":"AdmissionReview"}"#] {
            assert_eq!(read(body.as_bytes()), None, "{body}");
        }
        let older = String::from_utf8(review(&json!({}))).unwrap().replace("k8s.io/v1", "k8s.io/v1beta1");
        assert_eq!(read(older.as_bytes()), None);
    }

    #[test]
    fn terms_go_where_the_pod_has_none_and_behind_those_it_has() {
        let whole = "/spec/affinity/nodeAffinity/preferredDuringSchedulingIgnoredDuringExecution";
        let at = |affinity: Value| paths(patch(Some(&affinity), &terms()));
        assert_eq!(paths(patch(None, &terms())), [("/spec/affinity".to_owned(), 100)]);
        assert_eq!(at(json!(null)), [("/spec/affinity".to_owned(), 100)]);
        assert_eq!(at(json!({ "podAffinity": {} })), [("/spec/affinity/nodeAffinity".to_owned(), 100)]);
        let required = json!({ "nodeAffinity": { "requiredDuringSchedulingIgnoredDuringExecution": {} } });
        assert_eq!(at(required), [(whole.to_owned(), 100)]);
        let users = json!({ "weight": 7, "preference": { "matchExpressions": [] } });
        let own = json!({ "nodeAffinity": { PREFERRED: [users] } });
        assert_eq!(at(own), [(format!("{whole}/-"), 100), (format!("{whole}/-"), 60)], "nothing of the user's is touched");
    }

    #[test]
    fn a_term_that_is_there_is_not_added_again() {
        let own = json!({ "nodeAffinity": { PREFERRED: [term(&terms()[0])] } });
        assert_eq!(paths(patch(Some(&own), &terms())).len(), 1);
        assert_eq!(patch(Some(&own), &terms()[..1]), None);
        assert_eq!(patch(None, &[]), None);
    }

    #[test]
    fn an_affinity_of_another_shape_is_left_to_the_api_server() {
        for odd in [json!(1), json!([]), json!({ "nodeAffinity": "x" }), json!({ "nodeAffinity": { PREFERRED: {} } })] {
            assert_eq!(patch(Some(&odd), &terms()), None, "{odd}");
        }
    }

    #[test]
    fn the_patch_travels_as_base64() {
        let patch = patch(None, &terms()).unwrap();
        let answer = answer("u", Some(&patch));
        assert_eq!((&answer["response"]["uid"], &answer["response"]["allowed"]), (&json!("u"), &json!(true)));
        let bytes = STANDARD.decode(answer["response"]["patch"].as_str().unwrap()).unwrap();
        assert_eq!(serde_json::from_slice::<Value>(&bytes).unwrap(), patch);
        assert!(super::answer("u", None)["response"].get("patchType").is_none());
    }

    proptest! {
        #[test]
        fn no_body_panics(body in proptest::collection::vec(any::<u8>(), 0..200), text in r#"[\{\}\[\]":,a-z0-9]{0,120}"#) {
            let _ = (read(&body), read(text.as_bytes()));
            if let Ok(value) = serde_json::from_str::<Value>(&text) {
                let _ = (read(&review(&value)), patch(Some(&value), &terms()));
            }
        }
    }
}
