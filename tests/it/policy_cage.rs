//! Policies that run away, in the real binary's cage: each is a clean refusal, and the parent lives on.

#![expect(clippy::unwrap_used, reason = "helpers of tests, which the lint does not see as tests")]

use std::path::Path;

use git_cbia::document::finding::Code;
use git_cbia::document::json;
use git_cbia::policy::tester::{self, Outcome};
use git_cbia::policy::{
    Ahead, Bundle, Cage, DEFAULT_BUNDLE, Decision, Evaluation, PolicyFile, Prepared, Question, check, evaluate, memo_key, recall,
};
use serde_json::{Value, json};

fn cage() -> Cage {
    Cage::new(Path::new(env!("CARGO_BIN_EXE_git-cbia")))
}

fn bundle(files: &[(&str, &str)]) -> Bundle {
    let file = |(path, text): &(&str, &str)| PolicyFile { path: path.parse().unwrap(), text: text.as_bytes().to_vec() };
    Bundle::new(files.iter().map(file).collect()).unwrap()
}

fn policy(body: &str) -> Bundle {
    bundle(&[("policy/p.rego", &format!("package assurance\n{body}"))])
}

fn question<'a>(bundle: &'a Bundle, input: &'a Value) -> Question<'a> {
    Question { bundle, query: "data.assurance.allow", input }
}

#[test]
fn a_policy_that_runs_away_is_an_error_that_says_how() {
    let squares = "x0 := 99999999999999\n".to_owned()
        + &(0..40).map(|n| format!("x{} := x{n} * x{n}\n", n + 1)).collect::<String>()
        + "allow if x40 > 0\n";
    let cases = [
        ("allow if count(numbers.range(1, 100000000)) > 0\n", "ran out of memory"),
        ("allow if count([[a, b, c] | some a in input.n; some b in input.n; some c in input.n]) > 0\n", "ran out of"),
        (
            "allow if {\n\tevery a in numbers.range(1, 30000) {\n\t\tevery b in numbers.range(1, 30000) {\n\t\t\ta + b > 0\n\t\t}\n\t}\n}\n",
            "ran out of time",
        ),
        ("allow if count(sprintf(\"%0999999999d\", [1])) > 0\n", "ran out of"),
        ("allow if bits.lsh(1, 4000000000) > 0\n", "ran out of"),
        (squares.as_str(), "ran out of"),
    ];
    let input = json!({"n": (0..1000).collect::<Vec<u32>>()});
    for (text, wanted) in cases {
        let bundle = policy(text);
        let evaluation = evaluate(&cage(), &question(&bundle, &input));
        let name: String = text.chars().take(60).collect();
        assert_eq!(evaluation.decision, Decision::Error, "{name}");
        assert_eq!(evaluation.decision_json.cbia.decision, Decision::Error, "{name}");
        assert!(evaluation.decision_json.result.is_empty(), "{name}");
        assert!(!evaluation.memoizable(), "{name}");
        let [finding] = evaluation.findings.as_slice() else { panic!("{name}: {:?}", evaluation.findings) };
        assert_eq!(finding.code, Code::PolicyError, "{name}");
        assert!(finding.message.contains(wanted), "{name}: {}", finding.message);
        let (decision, explain) = (json::emit(&evaluation.decision_json), json::emit(&evaluation.explain_json));
        assert_eq!(recall(&question(&bundle, &input), &decision, &explain), None, "{name}");
    }
}

#[test]
fn what_nests_too_deep_for_the_stack_is_an_error() {
    let files: Vec<(String, String)> = (0..2)
        .map(|file| {
            let inner: String = (0..9_999).map(|n| format!("f{n}(x) := f{}(x)\n", n + 1)).collect();
            let text = format!("package p{file}\n{inner}f9999(x) := data.p{}.f0(x)\n", file + 1);
            (format!("policy/p{file}.rego"), text)
        })
        .collect();
    let mut texts: Vec<(&str, &str)> = files.iter().map(|(path, text)| (path.as_str(), text.as_str())).collect();
    texts.push(("policy/p2.rego", "package p2\nf0(x) := x\n"));
    texts.push(("policy/a.rego", "package assurance\nallow if data.p0.f0(1) == 1\n"));
    let (bundle, input) = (bundle(&texts), json!({}));
    let evaluation = evaluate(&cage(), &question(&bundle, &input));
    let told: Vec<_> = evaluation.findings.iter().map(|f| (f.code, f.message.as_str())).collect();
    assert_eq!(evaluation.decision, Decision::Error);
    // A slow machine may get to the time limit first.
    assert!(told.len() == 1 && told[0].0 == Code::PolicyError && told[0].1.contains("ran out of"), "{told:?}");
}

#[test]
fn nesting_is_refused_before_any_parser_sees_it() {
    let nest =
        |open: &str, close: &str, depth: usize| format!("package p\nx := {}1{}\n", open.repeat(depth), close.repeat(depth));
    let deep = [
        nest("[", "]", 9),
        nest("[", "]", 24),
        nest("{\"a\":", "}", 9),
        nest("(", ")", 9),
        nest("[}", "]", 9),
        "[".repeat(100_000),
    ];
    for text in deep {
        let file = PolicyFile { path: "policy/p.rego".parse().unwrap(), text: text.clone().into_bytes() };
        let findings = Bundle::new(vec![file]).unwrap_err();
        assert_eq!(findings.iter().map(|f| f.code).collect::<Vec<_>>(), [Code::PolicyForbidden], "{}", &text[..30]);
        assert!(findings[0].line.is_some());
    }
    let shallow =
        [nest("[", "]", 8), "package p\nx := `[[[[[[[[[[[[`\ny := \"[[[[[[[[[[\\\"[[[\"\n# [[[[[[[[[[[[[[\nz := 1\n".to_owned()];
    for text in shallow {
        let bundle = bundle(&[("policy/p.rego", &text)]);
        assert_eq!(check(&cage(), &bundle), [], "{text}");
    }
}

#[test]
fn a_large_input_is_answered_or_refused_without_deadlock() {
    let bundle = policy("default allow := false\nallow if input.last == 1\n");
    let texts: Vec<String> = (0..30_000).map(|n| format!("{n:01000}")).collect();
    let input = json!({"texts": texts, "last": 1});
    let evaluation = evaluate(&cage(), &question(&bundle, &input));
    assert!(matches!(evaluation.decision, Decision::Allow | Decision::Error), "{:?}", evaluation.findings);
    let small: Vec<Value> = vec![json!([1]); 5_000_000];
    let evaluation = evaluate(&cage(), &question(&bundle, &json!({"small": small})));
    assert_eq!(evaluation.decision, Decision::Error);
    assert_eq!(evaluation.findings[0].code, Code::PolicyError);
}

#[test]
fn a_binary_that_is_no_cage_gives_an_error() {
    let (bundle, input) = (policy("allow := true\n"), json!({}));
    for program in ["/bin/true", "/bin/false", "/bin/cat", "/no/such/program"] {
        let evaluation = evaluate(&Cage::new(Path::new(program)), &question(&bundle, &input));
        assert_eq!(evaluation.decision, Decision::Error, "{program}");
        assert_eq!(evaluation.findings[0].code, Code::PolicyError, "{program}");
    }
}

#[test]
fn a_refused_bundle_is_an_error_with_its_place() {
    let bundle = policy("allow if time.now_ns() > 0\n");
    let input = json!({});
    let evaluation = evaluate(&cage(), &question(&bundle, &input));
    assert_eq!(evaluation.decision, Decision::Error);
    let finding = &evaluation.findings[0];
    assert_eq!((finding.code, finding.place().as_deref()), (Code::PolicyForbidden, Some("policy/p.rego:2:10")));
    assert_eq!(evaluation.decision_json.errors[0].location.as_ref().map(|at| at.row), Some(2));
}

#[test]
fn what_was_begun_answers_its_own_question_and_no_other() {
    let bundles = [1, 2].map(|x| policy(&format!("default allow := false\nallow if input.x == {x}\nother if input.x == 1\n")));
    let inputs = [json!({"x": 1, "y": {"b": "a  \\\" b", "a": [1, 2]}}), json!({"x": 2})];
    let mut questions = Vec::new();
    for (bundle, input) in bundles.iter().flat_map(|bundle| inputs.iter().map(move |input| (bundle, input))) {
        questions.push(question(bundle, input));
        questions.push(Question { query: "data.assurance.other", ..question(bundle, input) });
    }
    let answers: Vec<Evaluation> = questions.iter().map(|question| evaluate(&cage(), question)).collect();
    for begun in &questions {
        let mut ahead = Ahead::default();
        assert!(ahead.begin(&cage(), begun) && ahead.begin(&cage(), begun));
        for (asked, answer) in questions.iter().zip(&answers) {
            assert_eq!(ahead.is_begun(&memo_key(asked)), std::ptr::eq(begun, asked), "{asked:?}");
            let mut ahead = Ahead::default();
            ahead.begin(&cage(), begun);
            assert_eq!(ahead.evaluate(&cage(), asked), *answer, "{asked:?}");
            assert!(!ahead.is_begun(&memo_key(begun)), "what was begun for nothing goes on");
        }
    }
    // No more than a few run at once, and one that never ends does not outlive those who wait for it.
    let endless = policy(
        "allow if {\n\tevery a in numbers.range(1, 30000) {\n\t\tevery b in numbers.range(1, 30000) {\n\t\t\ta + b > 0\n\t\t}\n\t}\n}\n",
    );
    let mut ahead = Ahead::default();
    assert!(ahead.begin(&cage(), &question(&endless, &inputs[0])));
    let going_on = questions.iter().filter(|question| ahead.begin(&cage(), question)).count();
    assert!(going_on < questions.len());
}

#[test]
fn a_prepared_document_is_the_same_question() {
    let bundle = policy("default allow := false\n");
    for input in [json!({"b": {"d": [1, {}], "a": "x  \\\" y"}, "a": null}), json!([]), json!({"\u{e9}": 1.5})] {
        let key = memo_key(&question(&bundle, &input));
        let same = |input: &Prepared| memo_key(&Question { bundle: &bundle, query: "data.assurance.allow", input });
        assert_eq!(same(&Prepared::new(&input)), key, "{input}");
        assert_eq!(same(&Prepared::emitted(&json::emit(&input))), key, "{input}");
        assert_ne!(same(&Prepared::emitted(b"{}")), key, "{input}");
    }
}

#[test]
fn a_remembered_decision_is_believed_only_whole() {
    let bundle = policy("default allow := false\nallow if input.x == 1\n");
    for x in [1, 2] {
        let input = json!({"x": x});
        let question = question(&bundle, &input);
        let fresh = evaluate(&cage(), &question);
        assert_eq!(fresh.decision, if x == 1 { Decision::Allow } else { Decision::Deny });
        assert_eq!(fresh.decision_json.cbia.decision_id, memo_key(&question));
        let (decision, explain) = (json::emit(&fresh.decision_json), json::emit(&fresh.explain_json));
        assert_eq!(recall(&question, &decision, &explain), Some(fresh.clone()));

        let other_input = json!({"x": 3});
        assert_eq!(recall(&Question { input: &other_input, ..question }, &decision, &explain), None);
        let other_bundle = policy("default allow := false\nallow if input.x == 2\n");
        assert_eq!(recall(&Question { bundle: &other_bundle, ..question }, &decision, &explain), None);
        assert_eq!(recall(&Question { query: "data.control.kernel.allow", ..question }, &decision, &explain), None);

        let original = json::to_value(&fresh.decision_json);
        for (pointer, value) in [
            ("/result/0/expressions/0/value", json!(x != 1)),
            ("/cbia/decision", json!(if x == 1 { "DENY" } else { "ALLOW" })),
            ("/cbia/decision", json!("ERROR")),
            ("/cbia/decision_id", json!("0".repeat(64))),
            ("/cbia/input_hash", json!("0".repeat(64))),
            ("/cbia/policy_hash", json!("0".repeat(64))),
            ("/cbia/explain_hash", json!("0".repeat(64))),
            ("/cbia/engine/version", json!("0.14.0")),
        ] {
            let mut forged = original.clone();
            *forged.pointer_mut(pointer).unwrap() = value;
            assert_eq!(recall(&question, &json::pretty(&forged), &explain), None, "{pointer}");
        }
        assert_eq!(recall(&question, &decision[1..], &explain), None);
        assert_eq!(recall(&question, &decision, b"{}\n"), None);
        let mut swapped = json::to_value(&fresh.explain_json);
        swapped["allow"] = json!(x != 1);
        let swapped = json::pretty(&swapped);
        let mut rehashed = original.clone();
        rehashed["cbia"]["explain_hash"] = json!(git_cbia::document::digest::Digest::of(&swapped));
        assert_eq!(recall(&question, &json::pretty(&rehashed), &swapped), None, "a swapped explanation");
    }
}

#[test]
fn policy_tests_run_in_the_cage() {
    let texts = [
        ("policy/a.rego", "package a\nallow if input.x\n"),
        (
            "policy/a_test.rego",
            "package a_test\nimport data.a\ntest_pass if a.allow with input as {\"x\": true}\ntest_fail if a.allow with input as {}\n\
             test_error if lower(input.y) with input as {\"y\": 1}\ntodo_test_later if false\n\
             test_bomb if count(numbers.range(1, 100000000)) > 0\n",
        ),
    ];
    let results = tester::run(&cage(), &bundle(&texts)).unwrap();
    let got: Vec<_> = results
        .iter()
        .map(|r| {
            let outcome = match &r.outcome {
                Outcome::Pass => "pass".to_owned(),
                Outcome::Fail => "fail".to_owned(),
                Outcome::Skip => "skip".to_owned(),
                Outcome::Error(why) => format!("error {}", why.contains("ran out of memory")),
            };
            (r.test.row, r.test.name.as_str(), outcome, r.finding().map(|f| f.code))
        })
        .collect();
    let failed = Some(Code::PolicyTestFailed);
    assert_eq!(
        got,
        [
            (3, "test_pass", "pass".to_owned(), None),
            (4, "test_fail", "fail".to_owned(), failed),
            (5, "test_error", "error false".to_owned(), failed),
            (6, "todo_test_later", "skip".to_owned(), None),
            (7, "test_bomb", "error true".to_owned(), failed),
        ]
    );
}

#[test]
fn the_default_bundle_decides_alike_in_every_cage() {
    let bundle = bundle(DEFAULT_BUNDLE);
    assert_eq!(check(&cage(), &bundle), []);
    let input = json!({});
    let first = evaluate(&cage(), &question(&bundle, &input));
    assert_eq!(first.decision, Decision::Deny);
    assert_eq!(first.explain_json.checks.len(), 7);
    assert!(first.explain_json.checks.values().all(|check| !check.value));
    let second = evaluate(&cage(), &question(&bundle, &input));
    assert_eq!(json::emit(&first.decision_json), json::emit(&second.decision_json));
    assert_eq!(json::emit(&first.explain_json), json::emit(&second.explain_json));
}
