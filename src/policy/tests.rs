//! The policy engine from the inside: lint, evaluation, explanation, memo, and the default bundle.

use serde_json::{Value, json};

use super::*;
use crate::document::cage::RequestFile;

fn files(texts: &[(&str, &str)]) -> Vec<RequestFile> {
    texts.iter().map(|(path, text)| RequestFile { path: path.parse().unwrap(), text: (*text).to_owned() }).collect()
}

fn ask(texts: &[(&str, &str)], ask: Ask, input: &Value) -> Answer {
    engine::answer(Request { files: files(texts), ask }, &input.to_string())
}

/// The refusals of one policy file as `line:column message`.
fn refusals(text: &str) -> Vec<String> {
    refusals_of(&[("policy/p.rego", text)])
}

fn refusals_of(texts: &[(&str, &str)]) -> Vec<String> {
    match ask(texts, Ask::Lint, &Value::Null) {
        Answer::Clean => Vec::new(),
        Answer::Refused { findings } => findings
            .iter()
            .map(|f| format!("{}:{}: {} {}", f.line.unwrap_or(0), f.column.unwrap_or(0), f.code, f.message))
            .collect(),
        other => panic!("{other:?}"),
    }
}

fn default_files() -> Vec<RequestFile> {
    files(DEFAULT_BUNDLE)
}

#[test]
fn the_default_bundle_passes_its_own_tests() {
    let run = |ask| engine::answer(Request { files: default_files(), ask }, "");
    let Answer::Tests { tests } = run(Ask::ListTests) else { panic!("{:?}", run(Ask::ListTests)) };
    let rules: Vec<String> = tests.iter().map(|t| format!("{}.{}", t.package, t.name)).collect();
    let Answer::Tested { outcomes } = run(Ask::RunTests { rules: rules.clone() }) else { panic!() };
    let failed: Vec<_> = rules.iter().zip(&outcomes).filter(|(_, o)| **o != crate::document::cage::TestOutcome::Pass).collect();
    assert!(failed.is_empty(), "{failed:#?}");
    assert!(rules.len() > 40, "{}", rules.len());
}

#[test]
fn each_refusal_names_its_place() {
    let head = "package p\n";
    let cases: &[(&str, &[&str])] = &[
        ("allow if input.x == 1\n", &[]),
        ("p contains input.x if some o in input.l\n", &["2:12: policy-forbidden a rule's head may hold"]),
        ("p contains f(o) if some o in input.l\nf(x) := x\n", &["2:12: policy-forbidden a rule's head may hold"]),
        ("p contains {\"id\": o.id} if some o in input.l\n", &["2:12: policy-forbidden a rule's head may hold"]),
        ("p contains {\"id\": o} if some o in input.l\n", &[]),
        ("p[k] := o.v if some k, o in input.l\n", &["2:9: policy-forbidden a rule's head may hold"]),
        ("p[o.k] := 1 if some o in input.l\n", &["2:3: policy-forbidden a rule's head may hold"]),
        ("q := 1\np contains q if some o in input.l\n", &["3:12: policy-forbidden a rule's head may hold"]),
        ("p := 1 if { false } else := input.x\n", &["2:29: policy-forbidden a rule's head may hold"]),
        ("f(x) := x.y if x.z\n", &["2:9: policy-forbidden a rule's head may hold"]),
        ("f(x) := x.y\n", &[]),
        ("p := input.l[_].x\n", &["2:14: policy-forbidden a rule's head iterates"]),
        ("p := count(input.l)\n", &[]),
        ("p if not f(input.x)\nf(x) if x == 1\n", &["2:6: policy-forbidden 'not' over"]),
        ("p if not \"a\" in input.x\n", &["2:6: policy-forbidden 'not' over"]),
        ("p if not count(input.x) > 0\n", &["2:6: policy-forbidden 'not' over"]),
        ("p if not input.a == 1\n", &["2:6: policy-forbidden 'not' over"]),
        ("p if not input.m[input.k]\n", &["2:6: policy-forbidden 'not' over"]),
        ("p if not input.a\n", &[]),
        ("p if {\n\tx := input.a\n\tnot x == 1\n}\n", &[]),
        ("p if {\n\tx := input.a\n\tnot x in s\n}\ns contains 1\n", &[]),
        ("p if {\n\tx := input.a\n\tnot x in s\n}\ns := input.b\n", &["4:2: policy-forbidden 'not' over"]),
        ("p if {\n\tx := input.a\n\tnot g(f(x))\n}\nf(x) := x.y\ng(x) if x\n", &["4:2: policy-forbidden 'not' over"]),
        (
            "p if q\nq if r\nr if p\n",
            &["2:1: policy-forbidden data.p.p is", "3:1: policy-forbidden data.p.q is", "4:1: policy-forbidden data.p.r is"],
        ),
        ("f(x) := f(x)\n", &["2:1: policy-forbidden data.p.f is"]),
        ("p if count(data.p) > 0\n", &["2:1: policy-forbidden data.p.p is"]),
        ("p if data[input.x].q\n", &["2:1: policy-forbidden data.p.p is"]),
        ("default p := false\ndefault p := true\n", &["3:1: policy-forbidden data.p.p has more than one default"]),
        ("p := 9007199254740992\n", &["2:6: policy-forbidden the number does not survive"]),
        ("p if 1e400 > input.x\n", &["2:6: policy-forbidden the number does not survive"]),
        ("p if {\n\tx := input.a\n\tregex.match(`\\d`, x)\n}\n", &["4:14: policy-forbidden the regular expression uses"]),
        ("p if regex.match(\"(?i)a\", input.x)\n", &["2:18: policy-forbidden the regular expression uses"]),
        ("p if regex.match(input.p, input.x)\n", &["2:18: policy-forbidden a regular expression that is computed"]),
        ("p if regex.match(\"[0-9]\", input.x)\n", &[]),
        ("p if q with input as {}\nq if input.x\n", &["2:8: policy-forbidden 'with' replaces"]),
        ("p if count(input.x, 1)\n", &["2:6: policy-invalid count takes 1 argument, not 2"]),
        ("__cbia contains 1\n", &["2:1: policy-forbidden a rule's name begins with"]),
        ("p if x == 1\n", &["2:6: policy-invalid use of undefined variable `x` is unsafe"]),
        ("p if {\n", &["3:1: policy-invalid"]),
        ("p.q := 1\np := 2\n", &["2:1: policy-forbidden data.p.p.q lies below the rule data.p.p"]),
        ("p := 1\np contains 2\n", &["3:1: policy-forbidden data.p.p is defined in two different ways"]),
    ];
    for (text, expected) in cases {
        let got = refusals(&format!("{head}{text}"));
        let same = got.len() == expected.len() && got.iter().zip(*expected).all(|(got, wanted)| got.starts_with(wanted));
        assert!(same, "{text}\nwanted {expected:#?}\ngot {got:#?}");
    }
}

#[test]
fn every_forbidden_function_is_refused_by_name() {
    let names = [
        "http.send",
        "net.lookup_ip_addr",
        "net.cidr_expand",
        "time.now_ns",
        "time.parse_rfc3339_ns",
        "time.clock",
        "rand.intn",
        "uuid.rfc4122",
        "opa.runtime",
        "rego.metadata.rule",
        "io.jwt.decode_verify",
        "crypto.sha256",
        "print",
        "trace",
        "walk",
        "json.marshal",
        "json.unmarshal",
        "strings.replace_n",
        "regex.globs_match",
        "regex.template_match",
        "yaml.unmarshal",
        "urlquery.decode",
        "graphql.parse",
        "providers.aws.sign_req",
        "test.sleep",
        "no.such_function",
    ];
    for name in names {
        for body in [format!("p if {name}(input.x)\n"), format!("p if {{\n\tfalse\n\tx := [y | y := {name}(input.x)]\n}}\n")] {
            let got = refusals(&format!("package p\n{body}"));
            let wanted = format!("policy-forbidden the function {name} may not be called");
            assert!(got.len() == 1 && got[0].contains(&wanted), "{name}: {got:?}");
        }
    }
}

#[test]
fn one_file_cannot_change_what_another_decides() {
    let a = ("policy/a.rego", "package assurance\ndefault allow := false\nallow if input.x\n");
    let cases = [
        ("package assurance\nallow if true\n", "data.assurance.allow is also defined in policy/a.rego"),
        ("package assurance.allow\nx := true\n", "data.assurance.allow reaches into the package data.assurance.allow"),
        ("package root\nimport data.assurance\nassurance := 1\n", ""),
    ];
    for (text, wanted) in cases {
        let got = refusals_of(&[a, ("policy/b.rego", text)]);
        assert_eq!(got.iter().any(|g| g.contains(wanted)), !wanted.is_empty(), "{text} {got:?}");
    }
    let kernel = ("policy/k.rego", "package control.kernel\ndefault allow := false\n");
    for text in [
        "package control\nkernel := {\"allow\": true}\n",
        "package control\nkernel.allow := true\n",
        "package control\nkernel[x] := true if some x in [\"allow\"]\n",
    ] {
        assert!(!refusals_of(&[kernel, ("policy/z.rego", text)]).is_empty(), "{text}");
    }
}

fn evaluated(policy: &str, input: &Value) -> (Option<Value>, ExplainDocument) {
    match ask(&[("policy/p.rego", policy)], Ask::Evaluate { query: "data.p.allow".into() }, input) {
        Answer::Evaluated { value, explain } => (value, *explain),
        other => panic!("{other:?}"),
    }
}

#[test]
fn only_exact_true_allows() {
    let cases = [
        ("package p\nallow if input.x == 1\n", Some(json!(true)), ""),
        ("package p\nallow := \"true\"\n", Some(json!("true")), "policy-not-boolean"),
        ("package p\nallow := null\n", Some(json!(null)), "policy-not-boolean"),
        ("package p\nallow := 1\n", Some(json!(1)), "policy-not-boolean"),
        ("package p\nallow contains true\n", Some(json!([true])), "policy-not-boolean"),
        ("package p\nallow if input.x == 2\n", None, "policy-undefined"),
        ("package p\nallowed := true\n", None, "policy-missing"),
        ("package q\nallow := true\n", None, "policy-missing"),
        ("package p\ndefault allow := false\nallow if input.x == 2\n", Some(json!(false)), "policy-denied"),
    ];
    for (policy, value, code) in cases {
        let (got, explain) = evaluated(policy, &json!({"x": 1}));
        assert_eq!(got, value, "{policy}");
        assert_eq!(explain.allow, code.is_empty(), "{policy}");
        let codes: Vec<_> = findings_of("data.p.allow", &explain).iter().map(|f| f.code.to_string()).collect();
        assert_eq!(codes, if code.is_empty() { vec![] } else { vec![code] }, "{policy}");
    }
}

#[test]
fn conditions_are_told_apart_with_their_operands() {
    let policy = "package p\ndefault allow := false\nallow if {\n\tsome o in input.l\n\to.a == 1\n\tcount(o.b) > input.n\n\tinput.z\n}\n\
                  allow if {\n\tinput.missing == 1\n}\n";
    let input = json!({"l": [{"a": 2}, {"a": 1, "b": [7]}], "n": 3});
    let (_, explain) = evaluated(policy, &input);
    let got: Vec<_> = explain.checks["allow"]
        .conditions
        .iter()
        .map(|c| (c.row, json::to_value(&c.outcome), json!(c.operands), c.undefined.clone()))
        .collect();
    let none = || json!({});
    assert_eq!(
        got,
        vec![
            (4, json!("held"), none(), vec![]),
            (5, json!("held"), none(), vec![]),
            (6, json!("failed"), json!({"count(o.b)": 1, "input.n": 3, "o.b": [7]}), vec![]),
            (7, json!("not_reached"), none(), vec![]),
            (10, json!("failed"), none(), vec!["input.missing".to_owned()]),
        ]
    );
    assert_eq!(
        explain.explain,
        ["allow: FAIL (count(o.b) > input.n does not hold: count(o.b) = 1, input.n = 3, o.b = [7]; \
          input.missing == 1 does not hold: input.missing is undefined)"]
    );
    assert_eq!(explain.checks["allow"].location.as_ref().map(|l| l.row), Some(3));
}
