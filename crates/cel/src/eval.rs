//! Evaluation, with the cost of every step counted as upstream counts it.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use crate::ast::{Call, Comprehension, Expr, Kind};
use crate::functions;
use crate::value::{Key, Value};

/// Why an expression has no value.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum EvalError {
    #[error("operation cancelled: actual cost limit exceeded")]
    CostExceeded,
    #[error("no such overload")]
    NoSuchOverload,
    #[error("{0}")]
    Other(String),
}

impl EvalError {
    pub(crate) fn other(message: impl Into<String>) -> Self {
        Self::Other(message.into())
    }
}

/// The variables of one evaluation.
#[derive(Clone, Debug, Default)]
pub struct Activation {
    variables: HashMap<String, Value>,
}

impl Activation {
    #[must_use]
    pub fn with(mut self, name: &str, value: Value) -> Self {
        self.set(name, value);
        self
    }

    pub fn set(&mut self, name: &str, value: Value) {
        self.variables.insert(name.to_owned(), value);
    }
}

/// Evaluates an expression within a limit; the cost counts whether it succeeds or not.
pub fn evaluate(
    expr: &Expr,
    activation: &Activation,
    limit: u64,
) -> (Result<Value, EvalError>, u64) {
    let mut machine = Machine {
        activation,
        scopes: Vec::new(),
        cost: 0,
        limit,
    };
    let result = machine.eval(expr);
    (result, machine.cost)
}

type Evaluated = Result<Value, EvalError>;

struct Machine<'a> {
    activation: &'a Activation,
    scopes: Vec<(&'a str, Value)>,
    cost: u64,
    limit: u64,
}

impl<'a> Machine<'a> {
    fn charge(&mut self, cost: u64) -> Result<(), EvalError> {
        self.cost = self.cost.saturating_add(cost);
        if self.cost > self.limit {
            return Err(EvalError::CostExceeded);
        }
        Ok(())
    }

    fn eval(&mut self, expr: &'a Expr) -> Evaluated {
        match &expr.kind {
            Kind::Literal(value) => Ok(value.clone()),
            Kind::Ident(name) => {
                self.charge(1)?;
                self.lookup(name)
            }
            Kind::Select(select) => {
                let operand = self.eval(&select.operand)?;
                if select.test {
                    return has(&operand, &select.field);
                }
                self.charge(1)?;
                field(&operand, &select.field)
            }
            Kind::Call(call) => self.call(call),
            Kind::List(items) => {
                let mut list = Vec::with_capacity(items.len());
                for (item, optional) in items {
                    match (self.eval(item)?, optional) {
                        (Value::Optional(None), true) => {}
                        (Value::Optional(Some(inner)), true) => list.push(*inner),
                        (value, _) => list.push(value),
                    }
                }
                self.charge(10)?;
                Ok(Value::list(list))
            }
            Kind::Map(entries) => {
                let mut map = BTreeMap::new();
                for (key, value, optional) in entries {
                    let key = self.eval(key)?;
                    let key = Key::of(&key).ok_or_else(|| {
                        EvalError::other(format!("unsupported key type: {}", key.type_name()))
                    })?;
                    match (self.eval(value)?, optional) {
                        (Value::Optional(None), true) => {}
                        (Value::Optional(Some(inner)), true) => drop(map.insert(key, *inner)),
                        (value, _) => {
                            map.insert(key, value);
                        }
                    }
                }
                self.charge(30)?;
                Ok(Value::Map(Arc::new(map)))
            }
            Kind::Struct(_, fields) => {
                let mut map = BTreeMap::new();
                for (name, value, optional) in fields {
                    let key = Key::String(name.as_str().into());
                    match (self.eval(value)?, optional) {
                        (Value::Optional(None), true) => {}
                        (Value::Optional(Some(inner)), true) => drop(map.insert(key, *inner)),
                        (value, _) => {
                            map.insert(key, value);
                        }
                    }
                }
                self.charge(40)?;
                Ok(Value::Map(Arc::new(map)))
            }
            Kind::Comprehension(fold) => self.fold(fold),
        }
    }

    fn lookup(&self, name: &str) -> Evaluated {
        if let Some((_, value)) = self.scopes.iter().rev().find(|(n, _)| *n == name) {
            return Ok(value.clone());
        }
        match self.activation.variables.get(name) {
            Some(value) => Ok(value.clone()),
            None if crate::decls::is_type_name(name) => Ok(Value::Type(name.into())),
            None => Err(EvalError::other(format!("no such attribute(s): {name}"))),
        }
    }

    fn call(&mut self, call: &'a Call) -> Evaluated {
        match (call.function.as_str(), call.args.as_slice()) {
            ("_&&_", [left, right]) => self.logical(left, right, false),
            ("_||_", [left, right]) => self.logical(left, right, true),
            ("_?_:_", [condition, yes, no]) => match self.eval(condition)? {
                Value::Bool(true) => self.eval(yes),
                Value::Bool(false) => self.eval(no),
                _ => Err(EvalError::NoSuchOverload),
            },
            ("@not_strictly_false", [condition]) => match self.eval(condition) {
                Err(EvalError::CostExceeded) => Err(EvalError::CostExceeded),
                Ok(Value::Bool(false)) => Ok(Value::Bool(false)),
                _ => Ok(Value::Bool(true)),
            },
            ("_?._", [operand, name]) => {
                let operand = self.eval(operand)?;
                let name = self.eval(name)?;
                self.charge(1)?;
                match name {
                    Value::String(name) => optional_field(operand, &name),
                    _ => Err(EvalError::NoSuchOverload),
                }
            }
            _ => {
                let mut args = Vec::with_capacity(call.args.len() + 1);
                if let Some(target) = &call.target {
                    args.push(self.eval(target)?);
                }
                for arg in &call.args {
                    args.push(self.eval(arg)?);
                }
                let result = functions::call(&call.function, call.target.is_some(), &args);
                self.charge(functions::cost(&call.function, &args, result.as_ref().ok()))?;
                result
            }
        }
    }

    /// `&&` and `||`: an error on one side is outweighed by a decisive value on the other.
    fn logical(&mut self, left: &'a Expr, right: &'a Expr, decisive: bool) -> Evaluated {
        let first = match self.eval(left) {
            Ok(Value::Bool(b)) if b == decisive => return Ok(Value::Bool(decisive)),
            Err(EvalError::CostExceeded) => return Err(EvalError::CostExceeded),
            other => other,
        };
        match (first, self.eval(right)) {
            (_, Ok(Value::Bool(b))) if b == decisive => Ok(Value::Bool(decisive)),
            (_, Err(EvalError::CostExceeded)) => Err(EvalError::CostExceeded),
            (Err(error), _) | (_, Err(error)) => Err(error),
            (Ok(Value::Bool(_)), Ok(Value::Bool(b))) => Ok(Value::Bool(b)),
            _ => Err(EvalError::NoSuchOverload),
        }
    }

    fn fold(&mut self, fold: &'a Comprehension) -> Evaluated {
        let range = self.eval(&fold.range)?;
        let depth = self.scopes.len();
        let init = self.eval(&fold.init)?;
        self.scopes.push((&fold.accu_var, init));
        let items: Vec<(Value, Value)> = match &range {
            Value::List(items) => items
                .iter()
                .enumerate()
                .map(|(i, v)| (Value::Int(i64::try_from(i).unwrap_or(i64::MAX)), v.clone()))
                .collect(),
            Value::Map(map) => map.iter().map(|(k, v)| (k.value(), v.clone())).collect(),
            _ => return Err(EvalError::NoSuchOverload),
        };
        let by_key = matches!(range, Value::Map(_));
        let mut failed = None;
        for (key, value) in items {
            match &fold.var2 {
                Some(var2) => {
                    self.scopes.push((&fold.var, key));
                    self.scopes.push((var2, value));
                }
                None => self
                    .scopes
                    .push((&fold.var, if by_key { key } else { value })),
            }
            let goes_on =
                failed.is_some() || matches!(self.eval(&fold.condition), Ok(Value::Bool(true)));
            if self.cost > self.limit {
                return Err(EvalError::CostExceeded);
            }
            let step = if goes_on {
                Some(self.eval(&fold.step))
            } else {
                None
            };
            self.scopes.truncate(depth + 1);
            match step {
                None => break,
                Some(Ok(value)) => {
                    failed = None;
                    self.scopes[depth].1 = value;
                }
                Some(Err(EvalError::CostExceeded)) => return Err(EvalError::CostExceeded),
                // Quantifiers go on: a later item may decide whatever this one said.
                Some(Err(error)) if is_quantifier(fold) => failed = Some(error),
                Some(Err(error)) => {
                    self.scopes.truncate(depth);
                    return Err(error);
                }
            }
        }
        let result = match failed {
            Some(error) if !decided(&self.scopes[depth].1, fold) => Err(error),
            _ => self.eval(&fold.result),
        };
        self.scopes.truncate(depth);
        result
    }
}

/// `all` and `exists`, whose steps are `&&` and `||`.
fn is_quantifier(fold: &Comprehension) -> bool {
    matches!(&fold.step.kind, Kind::Call(call) if matches!(call.function.as_str(), "_&&_" | "_||_"))
}

fn decided(accu: &Value, fold: &Comprehension) -> bool {
    match (&fold.step.kind, accu) {
        (Kind::Call(call), Value::Bool(b)) => *b == (call.function == "_||_"),
        _ => true,
    }
}

fn has(operand: &Value, name: &str) -> Evaluated {
    Ok(Value::Bool(match operand {
        Value::Map(map) => map.contains_key(&Key::String(name.into())),
        Value::Optional(Some(inner)) => return has(inner, name),
        Value::Optional(None) => false,
        _ => return Err(EvalError::NoSuchOverload),
    }))
}

fn field(operand: &Value, name: &str) -> Evaluated {
    match operand {
        Value::Map(map) => map
            .get(&Key::String(name.into()))
            .cloned()
            .ok_or_else(|| EvalError::other(format!("no such key: {name}"))),
        Value::Optional(_) => optional_field(operand.clone(), name),
        _ => Err(EvalError::NoSuchOverload),
    }
}

fn optional_field(operand: Value, name: &str) -> Evaluated {
    match operand {
        Value::Optional(None) => Ok(Value::Optional(None)),
        Value::Optional(Some(inner)) => optional_field(*inner, name),
        Value::Map(map) => {
            let found = map.get(&Key::String(name.into())).cloned();
            Ok(Value::Optional(found.map(Box::new)))
        }
        _ => Err(EvalError::NoSuchOverload),
    }
}
