//! Why a policy decided as it did: `opa/explain.json`.
//!
//! For every check, the conditions of its rule are told apart into held, failed and not reached by asking the engine
//! itself: a rule set is added to the package with one rule per leading part of each body, so that what holds is a
//! plain set, exact for several bodies and for iterations too. What the failed conditions compared is asked for in the same way.

use std::collections::{BTreeMap, BTreeSet};

use regorus::Value;
use regorus::unstable::{Expr, Literal, LiteralStmt, Module, Ref, Rule, RuleHead};

use super::engine::{EngineError, Loaded, value_in};
use super::lint::program::{RulePath, package_of, place, static_path};
use crate::document::decision::{EvaluationError, Location};
use crate::document::explain::{Check, Condition, ExplainDocument, Outcome, SCHEMA_VERSION};
use crate::document::finding::Code;

/// The longest value that is shown whole, in bytes of compact JSON.
const MAX_VALUE_BYTES: usize = 2000;
/// The longest text of a condition or operand that is shown, in characters.
const MAX_TEXT_CHARS: usize = 200;
/// The most entries of `deny` and of `warn` that are shown.
const MAX_ENTRIES: usize = 500;
/// The most reasons on one line of `explain`.
const MAX_REASONS: usize = 3;

/// One condition, with what it takes to ask about it.
struct Asked {
    check: usize,
    body: usize,
    stmt: usize,
    prefix: String,
    before: String,
    operands: Vec<String>,
    row: u64,
    text: String,
}

/// Explains the value that the rule at `rule` has. `whole` is the value of its package, where it could be had.
pub fn explain(loaded: &Loaded, rule: &RulePath, value: Option<&Value>, whole: Option<&Value>, input: &Value) -> ExplainDocument {
    let allow = value == Some(&Value::Bool(true));
    let (name, package) = rule.split_last().map_or(("", [].as_slice()), |(name, package)| (name.as_str(), package));
    let member = |member: &str| -> Option<Value> {
        let path = [package, &[member.to_owned()]].concat();
        if !loaded.has_rule(&path) {
            return None;
        }
        if let Some(whole) = whole.and_then(|whole| whole.as_object().ok()) {
            return whole.get(&Value::from(member)).cloned();
        }
        loaded.value(&format!("data.{}", path.join(".")), input).ok().flatten()
    };
    let mut checks: BTreeMap<String, bool> = BTreeMap::new();
    if let Some(declared) = member("checks").as_ref().and_then(|value| value.as_object().ok()) {
        for (key, value) in declared.iter() {
            if let Ok(key) = key.as_string() {
                checks.insert(key.to_string(), *value == Value::Bool(true));
            }
        }
    }
    let deny = entries(member("deny"));
    // The deciding rule is itself a check where nothing else accounts for its value.
    if checks.is_empty() || (!allow && deny.is_empty() && checks.values().all(|passed| *passed)) {
        checks.insert(name.to_owned(), allow);
    }
    let mut document = ExplainDocument {
        schema_version: SCHEMA_VERSION.to_owned(),
        allow,
        explain: Vec::new(),
        checks: conditions(loaded, package, &checks, input),
        deny,
        warn: entries(member("warn")),
        errors: errors(loaded, rule, package, value),
    };
    document.explain = document.checks.iter().map(|(name, check)| line(name, check, &document.deny)).collect();
    document
}

fn errors(loaded: &Loaded, rule: &RulePath, package: &[String], value: Option<&Value>) -> Vec<EvaluationError> {
    let (name, package_name) = (format!("data.{}", rule.join(".")), format!("data.{}", package.join(".")));
    let error = |code: Code, message: String, location, hint: &str| {
        vec![EvaluationError { code: code.to_string(), message, location, hint: Some(hint.to_owned()) }]
    };
    let location = loaded.program.rules.get(rule).and_then(|all| all.first()).map(|definition| Location {
        file: definition.place.file.clone(),
        row: definition.place.row,
        col: definition.place.col,
    });
    match value {
        Some(Value::Bool(_)) => Vec::new(),
        Some(value) => {
            let message = format!("{name} is {}, not true or false", shown(&bounded(value)));
            error(Code::PolicyNotBoolean, message, location, "make the rule's value a boolean")
        }
        None if !loaded.program.packages.contains_key(package) => {
            let message = format!("no policy file declares the package {package_name}");
            error(Code::PolicyMissing, message, None, "git cbia init writes a default policy")
        }
        None if location.is_none() => {
            error(Code::PolicyMissing, format!("the package {package_name} does not define {name}"), None, "add the rule")
        }
        None => error(Code::PolicyUndefined, format!("{name} is undefined"), location, "add a default: default allow := false"),
    }
}

/// The members of a `deny` or `warn` rule, in the engine's order of values.
fn entries(value: Option<Value>) -> Vec<serde_json::Value> {
    let value = value.as_ref().map(json);
    let all = match value {
        Some(serde_json::Value::Array(all)) => all,
        Some(other) => vec![other],
        None => Vec::new(),
    };
    all.into_iter().take(MAX_ENTRIES).map(cut).collect()
}

fn conditions(loaded: &Loaded, package: &[String], checks: &BTreeMap<String, bool>, input: &Value) -> BTreeMap<String, Check> {
    let mut documents: Vec<Check> = Vec::new();
    let mut sources: Vec<(String, Vec<Asked>)> = Vec::new();
    for (name, value) in checks {
        let path = [package, std::slice::from_ref(name)].concat();
        let mut check = Check { value: *value, location: None, conditions: Vec::new() };
        let mut asked = Vec::new();
        let mut body_number = 0;
        for (module, rule) in specs(&loaded.modules, &path) {
            let Rule::Spec { span, bodies, .. } = rule else { continue };
            let at = place(span);
            check.location.get_or_insert(Location { file: at.file, row: at.row, col: at.col });
            // What held of a check that passed says nothing, and asking costs as much again as deciding.
            for body in bodies.iter().filter(|_| !*value) {
                let mut prefix = String::new();
                for (number, stmt) in body.query.stmts.iter().enumerate() {
                    let before = prefix.clone();
                    prefix.push_str(stmt.span.text());
                    prefix.push('\n');
                    asked.push(Asked {
                        check: documents.len(),
                        body: body_number,
                        stmt: number,
                        prefix: prefix.clone(),
                        before,
                        operands: operands(stmt),
                        row: stmt.span.line.into(),
                        text: one_line(stmt.span.text()),
                    });
                }
                body_number += 1;
            }
            sources.push((preamble(module), std::mem::take(&mut asked)));
        }
        documents.push(check);
    }
    // Where the engine cannot answer these questions, the checks are told without their conditions.
    if checks.values().any(|passed| !passed)
        && let Ok(held) = held(loaded, package, &sources, input)
    {
        let failed = |a: &Asked| !held.contains(&a.id()) && (a.stmt == 0 || held.contains(&a.before_id()));
        let values = values(loaded, package, &sources, &failed, input).unwrap_or_default();
        for asked in sources.iter().flat_map(|(_, asked)| asked) {
            let mut condition = Condition {
                row: asked.row,
                text: asked.text.clone(),
                outcome: Outcome::NotReached,
                operands: BTreeMap::new(),
                undefined: Vec::new(),
            };
            if held.contains(&asked.id()) {
                condition.outcome = Outcome::Held;
            } else if failed(asked) {
                condition.outcome = Outcome::Failed;
                for (number, operand) in asked.operands.iter().enumerate() {
                    match values.get(&(asked.id(), number as u64)) {
                        Some(value) => {
                            condition.operands.insert(one_line(operand), value.clone());
                        }
                        None => condition.undefined.push(one_line(operand)),
                    }
                }
            }
            documents[asked.check].conditions.push(condition);
        }
    }
    checks.keys().cloned().zip(documents).collect()
}

impl Asked {
    fn id(&self) -> String {
        format!("{}:{}:{}", self.check, self.body, self.stmt)
    }

    fn before_id(&self) -> String {
        format!("{}:{}:{}", self.check, self.body, self.stmt.wrapping_sub(1))
    }
}

fn specs<'a>(modules: &'a [Ref<Module>], path: &'a RulePath) -> impl Iterator<Item = (&'a Module, &'a Rule)> {
    modules.iter().flat_map(move |module| {
        let package = package_of(module);
        let rules = module.policy.iter().map(|rule| rule.as_ref());
        let wanted = rules.filter(move |rule| {
            let Rule::Spec { head: RuleHead::Compr { refr, .. }, .. } = rule else { return false };
            path.strip_prefix(package.as_slice()).is_some_and(|rest| rest == static_path(refr).0)
        });
        wanted.map(move |rule| (module.as_ref(), rule))
    })
}

/// The package and import lines of a module, so that a name means the same in what is added.
fn preamble(module: &Module) -> String {
    let mut text = format!("{}\n", module.package.span.text());
    for import in &module.imports {
        text.push_str(import.span.text());
        text.push('\n');
    }
    text
}

fn held(
    loaded: &Loaded,
    package: &[String],
    sources: &[(String, Vec<Asked>)],
    input: &Value,
) -> Result<BTreeSet<String>, EngineError> {
    let rules = sources.iter().map(|(preamble, asked)| {
        let rules = asked.iter().map(|a| format!("__cbia contains \"{}\" if {{\n{}}}\n", a.id(), a.prefix));
        format!("{preamble}{}", rules.collect::<String>())
    });
    let found = ask(loaded, package, rules.collect(), input)?;
    Ok(found.iter().filter_map(|value| value.as_string().ok()).map(|text| text.to_string()).collect())
}

/// The operands' values by condition and number; the first in the engine's order where there are several.
fn values(
    loaded: &Loaded,
    package: &[String],
    sources: &[(String, Vec<Asked>)],
    failed: &dyn Fn(&Asked) -> bool,
    input: &Value,
) -> Result<BTreeMap<(String, u64), serde_json::Value>, EngineError> {
    let rules = sources.iter().map(|(preamble, asked)| {
        let mut text = preamble.clone();
        for a in asked.iter().filter(|a| failed(a)) {
            for (number, operand) in a.operands.iter().enumerate() {
                let value = format!("__cbia_value := [\"{}\", {number}, {operand}]", a.id());
                text.push_str(&format!("__cbia contains __cbia_value if {{\n{}{value}\n}}\n", a.before));
            }
        }
        text
    });
    let mut values = BTreeMap::new();
    for entry in ask(loaded, package, rules.collect(), input)? {
        let Ok(parts) = entry.as_array() else { continue };
        if let (Some(id), Some(number), Some(value)) = (parts.first(), parts.get(1), parts.get(2))
            && let (Ok(id), Ok(number)) = (id.as_string(), number.as_u64())
        {
            values.entry((id.to_string(), number)).or_insert_with(|| bounded(value));
        }
    }
    Ok(values)
}

fn ask(loaded: &Loaded, package: &[String], texts: Vec<String>, input: &Value) -> Result<Vec<Value>, EngineError> {
    let mut engine = loaded.engine.clone();
    for (number, text) in texts.into_iter().enumerate() {
        engine.add_policy(format!("explain-{number}.rego"), text).map_err(|error| EngineError::new("explaining", error))?;
    }
    engine.set_input(input.clone());
    let value = value_in(&mut engine, &format!("data.{}.__cbia", package.join(".")))?;
    Ok(value.as_ref().and_then(|value| value.as_set().ok()).map(|set| set.iter().cloned().collect()).unwrap_or_default())
}

/// What a condition compares: the operands whose values tell why it failed.
fn operands(stmt: &LiteralStmt) -> Vec<String> {
    let mut found: Vec<String> = Vec::new();
    if !stmt.with_mods.is_empty() {
        return found;
    }
    let mut pending: Vec<&Expr> = match &stmt.literal {
        Literal::SomeVars { .. } => Vec::new(),
        Literal::SomeIn { collection, .. } => vec![collection],
        Literal::Every { domain, .. } => vec![domain],
        Literal::Expr { expr, .. } | Literal::NotExpr { expr, .. } => match expr.as_ref() {
            Expr::BoolExpr { lhs, rhs, .. } => vec![rhs, lhs],
            Expr::Membership { key, value, collection, .. } => {
                let mut all: Vec<&Expr> = vec![collection, value];
                all.extend(key.iter().map(|key| key.as_ref()));
                all
            }
            Expr::AssignExpr { rhs, .. } => vec![rhs],
            expr => vec![expr],
        },
    };
    while let Some(expr) = pending.pop() {
        match expr {
            Expr::String { .. } | Expr::RawString { .. } | Expr::Number { .. } | Expr::Bool { .. } | Expr::Null { .. } => {
                continue;
            }
            // `count(x) == 0` is explained by x, not by the count alone.
            Expr::Call { params, .. } => pending.extend(params.iter().map(|param| param.as_ref()).rev()),
            Expr::Var { span, .. } if span.text() == "_" => continue,
            _ => {}
        }
        let text = expr.span().text().to_owned();
        if !found.contains(&text) {
            found.push(text);
        }
    }
    found
}

/// One line of `explain`.
fn line(name: &str, check: &Check, deny: &[serde_json::Value]) -> String {
    if check.value {
        return format!("{name}: PASS");
    }
    let mut reasons: Vec<String> = Vec::new();
    for entry in deny.iter().filter(|entry| entry.get("check").and_then(|check| check.as_str()) == Some(name)) {
        reasons.push(message(entry));
    }
    if reasons.is_empty() {
        for condition in check.conditions.iter().filter(|condition| condition.outcome == Outcome::Failed) {
            let mut reason = format!("{} does not hold", condition.text);
            let operands = condition.operands.iter().map(|(name, value)| format!("{name} = {}", shown(value)));
            let undefined = condition.undefined.iter().map(|name| format!("{name} is undefined"));
            let operands: Vec<String> = operands.chain(undefined).collect();
            if !operands.is_empty() {
                reason.push_str(&format!(": {}", operands.join(", ")));
            }
            reasons.push(reason);
        }
    }
    let more = reasons.len().saturating_sub(MAX_REASONS);
    reasons.truncate(MAX_REASONS);
    if more > 0 {
        reasons.push(format!("and {more} more"));
    }
    match reasons.is_empty() {
        true => format!("{name}: FAIL"),
        false => format!("{name}: FAIL ({})", reasons.join("; ")),
    }
}

/// The message of one entry of `deny`: a string, or an object's `msg`.
pub fn message(entry: &serde_json::Value) -> String {
    match entry.get("msg").unwrap_or(entry) {
        serde_json::Value::String(text) => text.clone(),
        other => shown(other),
    }
}

/// A value as JSON, cut if it is long.
pub fn bounded(value: &Value) -> serde_json::Value {
    cut(json(value))
}

fn json(value: &Value) -> serde_json::Value {
    serde_json::to_value(value).unwrap_or(serde_json::Value::Null)
}

fn cut(value: serde_json::Value) -> serde_json::Value {
    let text = value.to_string();
    if text.len() <= MAX_VALUE_BYTES {
        return value;
    }
    let kept: String = text.chars().take(MAX_TEXT_CHARS).collect();
    serde_json::Value::String(format!("{kept}… ({} bytes)", text.len()))
}

fn shown(value: &serde_json::Value) -> String {
    short(&value.to_string())
}

fn one_line(text: &str) -> String {
    short(&text.split_whitespace().collect::<Vec<_>>().join(" "))
}

fn short(text: &str) -> String {
    let mut kept: String = text.chars().take(MAX_TEXT_CHARS).collect();
    if kept.len() < text.len() {
        kept.push('…');
    }
    kept
}
