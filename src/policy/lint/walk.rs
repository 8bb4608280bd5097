//! A walk over the engine's syntax tree.

use regorus::unstable::{Expr, Literal, LiteralStmt, Query};

/// One thing met on the way.
#[derive(Clone, Copy)]
pub enum Node<'a> {
    /// A body, or what stands right of the bar in a comprehension.
    Query(&'a Query),
    /// A condition.
    Stmt(&'a LiteralStmt),
    /// An expression. A reference is met once, whole, and then what stands in its brackets.
    Expr(&'a Expr),
}

/// Meets every node below and including `node`, parents first, in order of the text. Nothing here recurses.
pub fn walk<'a>(node: Node<'a>, meet: &mut dyn FnMut(Node<'a>)) {
    let mut pending = vec![node];
    while let Some(node) = pending.pop() {
        meet(node);
        let mut below = Vec::new();
        match node {
            Node::Query(query) => below.extend(query.stmts.iter().map(Node::Stmt)),
            Node::Stmt(stmt) => {
                match &stmt.literal {
                    Literal::SomeVars { .. } => {}
                    Literal::SomeIn { key, value, collection, .. } => {
                        below.extend(key.iter().map(|key| Node::Expr(key)));
                        below.extend([Node::Expr(value), Node::Expr(collection)]);
                    }
                    Literal::Expr { expr, .. } | Literal::NotExpr { expr, .. } => below.push(Node::Expr(expr)),
                    Literal::Every { domain, query, .. } => below.extend([Node::Expr(domain), Node::Query(query)]),
                }
                below.extend(stmt.with_mods.iter().flat_map(|with| [Node::Expr(&with.refr), Node::Expr(&with.r#as)]));
            }
            Node::Expr(expr) => {
                below.extend(children(expr).into_iter().map(Node::Expr));
                if let Expr::ArrayCompr { query, .. } | Expr::SetCompr { query, .. } | Expr::ObjectCompr { query, .. } = expr {
                    below.push(Node::Query(query));
                }
            }
        }
        pending.extend(below.into_iter().rev());
    }
}

/// The expressions right below an expression.
pub fn children(expr: &Expr) -> Vec<&Expr> {
    match expr {
        Expr::String { .. }
        | Expr::RawString { .. }
        | Expr::Number { .. }
        | Expr::Bool { .. }
        | Expr::Null { .. }
        | Expr::Var { .. } => Vec::new(),
        Expr::Array { items, .. } | Expr::Set { items, .. } => items.iter().map(|item| item.as_ref()).collect(),
        Expr::Object { fields, .. } => fields.iter().flat_map(|(_, key, value)| [key.as_ref(), value.as_ref()]).collect(),
        Expr::ArrayCompr { term, .. } | Expr::SetCompr { term, .. } => vec![term],
        Expr::ObjectCompr { key, value, .. } => vec![key, value],
        Expr::Call { fcn: _, params, .. } => params.iter().map(|param| param.as_ref()).collect(),
        Expr::UnaryExpr { expr, .. } => vec![expr],
        Expr::RefDot { .. } | Expr::RefBrack { .. } => parts(expr),
        Expr::BinExpr { lhs, rhs, .. }
        | Expr::BoolExpr { lhs, rhs, .. }
        | Expr::ArithExpr { lhs, rhs, .. }
        | Expr::AssignExpr { lhs, rhs, .. } => vec![lhs, rhs],
        Expr::Membership { key, value, collection, .. } => {
            key.iter().map(|key| key.as_ref()).chain([value.as_ref(), collection.as_ref()]).collect()
        }
    }
}

/// What stands in a reference's brackets, and what it is rooted in if that is not a name.
fn parts(mut expr: &Expr) -> Vec<&Expr> {
    let mut found = Vec::new();
    loop {
        match expr {
            Expr::RefDot { refr, .. } => expr = refr,
            Expr::RefBrack { refr, index, .. } => {
                found.push(index.as_ref());
                expr = refr;
            }
            Expr::Var { .. } => break,
            _ => {
                found.push(expr);
                break;
            }
        }
    }
    found.reverse();
    found
}
