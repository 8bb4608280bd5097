//! What a policy may not contain, found in its syntax tree at load.
//!
//! Three kinds of rule: what would make a decision irreproducible (network, clock, randomness); what the engine
//! answers otherwise than OPA does, some of it in favour of allowing; and what would let one file change the meaning of
//! another. `docs/policy.md` lists them for policy authors.

pub mod builtins;
pub mod program;
mod walk;

use std::collections::{BTreeMap, BTreeSet};

use regorus::unstable::{BUILTINS, Expr, Literal, LiteralStmt, Module, Ref, Rule, RuleBody, RuleHead, Span};

use self::program::{Kind, Program, Root, RulePath, Scope, package_of, static_path};
use self::walk::{Node, walk};
use crate::document::finding::{Code, Finding};
use crate::document::json::{MAX_SAFE_INTEGER, line_column};

/// Part of every memo key: raise it with any change to what is refused.
pub const VERSION: u64 = 1;

/// Names that begin like this are the engine's and the explanation's own.
const RESERVED: &str = "__";

/// All refusals of a bundle, in order of file and place.
pub fn lint(modules: &[Ref<Module>], program: &Program) -> Vec<Finding> {
    let mut findings = Vec::new();
    let mut edges: BTreeMap<RulePath, BTreeSet<RulePath>> = BTreeMap::new();
    for module in modules {
        let scope = Scope::new(program, module);
        let test = module.package.span.source.get_path().ends_with("_test.rego");
        let mut linter = Linter { scope, program, test, findings: &mut findings };
        linter.module(module);
        for rule in &module.policy {
            let reached = linter.rule(rule);
            let mut path = package_of(module);
            path.extend(static_path(head_ref(rule)).0);
            edges.entry(path).or_default().extend(reached);
        }
    }
    definitions(program, &mut findings);
    recursion(program, edges, &mut findings);
    let key = |f: &Finding| (f.path.clone(), f.line, f.column, f.message.clone());
    findings.sort_by_key(key);
    findings.dedup();
    findings
}

struct Linter<'p, 'f> {
    scope: Scope<'p>,
    program: &'p Program,
    test: bool,
    findings: &'f mut Vec<Finding>,
}

impl Linter<'_, '_> {
    fn refuse(&mut self, span: &Span, message: impl Into<String>, hint: &str) {
        self.findings.push(finding(span, message).hint(hint));
    }

    fn module(&mut self, module: &Module) {
        if module.target.is_some() {
            self.refuse(&module.package.span, "a target declaration is not Rego", "remove the __target__ rule");
        }
        if !module.rego_v1 {
            self.refuse(&module.package.span, "the module is not Rego v1", "write rules with 'if' and 'contains'");
        }
    }

    /// Checks one rule, and gives the rules it reads.
    fn rule(&mut self, rule: &Rule) -> BTreeSet<RulePath> {
        let reserved = static_path(head_ref(rule)).0.iter().any(|part| part.starts_with(RESERVED));
        if reserved {
            self.refuse(rule.span(), format!("a rule's name begins with '{RESERVED}', which is reserved"), "rename the rule");
        }
        let mut reached = BTreeSet::new();
        match rule {
            Rule::Default { value, .. } => self.expr(value, &mut reached),
            Rule::Spec { head, bodies, .. } => {
                self.head(head, bodies);
                match head {
                    RuleHead::Compr { refr, assign, .. } => {
                        self.head_ref(refr, &mut reached);
                        if let Some(assign) = assign {
                            self.expr(&assign.value, &mut reached);
                        }
                    }
                    RuleHead::Set { refr, key, .. } => {
                        self.head_ref(refr, &mut reached);
                        if let Some(key) = key {
                            self.expr(key, &mut reached);
                        }
                    }
                    RuleHead::Func { args, assign, .. } => {
                        for arg in args {
                            self.expr(arg, &mut reached);
                        }
                        if let Some(assign) = assign {
                            self.expr(&assign.value, &mut reached);
                        }
                    }
                }
                for body in bodies {
                    if let Some(assign) = &body.assign {
                        self.expr(&assign.value, &mut reached);
                    }
                    let mut nodes = Vec::new();
                    walk(Node::Query(&body.query), &mut |node| nodes.push(node));
                    self.nodes(nodes, &mut reached);
                }
            }
        }
        reached
    }

    fn expr(&mut self, expr: &Expr, reached: &mut BTreeSet<RulePath>) {
        let mut nodes = Vec::new();
        walk(Node::Expr(expr), &mut |node| nodes.push(node));
        self.nodes(nodes, reached);
    }

    /// The variable parts of a head's reference; its name is not a reference to itself.
    fn head_ref(&mut self, mut refr: &Expr, reached: &mut BTreeSet<RulePath>) {
        loop {
            match refr {
                Expr::RefBrack { refr: inner, index, .. } => {
                    self.expr(index, reached);
                    refr = inner;
                }
                Expr::RefDot { refr: inner, .. } => refr = inner,
                _ => return,
            }
        }
    }

    fn nodes(&mut self, nodes: Vec<Node<'_>>, reached: &mut BTreeSet<RulePath>) {
        for node in nodes {
            match node {
                Node::Query(_) => {}
                Node::Stmt(stmt) => self.stmt(stmt),
                Node::Expr(expr) => {
                    self.one(expr);
                    let named = if let Expr::Call { fcn, .. } = expr { fcn } else { expr };
                    if let Some(path) = self.scope.target(named) {
                        reached.extend(self.program.reached(&path).into_iter().cloned());
                    }
                }
            }
        }
    }

    fn stmt(&mut self, stmt: &LiteralStmt) {
        for with in &stmt.with_mods {
            if !self.test {
                self.refuse(
                    &with.span,
                    "'with' replaces what a decision is about",
                    "use 'with' in *_test.rego files only; here, write a function with arguments",
                );
            } else if !matches!(static_path(&with.refr).0.first().map(String::as_str), Some("input" | "data")) {
                self.refuse(&with.span, "'with' may replace input and data only", "replace a rule, not a built-in function");
            }
        }
        if let Literal::NotExpr { span, expr } = &stmt.literal {
            let sound = match expr.as_ref() {
                Expr::Var { .. } | Expr::RefDot { .. } | Expr::RefBrack { .. } => self.plain_reference(expr),
                Expr::Call { params, .. } => params.iter().all(|param| self.bound(param)),
                Expr::BoolExpr { lhs, rhs, .. } => self.bound(lhs) && self.bound(rhs),
                Expr::Membership { key, value, collection, .. } => {
                    key.as_ref().is_none_or(|key| self.bound(key)) && self.bound(value) && self.bound(collection)
                }
                _ => false,
            };
            if !sound {
                self.refuse(
                    span,
                    "'not' over an expression whose operands may be undefined: the engine takes it for true, OPA for undefined",
                    "bind the operands first: x := input.a, then not f(x)",
                );
            }
        }
    }

    /// A reference whose brackets hold literals and variables only.
    fn plain_reference(&self, expr: &Expr) -> bool {
        match expr {
            Expr::Var { span, .. } => span.text() != "_",
            Expr::RefDot { refr, .. } => self.plain_reference(refr),
            Expr::RefBrack { refr, index, .. } => {
                let simple = !matches!(index.as_ref(), Expr::RefDot { .. } | Expr::RefBrack { .. } | Expr::Call { .. });
                self.plain_reference(refr) && simple && self.bound(index)
            }
            _ => false,
        }
    }

    /// Whether an operand has a value wherever it is used.
    fn bound(&self, expr: &Expr) -> bool {
        match expr {
            Expr::String { .. } | Expr::RawString { .. } | Expr::Number { .. } | Expr::Bool { .. } | Expr::Null { .. } => true,
            Expr::ArrayCompr { .. } | Expr::SetCompr { .. } | Expr::ObjectCompr { .. } => true,
            Expr::Var { span, .. } => span.text() != "_" && self.scope.has_value(span.text()),
            Expr::Array { items, .. } | Expr::Set { items, .. } => items.iter().all(|item| self.bound(item)),
            Expr::Object { fields, .. } => fields.iter().all(|(_, key, value)| self.bound(key) && self.bound(value)),
            Expr::UnaryExpr { expr, .. } => self.bound(expr),
            Expr::BinExpr { lhs, rhs, .. } | Expr::ArithExpr { lhs, rhs, .. } => self.bound(lhs) && self.bound(rhs),
            // A built-in of bound operands has a value or ends the evaluation; a rule's function may have none.
            Expr::Call { fcn, params, .. } => self.function(fcn).is_none() && params.iter().all(|param| self.bound(param)),
            _ => false,
        }
    }

    /// The definitions of the policy's own function that a call names.
    fn function(&self, fcn: &Expr) -> Option<usize> {
        let definitions = self.program.rules.get(&self.scope.target(fcn)?)?;
        definitions.iter().find_map(|definition| match definition.kind {
            Kind::Function(arity) => Some(arity),
            _ => None,
        })
    }

    fn one(&mut self, expr: &Expr) {
        match expr {
            Expr::Call { span, fcn, params, .. } => self.call(span, fcn, params),
            Expr::Number { span, value, .. } => {
                let magnitude = value.as_f64().map_or(f64::INFINITY, f64::abs);
                if magnitude > MAX_SAFE_INTEGER as f64 {
                    self.refuse(span, "the number does not survive a double", "stay within 2^53 - 1");
                }
            }
            _ => {}
        }
    }

    fn call(&mut self, span: &Span, fcn: &Expr, params: &[Ref<Expr>]) {
        let (path, whole) = static_path(fcn);
        let name = path.join(".");
        let arity = if let Some(arity) = self.function(fcn) {
            arity
        } else if whole && path.first().is_some_and(|first| self.scope.root(first) == Root::Local) {
            if !builtins::ALLOWED.contains(&name.as_str()) {
                let message = format!("the function {name} may not be called: {}", builtins::why_refused(&name));
                self.refuse(span, message, "docs/policy.md lists the functions that a policy may call");
                return;
            }
            if let Some(pattern) = builtins::pattern_argument(&name).and_then(|n| params.get(n)) {
                self.pattern(pattern);
            }
            BUILTINS.get(name.as_str()).map_or(0, |(_, arity)| usize::from(*arity))
        } else {
            self.refuse(span, format!("{name} is not a function"), "define it, or call it by its full path");
            return;
        };
        if params.len() != arity {
            let message = format!("{name} takes {arity} argument{}, not {}", if arity == 1 { "" } else { "s" }, params.len());
            self.findings.push(Finding { code: Code::PolicyInvalid, ..finding(span, message) });
        }
    }

    fn pattern(&mut self, pattern: &Expr) {
        let (Expr::String { span, value, .. } | Expr::RawString { span, value, .. }) = pattern else {
            let hint = "write the pattern as a literal string";
            self.refuse(pattern.span(), "a regular expression that is computed cannot be checked", hint);
            return;
        };
        let text = value.as_string().map(|text| text.to_string()).unwrap_or_default();
        let escape = text.as_bytes().windows(2).any(|pair| pair[0] == b'\\' && pair[1].is_ascii_alphanumeric());
        if escape || text.contains("(?") || text.contains("[[:") || !text.is_ascii() {
            self.refuse(
                span,
                "the regular expression uses a class or flag in which engines differ (such as \\d, \\w, \\b or (?i))",
                "spell the characters out: [0-9], [A-Za-z0-9_]",
            );
        }
    }

    /// Heads hold variables and constants only. The engine throws away everything that an iterating rule has collected
    /// when its head is undefined for one iteration.
    fn head(&mut self, head: &RuleHead, bodies: &[RuleBody]) {
        let has_body = bodies.iter().any(|body| !body.query.stmts.is_empty());
        let (refr, mut values, args) = match head {
            RuleHead::Compr { refr, assign, .. } => (refr, assign.iter().map(|a| &a.value).collect::<Vec<_>>(), [].as_slice()),
            RuleHead::Set { refr, key, .. } => (refr, key.iter().collect(), [].as_slice()),
            RuleHead::Func { refr, args, assign, .. } => (refr, assign.iter().map(|a| &a.value).collect(), args.as_slice()),
        };
        values.extend(bodies.iter().filter_map(|body| body.assign.as_ref()).map(|assign| &assign.value));
        let mut at: &Expr = refr;
        while let Expr::RefDot { refr, .. } | Expr::RefBrack { refr, .. } = at {
            if let Expr::RefBrack { index, .. } = at {
                self.head_value(index, index.span());
            }
            at = refr;
        }
        for value in values {
            if has_body || matches!(head, RuleHead::Set { .. }) {
                self.head_value(value, value.span());
            } else if let Some(span) = self.iterates(value, args) {
                self.refuse(&span, "a rule's head iterates", "iterate in the body, or in a comprehension");
            }
        }
    }

    fn head_value(&mut self, value: &Expr, span: &Span) {
        if !self.head_sound(value) {
            self.refuse(
                span,
                "a rule's head may hold variables and constants only: the engine drops what it collected when a head is undefined",
                "bind the value in the body: x := o.name, and put x in the head",
            );
        }
    }

    fn head_sound(&self, value: &Expr) -> bool {
        match value {
            Expr::String { .. } | Expr::RawString { .. } | Expr::Number { .. } | Expr::Bool { .. } | Expr::Null { .. } => true,
            Expr::Var { span, .. } => self.scope.root(span.text()) == Root::Local,
            Expr::Array { items, .. } | Expr::Set { items, .. } => items.iter().all(|item| self.head_sound(item)),
            Expr::Object { fields, .. } => fields.iter().all(|(_, k, v)| self.head_sound(k) && self.head_sound(v)),
            Expr::UnaryExpr { expr, .. } => matches!(expr.as_ref(), Expr::Number { .. }),
            _ => false,
        }
    }

    /// The first part of a value without a body that would iterate: a bracket with a variable that nothing binds.
    fn iterates(&self, value: &Expr, args: &[Ref<Expr>]) -> Option<Span> {
        let mut names = BTreeSet::new();
        for arg in args {
            walk(Node::Expr(arg), &mut |node| {
                if let Node::Expr(Expr::Var { span, .. }) = node {
                    names.insert(span.text().to_owned());
                }
            });
        }
        let mut pending = vec![value];
        while let Some(expr) = pending.pop() {
            if matches!(expr, Expr::ArrayCompr { .. } | Expr::SetCompr { .. } | Expr::ObjectCompr { .. }) {
                continue;
            }
            // What is below a reference stands in its brackets.
            if matches!(expr, Expr::RefDot { .. } | Expr::RefBrack { .. }) {
                for part in walk::children(expr) {
                    if let Expr::Var { span, .. } = part
                        && !names.contains(span.text())
                        && self.scope.root(span.text()) == Root::Local
                    {
                        return Some(span.clone());
                    }
                }
            }
            pending.extend(walk::children(expr));
        }
        None
    }
}

/// An expression's span begins at its first byte, but has the line and column of its operator.
fn finding(span: &Span, message: impl Into<String>) -> Finding {
    let source = &span.source;
    let (line, column) = line_column(source.get_contents().as_bytes(), span.start as usize);
    Finding::error(Code::PolicyForbidden, message).at(source.get_path()).on(line, column)
}

fn head_ref(rule: &Rule) -> &Expr {
    match rule {
        Rule::Default { refr, .. } => refr,
        Rule::Spec { head, .. } => match head {
            RuleHead::Compr { refr, .. } | RuleHead::Set { refr, .. } | RuleHead::Func { refr, .. } => refr,
        },
    }
}

/// What the definitions of one path may not do together.
fn definitions(program: &Program, findings: &mut Vec<Finding>) {
    let name = |path: &[String]| format!("data.{}", path.join("."));
    let mut refuse = |definition: &program::Definition, message: String, hint: &str| {
        let place = &definition.place;
        let found = Finding::error(Code::PolicyForbidden, message).at(&place.file).on(place.row, place.col);
        findings.push(found.hint(hint));
    };
    for (path, all) in &program.rules {
        let defaults = all.iter().filter(|definition| definition.kind == Kind::Default);
        for extra in defaults.skip(1) {
            refuse(extra, format!("{} has more than one default", name(path)), "keep one default per rule");
        }
        for other in all.iter().filter(|d| d.kind != Kind::Set && d.place.file != all[0].place.file) {
            let message = format!("{} is also defined in {}", name(path), all[0].place.file);
            refuse(other, message, "define a rule in one file; only sets ('contains') may be spread over files");
        }
        let sort = |kind: Kind| if kind == Kind::Default { Kind::Complete } else { kind };
        for other in all.iter().filter(|d| sort(d.kind) != sort(all[0].kind)) {
            refuse(other, format!("{} is defined in two different ways", name(path)), "keep to one kind of rule per name");
        }
        for (package, declared) in &program.packages {
            let (own, inside) = (&all[0].package, package.starts_with(path) || path.starts_with(package));
            if own != package && inside && (package.len() > own.len() || package.starts_with(path)) {
                let message = format!("{} reaches into the package {} of {}", name(path), name(package), declared.file);
                refuse(&all[0], message, "define a package's rules in that package");
            }
        }
    }
    // A rule below another rule's path would be a second way to give that rule its value.
    for (path, all) in &program.rules {
        for above in (1..path.len()).filter_map(|n| program.rules.get_key_value(&path[..n])) {
            refuse(&all[0], format!("{} lies below the rule {}", name(path), name(above.0)), "give it a name of its own");
        }
    }
}

/// Refuses rules that are defined in terms of themselves: what is left when all that reads nothing, and then all that
/// nothing reads, has been taken away again and again.
fn recursion(program: &Program, edges: BTreeMap<RulePath, BTreeSet<RulePath>>, findings: &mut Vec<Finding>) {
    let numbers: BTreeMap<&RulePath, usize> = edges.keys().enumerate().map(|(number, path)| (path, number)).collect();
    let reads: Vec<Vec<usize>> =
        edges.values().map(|targets| targets.iter().filter_map(|target| numbers.get(target).copied()).collect()).collect();
    let mut read_by = vec![Vec::new(); reads.len()];
    for (number, targets) in reads.iter().enumerate() {
        for target in targets {
            read_by[*target].push(number);
        }
    }
    let mut left = vec![true; reads.len()];
    strip(&reads, &read_by, &mut left);
    strip(&read_by, &reads, &mut left);
    for (path, _) in edges.keys().zip(left).filter(|(_, left)| *left) {
        if let Some(definition) = program.rules.get(path).and_then(|all| all.first()) {
            let message = format!("data.{} is defined in terms of itself", path.join("."));
            let found = Finding::error(Code::PolicyForbidden, message).at(&definition.place.file);
            let place = &definition.place;
            findings.push(found.on(place.row, place.col).hint("Rego has no recursion; use graph.reachable for closures"));
        }
    }
}

/// Takes away what has no way out to anything that is left.
fn strip(out: &[Vec<usize>], back: &[Vec<usize>], left: &mut [bool]) {
    let mut ways: Vec<usize> = out.iter().map(|targets| targets.iter().filter(|target| left[**target]).count()).collect();
    let mut ends: Vec<usize> = (0..ways.len()).filter(|node| left[*node] && ways[*node] == 0).collect();
    while let Some(end) = ends.pop() {
        left[end] = false;
        for node in back[end].iter().copied().filter(|node| left[*node]) {
            ways[node] -= 1;
            if ways[node] == 0 {
                ends.push(node);
            }
        }
    }
}
