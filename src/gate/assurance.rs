//! The OPA gate: GEN cannot start without the proof that it was admitted.

use crate::document::capsule::{Capsule, KernelDecision};
use crate::document::digest::Digest;
use crate::document::finding::{Code, Finding};

/// The proof that a control state was admitted: its capsule says ALLOW, and the assurance policy's answer over exactly that
/// capsule is `true`. Only [`admit`] makes one, and GEN cannot be called without it.
#[derive(Clone, Debug)]
pub struct Admission {
    capsule: Capsule,
    capsule_hash: Digest,
}

impl Admission {
    /// The capsule that was admitted.
    pub fn capsule(&self) -> &Capsule {
        &self.capsule
    }

    /// SHA-256 of its emitted bytes.
    pub fn capsule_hash(&self) -> Digest {
        self.capsule_hash
    }
}

/// Admits a capsule by the policy's answer: the value of `data.assurance.allow`, absent where it is undefined.
pub fn admit(capsule: &Capsule, answer: Option<&serde_json::Value>) -> Result<Admission, Finding> {
    match refusal(capsule, answer) {
        Some(refusal) => Err(refusal),
        None => {
            let capsule_hash = Digest::of(&crate::document::json::emit(capsule));
            Ok(Admission { capsule: capsule.clone(), capsule_hash })
        }
    }
}

/// Why the policy's answer over a capsule does not let it pass, before GEN or at EVAL.
///
/// Anything but exactly `true` refuses. The policy floor explains why; this gate only says that it does not pass.
pub fn refusal(capsule: &Capsule, answer: Option<&serde_json::Value>) -> Option<Finding> {
    if capsule.kernel_decision != KernelDecision::Allow {
        return Some(
            Finding::error(Code::KernelDenied, "the control kernel denied the control state").at(super::paths::CAPSULE_PATH),
        );
    }
    if answer != Some(&serde_json::Value::Bool(true)) {
        let got = answer.map_or("undefined".to_owned(), serde_json::Value::to_string);
        let finding =
            Finding::error(Code::AssuranceDenied, "the assurance policy does not allow the run").at("opa/decision.json");
        return Some(finding.expected("true", got).hint("opa/explain.json says which checks failed, and why"));
    }
    None
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use serde_json::{Value, json};

    use super::*;
    use crate::document::executor::{ExecutorKind, GenExecutor};

    #[test]
    fn only_exactly_true_over_an_allowing_capsule_admits() {
        let capsule = |kernel_decision| Capsule {
            schema_version: "0.1.0".into(),
            kernel_decision,
            control_state_hash: Digest::of(b"c"),
            policy_bundle_hash: Digest::of(b"p"),
            authority_set_hashes: BTreeMap::new(),
            inputs_manifest_hash: Digest::of(b"i"),
            dependency_graph_hash: None,
            execution_dag_hash: None,
            gen_executor: GenExecutor {
                kind: ExecutorKind::Builtin,
                version: "1".into(),
                runner_version: "1".into(),
                config: None,
                programs: Vec::new(),
            },
        };
        let code = |decision, answer: Option<Value>| admit(&capsule(decision), answer.as_ref()).err().map(|f| f.code);
        assert_eq!(code(KernelDecision::Allow, Some(json!(true))), None);
        assert_eq!(code(KernelDecision::Deny, Some(json!(true))), Some(Code::KernelDenied));
        for answer in [None, Some(json!(false)), Some(json!("true")), Some(json!(1)), Some(json!([true])), Some(Value::Null)] {
            assert_eq!(code(KernelDecision::Allow, answer.clone()), Some(Code::AssuranceDenied), "{answer:?}");
        }
    }
}
