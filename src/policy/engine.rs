//! Loading, linting and evaluating policies in this process: the inside of the cage.
//!
//! Nothing here bounds time or memory; [`super::cage`] does. Only the cage's child and tests come here.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use regex::{Regex, RegexBuilder};
use regorus::unstable::{Module, Ref};
use regorus::{Engine, Value};

use super::explain;
use super::lint;
use super::lint::program::{Program, RulePath};
use crate::document::cage::{Answer, Ask, Request, RequestFile, TestOutcome, TestRule};
use crate::document::finding::{Code, Finding};

/// The engine's name, part of every memo key.
pub const NAME: &str = "regorus";
/// The engine's exact version, as `Cargo.toml` pins it; part of every memo key.
pub const ENGINE_VERSION: &str = "0.14.1";

/// The largest compiled pattern, in bytes: the engine's own limit.
const PATTERN_BYTES: usize = 100 << 10;
/// The most compiled patterns that are kept.
const MAX_PATTERNS: usize = 256;

/// A bundle that the lint has nothing to say against.
pub struct Loaded {
    /// The engine as it is.
    pub(super) engine: Engine,
    quick: Quick,
    pub(super) modules: Vec<Ref<Module>>,
    pub(super) program: Program,
}

/// The engine ended with an error instead of a value.
#[derive(Debug, thiserror::Error)]
#[error("while {doing}: {source}")]
pub struct EngineError {
    doing: &'static str,
    source: Box<dyn std::error::Error + Send + Sync>,
}

impl EngineError {
    pub(super) fn new(doing: &'static str, source: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> Self {
        Self { doing, source: source.into() }
    }
}

impl Loaded {
    /// Parses and lints. All parse errors are reported, or all refusals of the lint.
    pub fn new(files: Vec<RequestFile>) -> Result<Self, Vec<Finding>> {
        let mut engine = Engine::new();
        engine.set_strict_builtin_errors(true);
        engine.set_gather_prints(true);
        let mut findings = Vec::new();
        for RequestFile { path, text } in files {
            if let Err(error) = engine.add_policy(path.as_str().to_owned(), text) {
                findings.push(located(Code::PolicyInvalid, &error.to_string(), Some(path.as_str())));
            }
        }
        if !findings.is_empty() {
            return Err(findings);
        }
        let modules = engine.get_modules().clone();
        let program = Program::of(&modules);
        let findings = lint::lint(&modules, &program);
        if !findings.is_empty() {
            return Err(findings);
        }
        // What the engine itself finds in preparing rules, such as unsafe variables, is found here and not when reached.
        let prepared = engine.eval_query("true".to_owned(), false);
        match prepared {
            Ok(_) => Ok(Self { quick: Quick::new(&engine), engine, modules, program }),
            Err(error) => Err(vec![located(Code::PolicyInvalid, &error.to_string(), None)]),
        }
    }

    /// The value of a rule, or nothing if it is undefined.
    pub fn value(&self, rule: &str, input: &Value) -> Result<Option<Value>, EngineError> {
        let value = |engine: &Engine| {
            let mut engine = engine.clone();
            engine.set_input(input.clone());
            value_in(&mut engine, rule)
        };
        let quick = value(&self.quick.engine);
        // What goes wrong with a pattern is told in the engine's own words.
        if quick.is_err() && self.quick.gave_up.load(Ordering::Relaxed) { value(&self.engine) } else { quick }
    }

    /// Whether `path` is a rule of the bundle.
    pub fn has_rule(&self, path: &RulePath) -> bool {
        self.program.rules.contains_key(path)
    }
}

/// The engine, with its `regex.match` replaced by one that answers the same. The engine's own keeps compiled patterns too, and copies one for each
/// call, without the automaton that the calls before have built.
struct Quick {
    engine: Engine,
    /// Whether a call was left to the engine's own function.
    gave_up: Arc<AtomicBool>,
}

impl Quick {
    fn new(engine: &Engine) -> Self {
        let gave_up = Arc::new(AtomicBool::new(false));
        let mut patterns: HashMap<Arc<str>, Regex> = HashMap::new();
        let given_up = gave_up.clone();
        let matches = move |arguments: Vec<Value>| {
            let matched = matched(&arguments, &mut patterns);
            given_up.fetch_or(matched.is_none(), Ordering::Relaxed);
            Ok(Value::Bool(matched.ok_or(NotQuick)?))
        };
        let mut engine = engine.clone();
        // Refused only where there is one of this name already; then the engine is as quick as it is.
        engine.add_extension("regex.match".to_owned(), 2, Box::new(matches)).ok();
        Self { engine, gave_up }
    }
}

/// Whether a text matches a pattern; nothing where they are not that.
fn matched(arguments: &[Value], patterns: &mut HashMap<Arc<str>, Regex>) -> Option<bool> {
    let [Value::String(pattern), Value::String(text)] = arguments else { return None };
    if !patterns.contains_key(pattern) {
        if patterns.len() == MAX_PATTERNS {
            patterns.clear();
        }
        patterns.insert(pattern.clone(), RegexBuilder::new(pattern).size_limit(PATTERN_BYTES).build().ok()?);
    }
    patterns.get(pattern).map(|compiled| compiled.is_match(text))
}

/// Something that the engine's own function is to answer.
#[derive(Debug, thiserror::Error)]
#[error("this is for the engine's own regex.match")]
struct NotQuick;

/// The value of a rule in a prepared engine, or nothing if it is undefined.
pub(super) fn value_in(engine: &mut Engine, rule: &str) -> Result<Option<Value>, EngineError> {
    let results = engine.eval_query(rule.to_owned(), false).map_err(|error| EngineError::new("evaluating", error))?;
    let expression = results.result.into_iter().next().and_then(|result| result.expressions.into_iter().next());
    Ok(expression.map(|expression| expression.value).filter(|value| *value != Value::Undefined))
}

/// Answers one request. `input` is the text of the input document, and is read for [`Ask::Evaluate`] only.
pub fn answer(request: Request, input: &str) -> Answer {
    let loaded = match Loaded::new(request.files) {
        Ok(loaded) => loaded,
        Err(findings) => return Answer::Refused { findings },
    };
    let answered = match request.ask {
        Ask::Lint => Ok(Answer::Clean),
        Ask::Evaluate { query } => match Value::from_json_str(input) {
            Ok(input) => {
                let answer = evaluate(&loaded, &query, &input);
                // The process ends here. Giving back a large document first, piece by piece, would be waited for.
                std::mem::forget(input);
                answer
            }
            Err(error) => Err(EngineError::new("reading the input document", error)),
        },
        Ask::ListTests => Ok(Answer::Tests { tests: tests(&loaded) }),
        Ask::RunTests { rules } => Ok(Answer::Tested { outcomes: rules.iter().map(|rule| run_test(&loaded, rule)).collect() }),
    };
    answered.unwrap_or_else(|error| Answer::Failed { message: error.to_string() })
}

/// Decides, and explains. One evaluation of the whole package gives the decision and what explains it; a package of which some other rule
/// cannot be evaluated is asked for the deciding rule alone, because that is what decides.
fn evaluate(loaded: &Loaded, query: &str, input: &Value) -> Result<Answer, EngineError> {
    let rule: RulePath = query.split('.').skip(1).map(str::to_owned).collect();
    let (package, name) = query.rsplit_once('.').unwrap_or((query, ""));
    let whole = if loaded.has_rule(&rule) { loaded.value(package, input).ok().flatten() } else { None };
    let value = match &whole {
        Some(Value::Object(members)) => members.get(&Value::from(name)).filter(|value| **value != Value::Undefined).cloned(),
        _ if loaded.has_rule(&rule) => loaded.value(query, input)?,
        _ => None,
    };
    let explain = Box::new(explain::explain(loaded, &rule, value.as_ref(), whole.as_ref(), input));
    Ok(Answer::Evaluated { value: value.as_ref().map(explain::bounded), explain })
}

fn tests(loaded: &Loaded) -> Vec<TestRule> {
    let mut found = Vec::new();
    for (path, definitions) in &loaded.program.rules {
        let (Some((name, package)), Some(first)) = (path.split_last(), definitions.first()) else { continue };
        let function = matches!(first.kind, lint::program::Kind::Function(_));
        let named = name.starts_with("test_") || name.starts_with("todo_test_");
        if named && !function && first.place.file.ends_with("_test.rego") {
            let package = format!("data.{}", package.join("."));
            found.push(TestRule { file: first.place.file.clone(), row: first.place.row, package, name: name.clone() });
        }
    }
    found.sort_by(|a, b| (&a.file, a.row, &a.name).cmp(&(&b.file, b.row, &b.name)));
    found
}

fn run_test(loaded: &Loaded, rule: &str) -> TestOutcome {
    match loaded.value(rule, &Value::new_object()) {
        Ok(Some(value)) if value != Value::Bool(false) => TestOutcome::Pass,
        Ok(_) => TestOutcome::Fail,
        Err(error) => TestOutcome::Error(error.to_string()),
    }
}

/// A finding from one of the engine's messages, which begin `--> file:line:col`, show the source line, and end
/// `error: what is wrong`.
pub fn located(code: Code, message: &str, file: Option<&str>) -> Finding {
    let reason = message.rsplit_once("error: ").map_or(message, |(_, reason)| reason).trim();
    let head = message.split_once("--> ").map(|(_, rest)| rest.lines().next().unwrap_or_default());
    let mut parts = head.unwrap_or_default().rsplitn(3, ':');
    let column = parts.next().and_then(|text| text.trim().parse::<u64>().ok());
    let line = parts.next().and_then(|text| text.parse::<u64>().ok());
    let place = parts.next();
    let finding = Finding::error(code, reason.chars().take(1000).collect::<String>());
    let finding = finding.hint("mend the policy; git cbia policy test runs its tests");
    match (place.or(file), line, column) {
        (Some(file), Some(line), Some(column)) => finding.at(file).on(line, column),
        (Some(file), ..) => finding.at(file),
        _ => finding,
    }
}
