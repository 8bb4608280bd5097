//! The names of a bundle: which rules there are, where, and what a reference in a module means.

use std::collections::{BTreeMap, BTreeSet};

use regorus::unstable::{Expr, Module, Ref, Rule, RuleHead, Span};

/// A rule's path below `data`.
pub type RulePath = Vec<String>;

/// Where something stands.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct Place {
    /// The file.
    pub file: String,
    /// The line, from 1.
    pub row: u64,
    /// The column, from 1.
    pub col: u64,
}

/// What a definition makes of its path.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Kind {
    /// One value.
    Complete,
    /// `contains`: a set, always defined.
    Set,
    /// A head that ends in a variable: an object.
    Object,
    /// A function of so many arguments.
    Function(usize),
    /// `default`.
    Default,
}

/// One definition of a rule.
#[derive(Clone, Debug)]
pub struct Definition {
    /// What it defines.
    pub kind: Kind,
    /// Where it stands.
    pub place: Place,
    /// Its package's path.
    pub package: RulePath,
    /// Whether it gives the rule a value for every input.
    pub always: bool,
}

/// The names of a bundle.
#[derive(Clone, Debug, Default)]
pub struct Program {
    /// Every definition, by path. For a head with a variable in it, the path before the variable.
    pub rules: BTreeMap<RulePath, Vec<Definition>>,
    /// Every package's path, with one file that declares it.
    pub packages: BTreeMap<RulePath, Place>,
}

/// What a name in a module stands for.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Root {
    /// The input document.
    Input,
    /// A path below `data`.
    Data(RulePath),
    /// A variable of the rule at hand.
    Local,
}

/// One module's view of the program.
pub struct Scope<'p> {
    program: &'p Program,
    package: RulePath,
    imports: BTreeMap<String, Vec<String>>,
    names: BTreeSet<&'p str>,
}

impl Program {
    /// Collects the names of `modules`.
    pub fn of(modules: &[Ref<Module>]) -> Self {
        let mut program = Self::default();
        for module in modules {
            let package = package_of(module);
            program.packages.entry(package.clone()).or_insert_with(|| place(&module.package.span));
            for rule in &module.policy {
                let (refr, kind, always) = shape(rule);
                let (mut path, dynamic) = (package.clone(), dynamic(refr));
                path.extend(static_path(refr).0);
                let kind = if dynamic && kind == Kind::Complete { Kind::Object } else { kind };
                let definition = Definition { kind, place: place(rule.span()), package: package.clone(), always };
                program.rules.entry(path).or_default().push(definition);
            }
        }
        program
    }

    /// The rules that a reference to `path` reads: those on the way to it and those below it.
    pub fn reached(&self, path: &[String]) -> Vec<&RulePath> {
        let above = (1..path.len()).filter_map(|n| self.rules.get_key_value(&path[..n])).map(|(key, _)| key);
        let below = self.rules.range(path.to_vec()..).map(|(key, _)| key).take_while(|key| key.starts_with(path));
        above.chain(below).collect()
    }

    /// Whether `path` is a rule that has a value for every input.
    pub fn always_defined(&self, path: &[String]) -> bool {
        self.rules.get(path).is_some_and(|all| all.iter().any(|definition| definition.always))
    }
}

impl<'p> Scope<'p> {
    /// The view from `module`.
    pub fn new(program: &'p Program, module: &Module) -> Self {
        let package = package_of(module);
        let mut imports = BTreeMap::new();
        for import in &module.imports {
            let (path, _) = static_path(&import.refr);
            let name = import.r#as.as_ref().map(|span| span.text().to_owned()).or_else(|| path.last().cloned());
            if let Some(name) = name
                && matches!(path.first().map(String::as_str), Some("data" | "input"))
            {
                imports.insert(name, path);
            }
        }
        let own = program.rules.range(package.clone()..).map(|(key, _)| key).take_while(|key| key.starts_with(&package));
        let names = own.filter_map(|key| key.get(package.len())).map(String::as_str).collect();
        Self { program, package, imports, names }
    }

    /// What `name` stands for.
    pub fn root(&self, name: &str) -> Root {
        match name {
            "input" => Root::Input,
            "data" => Root::Data(Vec::new()),
            _ => match self.imports.get(name) {
                Some(path) if path[0] == "input" => Root::Input,
                Some(path) => Root::Data(path[1..].to_vec()),
                None if self.names.contains(name) => Root::Data([self.package.as_slice(), &[name.to_owned()]].concat()),
                None => Root::Local,
            },
        }
    }

    /// The path below `data` that a reference names, up to its first variable part.
    pub fn target(&self, expr: &Expr) -> Option<RulePath> {
        let (parts, _) = static_path(expr);
        let (first, rest) = parts.split_first()?;
        match self.root(first) {
            Root::Data(path) => Some([path.as_slice(), rest].concat()),
            Root::Input | Root::Local => None,
        }
    }

    /// Whether a bare name has a value wherever it is used: a variable, or a rule that is always defined.
    pub fn has_value(&self, name: &str) -> bool {
        match self.root(name) {
            Root::Local => true,
            Root::Input => false,
            Root::Data(path) => self.program.always_defined(&path),
        }
    }
}

/// A module's package path, below `data`.
pub fn package_of(module: &Module) -> RulePath {
    static_path(&module.package.refr).0
}

/// Where a span begins.
pub fn place(span: &Span) -> Place {
    Place { file: span.source.get_path().clone(), row: span.line.into(), col: span.col.into() }
}

/// The leading parts of a reference that are names or literal strings, and whether those are all of it. Nothing for
/// what is not rooted in a name.
pub fn static_path(expr: &Expr) -> (Vec<String>, bool) {
    match expr {
        Expr::Var { span, .. } => (vec![span.text().to_owned()], true),
        Expr::RefDot { refr, field, .. } => {
            let (mut path, whole) = static_path(refr);
            if whole {
                path.push(field.0.text().to_owned());
            }
            (path, whole)
        }
        Expr::RefBrack { refr, index, .. } => {
            let (mut path, whole) = static_path(refr);
            match (whole, index.as_ref()) {
                (true, Expr::String { value, .. } | Expr::RawString { value, .. }) => match value.as_string() {
                    Ok(text) => {
                        path.push(text.to_string());
                        (path, true)
                    }
                    Err(_) => (path, false),
                },
                _ => (path, false),
            }
        }
        _ => (Vec::new(), false),
    }
}

/// Whether a reference has a part that is not a name or a literal string.
pub fn dynamic(expr: &Expr) -> bool {
    !static_path(expr).1
}

fn shape(rule: &Rule) -> (&Expr, Kind, bool) {
    match rule {
        Rule::Default { refr, args, .. } if args.is_empty() => (refr, Kind::Default, true),
        Rule::Default { refr, args, .. } => (refr, Kind::Function(args.len()), false),
        Rule::Spec { head, bodies, .. } => match head {
            RuleHead::Set { refr, .. } => (refr, Kind::Set, true),
            RuleHead::Func { refr, args, .. } => (refr, Kind::Function(args.len()), false),
            RuleHead::Compr { refr, assign, .. } => {
                let constant = assign.as_ref().is_some_and(|assign| always_has_value(&assign.value));
                (refr, Kind::Complete, constant && bodies.iter().all(|body| body.query.stmts.is_empty()) && !dynamic(refr))
            }
        },
    }
}

/// A literal or a comprehension: what has a value whatever the input is.
fn always_has_value(expr: &Expr) -> bool {
    match expr {
        Expr::String { .. } | Expr::RawString { .. } | Expr::Number { .. } | Expr::Bool { .. } | Expr::Null { .. } => true,
        Expr::ArrayCompr { .. } | Expr::SetCompr { .. } | Expr::ObjectCompr { .. } => true,
        Expr::Array { items, .. } | Expr::Set { items, .. } => items.iter().all(|item| always_has_value(item)),
        Expr::Object { fields, .. } => fields.iter().all(|(_, key, value)| always_has_value(key) && always_has_value(value)),
        _ => false,
    }
}
