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
        ("import input.x\np if not f(x)\nf(y) if y == 1\n", &["3:6: policy-forbidden 'not' over"]),
        ("import data.q.x\np contains x if some y in input.l\n", &["3:12: policy-forbidden a rule's head may hold"]),
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
        ("p if 1e400 > input.x\n", &["2:6: policy-invalid invalid number"]),
        ("p if {\n\tx := input.a\n\tregex.match(`\\d`, x)\n}\n", &["4:15: policy-forbidden the regular expression uses"]),
        ("p if regex.match(\"(?i)a\", input.x)\n", &["2:19: policy-forbidden the regular expression uses"]),
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
        ("package p\nallow if {\n\tevery x in input.missing {\n\t\tx == 1\n\t}\n}\n", None, "policy-undefined"),
        ("package p\nallow if count({x | some x in input.missing}) == input.y\n", None, "policy-undefined"),
        ("package p\nallow if input.missing != 1\n", None, "policy-undefined"),
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
fn a_pattern_matches_as_the_engine_itself_matches_it() {
    let policy = "package p\nx := regex.match(\"^a+$\", input.t)\ny := regex.match(\"b\", input.t)\nz := [r | some t in input.l; r := regex.match(\"^a+$\", t)]\n";
    let loaded = engine::Loaded::new(files(&[("policy/p.rego", policy)])).unwrap();
    let many = json!({"l": ["a", "ab", "", "aaaa", "\u{e9}", "a\n"]});
    let mut failed = 0;
    for input in [json!({"t": "aa"}), json!({"t": "ab"}), json!({"t": ""}), json!({}), many, json!({"t": 3, "l": ["a", 3]})] {
        let input = regorus::Value::from(input);
        for rule in ["data.p.x", "data.p.y", "data.p.z", "data.p"] {
            let mut own = loaded.engine.clone();
            own.set_input(input.clone());
            let own = engine::value_in(&mut own, rule).map_err(|error| error.to_string());
            failed += usize::from(own.is_err());
            assert_eq!(loaded.value(rule, &input).map_err(|error| error.to_string()), own, "{rule} {input}");
        }
    }
    assert_eq!(failed, 4);
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

/// The document without what one pointer names, for every member of every object in it.
fn without_each_member(document: &Value) -> Vec<(String, Value)> {
    fn pointers(value: &Value, at: &str, found: &mut Vec<String>) {
        let members: Vec<(String, &Value)> = match value {
            Value::Object(map) => map.iter().map(|(key, value)| (json::escape(key).into_owned(), value)).collect(),
            Value::Array(items) => items.iter().enumerate().map(|(n, value)| (n.to_string(), value)).collect(),
            _ => Vec::new(),
        };
        for (key, member) in members {
            let pointer = format!("{at}/{key}");
            pointers(member, &pointer, found);
            if value.is_object() {
                found.push(pointer);
            }
        }
    }
    let mut found = Vec::new();
    pointers(document, "", &mut found);
    let remove = |pointer: String| {
        let mut copy = document.clone();
        let (parent, key) = pointer.rsplit_once('/').unwrap();
        copy.pointer_mut(parent).unwrap().as_object_mut().unwrap().remove(&key.replace("~1", "/").replace("~0", "~"));
        (pointer, copy)
    };
    found.into_iter().map(remove).collect()
}

#[test]
fn the_default_bundle_denies_whatever_is_missing() {
    let loaded = engine::Loaded::new(default_files()).unwrap_or_else(|findings| panic!("{findings:?}"));
    // Members that say nothing a decision could rest on.
    let told = ["schema_version", "title", "event", "constraints", "type", "template", "source/evidence", "entries/1/sha256"];
    for (fixture, query) in [
        ("data.assurance_test.gate", "data.assurance.allow"),
        ("data.assurance_test.final", "data.assurance.allow"),
        ("data.control.kernel_test.state", "data.control.kernel.allow"),
    ] {
        let document = loaded.value(fixture, &regorus::Value::Null).unwrap().unwrap();
        let document = serde_json::to_value(&document).unwrap();
        let allowed = |document: &Value| {
            let value = loaded.value(query, &regorus::Value::from(document.clone())).unwrap();
            value == Some(regorus::Value::Bool(true))
        };
        assert!(allowed(&document), "{fixture}");
        let removed = without_each_member(&document);
        assert!(removed.len() > 20, "{fixture}");
        let mut waved: Vec<String> = removed.into_iter().filter(|(_, rest)| allowed(rest)).map(|(pointer, _)| pointer).collect();
        waved.retain(|pointer| !told.iter().any(|name| pointer.ends_with(name)));
        assert_eq!(waved, Vec::<String>::new(), "{fixture}");
    }
}

#[test]
fn a_denial_names_the_offending_values() {
    let answer = engine::answer(
        Request { files: default_files(), ask: Ask::Evaluate { query: "data.assurance.allow".into() } },
        r#"{"authority_ledger":{"frozen":false},"pre_gen_capsule":{"kernel_decision":"DENY"}}"#,
    );
    let Answer::Evaluated { value, explain } = answer else { panic!("{answer:?}") };
    assert_eq!(value, Some(json!(false)));
    assert_eq!(
        explain.explain[1],
        "auth_immutable: FAIL (the authority ledger is not frozen: frozen is false; the kernel's decision is DENY, not ALLOW)"
    );
    let findings = findings_of("data.assurance.allow", &explain);
    let told: Vec<_> = findings.iter().filter_map(|f| f.pointer.as_deref()).collect();
    assert!(told.contains(&"/authority_ledger/frozen") && told.contains(&"/pre_gen_capsule/kernel_decision"), "{told:?}");
    assert!(findings.iter().all(|f| f.code == Code::AssuranceDenied));
    for name in explain.checks.keys() {
        assert!(findings.iter().any(|f| f.message.starts_with(&format!("{name}:"))), "{name} is not told");
    }
}

#[test]
fn files_are_checked_before_any_parser() {
    let file = |path: &str, text: &[u8]| PolicyFile { path: path.parse().unwrap(), text: text.to_vec() };
    let cases = [
        (file("policy/a.rego", b"package a\nx := \"\xff\"\n"), Code::PolicyInvalid, Some((2, 7))),
        (file("policy/a.rego", b"\xef\xbb\xbfpackage a\n"), Code::PolicyInvalid, Some((1, 1))),
        (file("policy/a.json", b"{}"), Code::PolicyInvalid, None),
        (file("policy/a.rego", &vec![b'#'; bundle::MAX_FILE_BYTES + 1]), Code::PolicyForbidden, None),
        (file("policy/a.rego", b"package a\nx := [[[[[[[[[1]]]]]]]]]\n"), Code::PolicyForbidden, Some((2, 14))),
    ];
    for (file, code, place) in cases {
        let findings = Bundle::new(vec![file]).unwrap_err();
        let got: Vec<_> = findings.iter().map(|f| (f.code, f.line.zip(f.column))).collect();
        assert_eq!(got, [(code, place)]);
    }
    let many = (0..17).map(|n| file(&format!("policy/{n}.rego"), &vec![b'#'; bundle::MAX_FILE_BYTES])).collect();
    assert_eq!(Bundle::new(many).unwrap_err()[0].code, Code::PolicyForbidden);
    let twice = vec![file("policy/a.rego", b"package a\n"), file("policy/a.rego", b"package b\n")];
    assert_eq!(Bundle::new(twice).unwrap_err()[0].code, Code::PolicyInvalid);
}

#[test]
fn the_hash_is_the_listing_of_the_policies_without_the_tests() {
    let file = |path: &str, text: &str| PolicyFile { path: path.parse().unwrap(), text: text.as_bytes().to_vec() };
    let (b, a, test) = (
        file("policy/b.rego", "package b\n"),
        file("policy/a.rego", "package a\n"),
        file("policy/a_test.rego", "package a_test\n"),
    );
    let listing = format!("{}  policy/a.rego\n{}  policy/b.rego\n", Digest::of(b"package a\n"), Digest::of(b"package b\n"));
    let bundle = Bundle::new(vec![b, test, a]).unwrap();
    assert_eq!(bundle.hash(), Digest::of(listing.as_bytes()));
    assert_eq!((bundle.policies().len(), bundle.tests().len()), (2, 1));
}

#[test]
fn every_ingredient_is_in_the_memo_key() {
    let bundle = |text: &str| {
        Bundle::new(vec![PolicyFile { path: "policy/p.rego".parse().unwrap(), text: text.as_bytes().to_vec() }]).unwrap()
    };
    let (one, two) = (bundle("package p\n"), bundle("package q\n"));
    let (x, y) = (json!({"x": 1}), json!({"x": 2}));
    let keys = [
        memo_key(&Question { bundle: &one, query: "data.p.allow", input: &x }),
        memo_key(&Question { bundle: &two, query: "data.p.allow", input: &x }),
        memo_key(&Question { bundle: &one, query: "data.q.allow", input: &x }),
        memo_key(&Question { bundle: &one, query: "data.p.allow", input: &y }),
    ];
    assert_eq!(keys.iter().collect::<std::collections::BTreeSet<_>>().len(), keys.len());
    assert_eq!(
        keys[0].to_string(),
        "0acac3d6bb3d711d2979219dd97b019d76883021f802d5589a0092ed044330b6",
        "raise MEMO_VERSION if the key's data changed"
    );
}

#[test]
fn the_engine_version_is_the_one_that_is_built_in() {
    let lock = include_str!("../../Cargo.lock");
    let wanted = format!("name = \"{}\"\nversion = \"{}\"\n", engine::NAME, engine::ENGINE_VERSION);
    assert!(lock.contains(&wanted), "{wanted}");
}
