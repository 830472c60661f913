//! Compiling an expression and running it.

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::ast::Expr;
use crate::cost::{self, Estimate};
use crate::eval::{self, Activation, EvalError};
use crate::types::{Field, Type};
use crate::value::Value;
use crate::{check, parse};

/// Everything that is wrong with an expression, as cel-go prints it.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct CompileError(pub String);

/// The variables that expressions may use, and the objects that they may construct.
#[derive(Clone, Debug, Default)]
pub struct Environment {
    variables: BTreeMap<String, Type>,
    data: BTreeMap<String, Field>,
    objects: BTreeMap<String, Type>,
}

impl Environment {
    /// A variable of a type.
    pub fn declare(&mut self, name: &str, ty: Type) {
        self.variables.insert(name.to_owned(), ty);
    }

    /// One more field of a variable that is an object.
    pub fn extend(&mut self, variable: &str, field: &str, ty: Type) {
        if let Some(Type::Object(object)) = self.variables.get_mut(variable) {
            let fields = &mut Arc::make_mut(object).fields;
            fields.insert(field.to_owned(), Field::unlimited(field, ty));
        }
    }

    /// A variable whose value is data that a schema describes.
    pub fn declare_data(&mut self, name: &str, field: Field) {
        self.declare(name, field.ty.clone());
        self.data.insert(name.to_owned(), field);
    }

    /// An object that expressions may construct under a name.
    pub fn declare_object(&mut self, name: &str, ty: Type) {
        self.objects.insert(name.to_owned(), ty);
    }

    /// Parses and checks an expression.
    ///
    /// # Errors
    /// What is wrong with it, line by line.
    pub fn compile(&self, text: &str) -> Result<Program, CompileError> {
        let (mut expr, source) = parse::parse(text)?;
        let checked = check::check(&mut expr, &source, &self.variables, &self.objects);
        if !checked.errors.is_empty() {
            return Err(CompileError(checked.errors.join("\n")));
        }
        let result = checked.types.get(&expr.id).cloned().unwrap_or(Type::Dyn);
        let estimate = cost::estimate(&expr, &checked.types, &self.data);
        Ok(Program {
            expr,
            result,
            estimate,
            variables: checked.variables.into_iter().collect(),
        })
    }
}

/// A compiled expression.
#[derive(Debug)]
pub struct Program {
    expr: Expr,
    /// The type of its value.
    pub result: Type,
    pub estimate: Estimate,
    variables: Vec<String>,
}

impl Program {
    /// Whether the expression refers to a variable.
    #[must_use]
    pub fn uses(&self, variable: &str) -> bool {
        self.variables.iter().any(|v| v == variable)
    }

    /// Evaluates within a cost limit. The second value is what it has cost.
    pub fn run(&self, activation: &Activation, limit: u64) -> (Result<Value, EvalError>, u64) {
        eval::evaluate(&self.expr, activation, limit)
    }
}

#[cfg(test)]
mod tests;
