//! Pieces of schema that several kinds share: every string, list and map in the API has a bound, so that an object stays small and
//! the API server can price the CEL rules.

use schemars::{Schema, SchemaGenerator, json_schema};
use serde_json::{Value, json};

/// Lower-case hyphenated UUID.
pub const UUID_PATTERN: &str = "^[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}$";
/// RFC 1123 subdomain: names of nodes and of most objects.
pub const NAME_PATTERN: &str = "^[a-z0-9]([a-z0-9-]*[a-z0-9])?(\\.[a-z0-9]([a-z0-9-]*[a-z0-9])?)*$";
/// Amounts that [`crate::quantity`] reads: no sign, no exponent, no thousandths.
pub const QUANTITY_PATTERN: &str = "^[0-9]{1,18}(\\.[0-9]{1,9})?(k|M|G|T|P|E|Ki|Mi|Gi|Ti|Pi|Ei)?$";

/// `x-kubernetes-validations` from pairs of rule and message.
pub fn rules(pairs: &[(&str, &str)]) -> Value {
    pairs.iter().map(|(rule, message)| json!({"rule": rule, "message": message})).collect()
}

/// A UUID.
pub fn uuid(_: &mut SchemaGenerator) -> Schema {
    json_schema!({"type": "string", "maxLength": 36, "pattern": UUID_PATTERN})
}
/// The name of a node or object.
pub fn name(_: &mut SchemaGenerator) -> Schema {
    json_schema!({"type": "string", "minLength": 1, "maxLength": 253, "pattern": NAME_PATTERN})
}
/// The name of a namespace (RFC 1123 label).
pub fn namespace(_: &mut SchemaGenerator) -> Schema {
    json_schema!({"type": "string", "maxLength": 63, "pattern": "^[a-z0-9]([a-z0-9-]*[a-z0-9])?$"})
}
/// A commit id, or the name of a Commit object.
pub fn commit_ref(g: &mut SchemaGenerator) -> Schema {
    name(g)
}
/// RFC 3339 time.
pub fn time(_: &mut SchemaGenerator) -> Schema {
    json_schema!({"type": "string", "format": "date-time"})
}
/// An amount of bytes, 1Mi to 1Ei.
pub fn size(_: &mut SchemaGenerator) -> Schema {
    json_schema!({
        "type": "string", "maxLength": 32, "pattern": QUANTITY_PATTERN,
        "x-kubernetes-validations": [{
            "rule": "quantity(self).compareTo(quantity('1Mi')) >= 0 && quantity(self).compareTo(quantity('1Ei')) <= 0",
            "message": "must be from 1Mi to 1Ei",
        }],
    })
}
/// Bytes per second, at least 1Ki.
pub fn bandwidth(_: &mut SchemaGenerator) -> Schema {
    json_schema!({
        "type": "string", "maxLength": 32, "pattern": QUANTITY_PATTERN,
        "x-kubernetes-validations": [{
            "rule": "quantity(self).compareTo(quantity('1Ki')) >= 0 && quantity(self).compareTo(quantity('1Ei')) <= 0",
            "message": "bandwidth is in bytes per second, from 1Ki to 1Ei",
        }],
    })
}
/// Labels that must match, at most 32.
pub fn labels(_: &mut SchemaGenerator) -> Schema {
    json_schema!({"type": "object", "maxProperties": 32, "additionalProperties": {"type": "string", "maxLength": 63}})
}
/// Text for people, at most 4 KiB.
pub fn message(_: &mut SchemaGenerator) -> Schema {
    json_schema!({
        "type": "string", "maxLength": 4096,
        "x-kubernetes-validations": [{"rule": "size(bytes(self)) <= 4096", "message": "message must be at most 4096 bytes"}],
    })
}
/// Pairs kept with a commit: at most 64, keys ≤ 253 bytes of ASCII, values ≤ 1 KiB.
pub fn metadata(_: &mut SchemaGenerator) -> Schema {
    json_schema!({
        "type": "object", "maxProperties": 64, "additionalProperties": {"type": "string", "maxLength": 1024},
        "x-kubernetes-validations": [
            {
                "rule": "self.all(k, k.matches('^[A-Za-z0-9]([A-Za-z0-9._/-]{0,251}[A-Za-z0-9])?$'))",
                "message": "metadata keys must be at most 253 letters, digits, '.', '_', '/' or '-', the first and last a letter or digit",
            },
            {
                "rule": "self.all(k, size(bytes(self[k])) <= 1024)",
                "message": "metadata values must be at most 1024 bytes",
            },
        ],
    })
}
/// The same pairs where we wrote them ourselves: bounds without rules.
pub fn metadata_copy(_: &mut SchemaGenerator) -> Schema {
    json_schema!({"type": "object", "maxProperties": 64, "additionalProperties": {"type": "string", "maxLength": 1024}})
}
/// Complete `metav1.Condition`s, one per type, at most 16.
pub fn conditions(_: &mut SchemaGenerator) -> Schema {
    json_schema!({
        "type": "array", "maxItems": 16,
        "x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["type"],
        "items": {
            "type": "object",
            "required": ["type", "status", "lastTransitionTime", "reason", "message"],
            "properties": {
                "type": {"type": "string", "maxLength": 316, "description": "CamelCase name of this aspect.",
                    "pattern": "^([a-z0-9]([-a-z0-9]*[a-z0-9])?(\\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*/)?(([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9])$"},
                "status": {"type": "string", "enum": ["True", "False", "Unknown"], "description": "True, False or Unknown."},
                "observedGeneration": {"type": "integer", "format": "int64", "minimum": 0,
                    "description": "metadata.generation that this was found for."},
                "lastTransitionTime": {"type": "string", "format": "date-time", "description": "When status last changed."},
                "reason": {"type": "string", "minLength": 1, "maxLength": 1024, "pattern": "^[A-Za-z]([A-Za-z0-9_,:]*[A-Za-z0-9_])?$",
                    "description": "CamelCase word for programs."},
                "message": {"type": "string", "maxLength": 32768, "description": "Sentence for people."},
            },
        },
    })
}
