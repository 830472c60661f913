//! The tree that checking, estimating and evaluating walk.

use crate::value::Value;

/// An expression. Ids are those of the parser; positions in the source are found by them.
#[derive(Clone, Debug)]
pub struct Expr {
    pub id: u64,
    pub kind: Kind,
}

#[derive(Clone, Debug)]
pub enum Kind {
    Literal(Value),
    Ident(String),
    Select(Box<Select>),
    Call(Box<Call>),
    /// Items, and whether each is optional.
    List(Vec<(Expr, bool)>),
    Map(Vec<(Expr, Expr, bool)>),
    Struct(String, Vec<(String, Expr, bool)>),
    Comprehension(Box<Comprehension>),
}

#[derive(Clone, Debug)]
pub struct Select {
    pub operand: Expr,
    pub field: String,
    /// `has(operand.field)`
    pub test: bool,
}

#[derive(Clone, Debug)]
pub struct Call {
    pub function: String,
    pub target: Option<Expr>,
    pub args: Vec<Expr>,
}

#[derive(Clone, Debug)]
pub struct Comprehension {
    pub range: Expr,
    pub var: String,
    pub var2: Option<String>,
    pub accu_var: String,
    pub init: Expr,
    pub condition: Expr,
    pub step: Expr,
    pub result: Expr,
}

impl Comprehension {
    /// A binding of a name, which has the form of a comprehension over nothing.
    pub fn is_bind(&self) -> bool {
        matches!(&self.range.kind, Kind::List(items) if items.is_empty())
            && matches!(&self.condition.kind, Kind::Literal(Value::Bool(false)))
    }
}
