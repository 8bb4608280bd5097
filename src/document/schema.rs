//! The JSON Schema of every document kind, embedded in the program, and reading a document by it.

use std::sync::OnceLock;

use jsonschema::ValidationError;
use jsonschema::error::ValidationErrorKind;
use serde::de::DeserializeOwned;
use serde_json::Value;

use super::digest::Digest;
use super::finding::{Code, Finding};
use super::json;
use super::path::RepoPath;

macro_rules! kinds {
    ($($variant:ident $file:literal $(# $def:literal)?: $title:literal,)+) => {
        /// A kind of document.
        #[derive(Clone, Copy, PartialEq, Eq, Debug)]
        pub enum Kind {
            $(#[doc = $title] $variant,)+
        }

        impl Kind {
            /// Every kind, in the order of the reference.
            pub const ALL: &'static [Kind] = &[$(Kind::$variant,)+];

            /// Path of its schema in the project's repository.
            pub fn schema_path(self) -> &'static str {
                match self { $(Kind::$variant => $file,)+ }
            }

            /// The text of its schema.
            pub fn schema_text(self) -> &'static str {
                match self { $(Kind::$variant => include_str!(concat!("../../", $file)),)+ }
            }

            /// What a person calls it.
            pub fn title(self) -> &'static str {
                match self { $(Kind::$variant => $title,)+ }
            }

            fn definition(self) -> Option<&'static str> {
                match self { $(Kind::$variant => kinds!(@def $($def)?),)+ }
            }
        }
    };
    (@def $def:literal) => { Some($def) };
    (@def) => { None };
}

kinds! {
    AuthorityLedger "schemas/authority.ledger.schema.json": "authority ledger",
    Objectives "schemas/objectives.schema.json": "objectives",
    DependencyGraph "schemas/dependency.graph.schema.json": "dependency graph",
    ExecutionDag "schemas/execution_dag.schema.json": "execution DAG",
    Pipeline "schemas/pipeline.schema.json": "pipeline",
    ExecutorConfig "control/executors/gen_executor.schema.json" # "config": "executor configuration",
    ExecutorRequest "control/executors/gen_executor.schema.json" # "request": "executor request",
    ExecutorReport "control/executors/gen_executor.schema.json" # "report": "executor report",
    Capsule "control/runtime/pre_gen_capsule.schema.json": "PRE-GEN capsule",
    LockReport "schemas/lock.report.schema.json": "lock report",
    InputsManifest "schemas/inputs.manifest.schema.json": "inputs manifest",
    OpaInput "schemas/opa.input.schema.json": "OPA input bundle",
    BundleHash "schemas/bundle.hash.schema.json": "bundle hash",
    OutputsManifest "schemas/outputs.manifest.schema.json": "outputs manifest",
    RunLedger "schemas/run.ledger.schema.json": "run ledger",
    ArtifactHashes "schemas/artifact_hashes.schema.json": "artifact hashes",
    CacheKey "control/cache/cache_key.schema.json": "cache key",
    CacheMeta "schemas/cache.meta.schema.json": "cache entry",
    Record "schemas/record.schema.json": "ledger record",
    CheckReport "schemas/check.report.schema.json": "check report",
    RepairCapsule "control/repair/repair_capsule.schema.json": "repair capsule",
    RepairReport "schemas/repair.report.schema.json": "repair report",
    Metadata "schemas/struct.metadata.schema.json": "artifact metadata",
    Selection "schemas/selection.schema.json": "selection",
    FlowManifest "schemas/flow.manifest.schema.json": "package manifest",
    PromoteCapsule "control/promote/promote_capsule.schema.json": "promote capsule",
    AuditManifest "schemas/audit_bundle.manifest.schema.json": "audit bundle manifest",
    AuditBundle "schemas/audit_bundle.schema.json": "audit bundle",
    FinalManifest "schemas/final.manifest.schema.json": "final manifest",
}

/// At most this many schema violations of one document are told.
const MAX_VIOLATIONS: usize = 50;

/// A document together with the digest of the bytes it was read from.
#[derive(Clone, Debug)]
pub struct Sealed<T> {
    /// The document.
    pub document: T,
    /// The same document with every member it had.
    pub value: Value,
    /// SHA-256 of the bytes that were read.
    pub sha256: Digest,
}

/// Reads a document of `kind`: strict JSON, then its schema, then its type. All findings name `path`.
pub fn load<T: DeserializeOwned>(kind: Kind, path: &RepoPath, bytes: &[u8]) -> Result<Sealed<T>, Vec<Finding>> {
    let value = parse(kind.title(), path.as_str(), bytes).map_err(|finding| vec![finding])?;
    let violations = validate(kind, path.as_str(), bytes, &value);
    if !violations.is_empty() {
        return Err(violations);
    }
    let document = T::deserialize(&value).map_err(|error| {
        let message = format!("the {} {path} cannot be read: {error}", kind.title());
        vec![Finding::error(Code::DocumentSchema, message).at(path)]
    })?;
    Ok(Sealed { document, value, sha256: Digest::of(bytes) })
}

/// Reads strict JSON; the finding calls the document a `title`.
pub fn parse(title: &str, path: &str, bytes: &[u8]) -> Result<Value, Finding> {
    json::parse(bytes).map_err(|error| {
        let mut finding =
            Finding::error(Code::DocumentMalformed, format!("the {title} {path} is not strict JSON: {}", error.reason))
                .at(path)
                .hint(format!("mend {path} and try again"));
        finding.pointer = error.pointer;
        finding.line = error.line;
        finding.column = error.column;
        finding
    })
}

/// What of `value`, which was read from `bytes`, does not satisfy the schema of `kind`.
pub fn validate(kind: Kind, path: &str, bytes: &[u8], value: &Value) -> Vec<Finding> {
    /// Building one takes as long as checking hundreds of members; each is built when it is first asked for.
    static BUILT: [OnceLock<Result<Validator, Finding>>; Kind::ALL.len()] = [const { OnceLock::new() }; Kind::ALL.len()];
    let build = || {
        let schema: Value = serde_json::from_str(kind.schema_text()).map_err(|_| {
            Finding::error(Code::SchemaInvalid, format!("the built-in schema {} is not JSON", kind.schema_path()))
        })?;
        let schema = match kind.definition() {
            Some(name) => serde_json::json!({
                "$schema": schema["$schema"], "$defs": schema["$defs"], "$ref": format!("#/$defs/{name}"),
            }),
            None => schema,
        };
        Validator::new(&schema, kind.schema_path())
    };
    match BUILT[kind as usize].get_or_init(build) {
        Ok(validator) => told(validator, kind.schema_path(), kind.title(), path, bytes, value),
        Err(finding) => vec![finding.clone()],
    }
}

/// What of `value` does not satisfy `schema`, which a message calls `schema_path`.
pub fn validate_by(schema: &Value, schema_path: &str, title: &str, path: &str, bytes: &[u8], value: &Value) -> Vec<Finding> {
    match Validator::new(schema, schema_path) {
        Ok(validator) => told(&validator, schema_path, title, path, bytes, value),
        Err(finding) => vec![finding],
    }
}

fn told(validator: &Validator, schema_path: &str, title: &str, path: &str, bytes: &[u8], value: &Value) -> Vec<Finding> {
    // Whether there is a violation is known in a fraction of the time that it takes to collect them with their places.
    if validator.built.is_valid(value) {
        return Vec::new();
    }
    let finding = |violation: Violation| {
        let place = if violation.pointer.is_empty() { "the whole document".into() } else { bounded(&violation.pointer) };
        let message = format!("the {title} {path} breaks its schema at {place}: {}", violation.reason);
        Finding::error(Code::DocumentSchema, message)
            .at(path)
            .hint(format!("{schema_path} says what is wanted ({})", violation.schema_pointer))
            .pointing(violation.pointer, bytes)
    };
    validator.violations(value).take(MAX_VIOLATIONS).map(finding).collect()
}

/// A JSON Schema that is ready to be asked about many documents. References to anything outside the schema are refused, formats
/// are asserted, and patterns run in linear time.
pub struct Validator {
    schema: Value,
    built: jsonschema::Validator,
}

/// One way in which a value does not satisfy a schema. Texts are bounded and escaped.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Violation {
    /// RFC 6901 pointer of the value, or of the member that should not be there.
    pub pointer: String,
    /// RFC 6901 pointer of the rule in the schema.
    pub schema_pointer: String,
    /// The required member that is absent, if that is what is wrong.
    pub missing: Option<String>,
    /// What is wrong.
    pub reason: String,
    /// The rule: its keyword and value.
    pub expected: String,
    /// The value, or what kind of value it is.
    pub got: String,
}

impl Validator {
    /// Prepares `schema`, which a message calls `schema_path`.
    pub fn new(schema: &Value, schema_path: &str) -> Result<Self, Finding> {
        let built = jsonschema::options()
            .with_draft(jsonschema::Draft::Draft202012)
            .offline()
            .should_validate_formats(true)
            .should_ignore_unknown_formats(false)
            .with_pattern_options(jsonschema::PatternOptions::regex())
            .build(schema);
        let refused = |error: ValidationError<'_>| {
            let message = format!("the schema {schema_path} cannot be used: {}", bounded(&error.to_string()));
            Finding::error(Code::SchemaInvalid, message).at(schema_path).hint(format!("mend {schema_path}"))
        };
        Ok(Self { built: built.map_err(refused)?, schema: schema.clone() })
    }

    /// What of `value` does not satisfy the schema, one violation at a time.
    pub fn violations<'a>(&'a self, value: &'a Value) -> impl Iterator<Item = Violation> + 'a {
        self.built.iter_errors(value).map(|error| {
            let schema_pointer = error.schema_path().to_string();
            let keyword = error.kind().keyword().to_owned();
            let (mut pointer, mut missing) = (error.instance_path().to_string(), None);
            match error.kind() {
                ValidationErrorKind::Required { property } => missing = property.as_str().map(str::to_owned),
                // The member that should not be there, rather than the object that has it.
                ValidationErrorKind::AdditionalProperties { unexpected } => {
                    pointer.extend(unexpected.first().map(|name| format!("/{}", json::escape(name))));
                }
                _ => {}
            }
            let expected = match self.schema.pointer(&schema_pointer) {
                Some(rule @ (Value::Array(_) | Value::String(_) | Value::Number(_) | Value::Bool(_))) => {
                    format!("{keyword} {rule}")
                }
                _ => keyword,
            };
            let got = match &**error.instance() {
                Value::Array(items) => format!("an array of {}", items.len()),
                Value::Object(members) => format!("an object of {}", members.len()),
                scalar => scalar.to_string(),
            };
            Violation {
                pointer,
                schema_pointer,
                missing,
                reason: bounded(&error.to_string()),
                expected: bounded(&expected),
                got: bounded(&got),
            }
        })
    }
}

fn bounded(text: &str) -> String {
    super::path::printable(text)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::document::authority_ledger::AuthorityLedger;
    use crate::document::pipeline::Pipeline;

    #[test]
    fn every_schema_is_a_schema_and_describes_each_property() {
        fn described(path: &str, schema: &Value, at: &str) {
            if let Some(properties) = schema.get("properties").and_then(Value::as_object) {
                for (name, property) in properties {
                    // The branches of a condition narrow a property that is described elsewhere.
                    if !at.contains("allOf") {
                        assert!(property.get("description").is_some(), "{path}: {at}/{name} has no description");
                    }
                }
            }
            match schema {
                Value::Object(members) => members.iter().for_each(|(k, v)| described(path, v, &format!("{at}/{k}"))),
                Value::Array(items) => items.iter().for_each(|v| described(path, v, at)),
                _ => {}
            }
        }
        for kind in Kind::ALL {
            let schema = json::parse(kind.schema_text().as_bytes()).unwrap();
            assert!(jsonschema::meta::is_valid(&schema), "{}", kind.schema_path());
            described(kind.schema_path(), &schema, "");
            let violations = validate(*kind, "x", b"7", &Value::from(7));
            assert_eq!(violations[0].code, Code::DocumentSchema, "{} accepts the number 7", kind.schema_path());
        }
    }

    fn codes<T: std::fmt::Debug>(result: Result<T, Vec<Finding>>) -> Vec<(String, Option<u64>, Option<String>)> {
        let findings = result.unwrap_err();
        findings.into_iter().map(|f| (f.code.to_string(), f.line, f.pointer)).collect()
    }

    #[test]
    fn a_violation_names_its_line_and_pointer() {
        let path = "control/pipeline.json".parse().unwrap();
        let text = b"{\n  \"schema_version\": \"0.1.0\",\n  \"gen\": {\"generated\": [\"a/**\"], \"artifacts\": [{\"path\": 7, \"objectives\": []}]}\n}";
        let got = codes(load::<Pipeline>(Kind::Pipeline, &path, text));
        assert_eq!(got, [("document-schema".into(), Some(3), Some("/gen/artifacts/0/path".into()))]);
    }

    #[test]
    fn an_unknown_member_is_refused_in_a_pipeline_and_kept_in_a_ledger() {
        let path = "control/x.json".parse().unwrap();
        let text =
            br#"{"schema_version":"0.1.0","gen":{"generated":["a"],"artifacts":[{"path":"a","objectives":["O"]}]},"zzz":1}"#;
        assert_eq!(codes(load::<Pipeline>(Kind::Pipeline, &path, text))[0].0, "document-schema");
        let text = br#"{"schema_version":"0.1.0","frozen":true,"authority_set":[{"authority_id":"A","note":"n"}],"owner":"me"}"#;
        let ledger = load::<AuthorityLedger>(Kind::AuthorityLedger, &path, text).unwrap();
        assert_eq!(ledger.document.more["owner"], "me");
        assert_eq!(ledger.document.authority_set[0].more["note"], "n");
    }

    #[test]
    fn what_is_not_valid_has_a_violation_and_the_reverse() {
        let hash = "0".repeat(64);
        let report = serde_json::json!({
            "schema_version": "0.1.0", "phase": "GEN", "tool_versions": {"a": "1"},
            "artifacts": [{"path": "a", "hash": hash, "bytes": 1}, {"path": "b", "hash": hash, "bytes": 0}],
        });
        let places = ["", "/schema_version", "/phase", "/tool_versions", "/tool_versions/a", "/artifacts", "/artifacts/1"];
        let places = places.into_iter().chain(["/artifacts/1/path", "/artifacts/1/hash", "/artifacts/1/bytes"]);
        let others = [
            Value::Null,
            Value::from(-1),
            Value::from(1.5),
            Value::from(true),
            serde_json::json!([7]),
            serde_json::json!({"z": 7}),
        ];
        assert_eq!(validate(Kind::ExecutorReport, "r", b"", &report), []);
        for place in places {
            for other in &others {
                let mut broken = report.clone();
                *broken.pointer_mut(place).unwrap() = other.clone();
                let findings = validate(Kind::ExecutorReport, "r", b"", &broken);
                assert!(findings.iter().any(|finding| finding.code == Code::DocumentSchema), "{place} = {other}");
            }
        }
    }

    #[test]
    fn an_unknown_version_is_refused() {
        let path = "control/x.json".parse().unwrap();
        let text = br#"{"schema_version":"9.0.0","authority_set":[]}"#;
        assert_eq!(codes(load::<AuthorityLedger>(Kind::AuthorityLedger, &path, text))[0].2.as_deref(), Some("/schema_version"));
    }

    #[test]
    fn a_schema_cannot_reach_outside_itself() {
        for reference in ["http://localhost:1/x.json", "file:///etc/passwd"] {
            let schema = serde_json::json!({"$ref": reference});
            let findings = validate_by(&schema, "s", "t", "d", b"1", &Value::from(1));
            assert_eq!(findings[0].code, Code::SchemaInvalid);
        }
        let schema = serde_json::json!({"format": "no-such-format"});
        assert_eq!(validate_by(&schema, "s", "t", "d", b"\"x\"", &Value::from("x"))[0].code, Code::SchemaInvalid);
    }
}
