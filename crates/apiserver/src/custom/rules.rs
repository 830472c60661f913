//! The CEL rules of custom resources: compiled when a definition is established, evaluated within a budget.

use std::collections::BTreeMap;
use std::sync::Arc;

use fluyt_api::Cause;
use fluyt_api::custom::structural::Rule;
use fluyt_api::custom::validate::correlated;
use fluyt_api::custom::{Rules, Structural};
use fluyt_api::strategy::customresourcedefinition::field_path;
use fluyt_api::validation::Errors;
use fluyt_cel::{
    Activation, Environment, EvalError, Field, MAX_MESSAGE, PER_CALL_LIMIT, Program,
    RUNTIME_BUDGET, Type, of_structural,
};
use serde_json::Value;

const SELF: &str = "self";
const OLD_SELF: &str = "oldSelf";

/// One rule, ready to run.
pub struct Compiled {
    pub program: Result<Program, String>,
    pub message: Option<Result<Program, String>>,
    /// Where its failure is reported, below the value.
    at: String,
    rule: Rule,
}

/// The environment of the rules on one schema.
pub fn environment(field: &Field, rule: &Rule) -> Environment {
    let mut environment = Environment::default();
    environment.declare_data(SELF, field.clone());
    if rule.optional_old_self == Some(true) {
        environment.declare(OLD_SELF, Type::optional(field.ty.clone()));
    } else {
        environment.declare_data(OLD_SELF, field.clone());
    }
    environment
}

impl Compiled {
    /// Compiles a rule for values of a schema; errors are kept for whoever asks.
    pub fn new(field: &Field, rule: &Rule, openapi: &Value) -> Self {
        let environment = environment(field, rule);
        let typed = |text: &str, ty: &Type, wrong: &str| match environment.compile(text) {
            Ok(program) if program.result == *ty || program.result.is_dyn() && *ty == Type::Dyn => {
                Ok(program)
            }
            Ok(_) => Err(wrong.to_owned()),
            Err(error) => Err(error.0),
        };
        let program = typed(
            &rule.rule,
            &Type::Bool,
            "cel expression must evaluate to a bool",
        );
        let program = program.map_err(|why| match why.starts_with("ERROR") {
            true => format!("compilation failed: {why}"),
            false => why,
        });
        let message = (!rule.message_expression.is_empty()).then(|| {
            let compiled = typed(
                &rule.message_expression,
                &Type::String,
                "messageExpression must evaluate to a string",
            );
            compiled.map_err(|why| match why.starts_with("ERROR") {
                true => format!("messageExpression compilation failed: {why}"),
                false => why,
            })
        });
        let at = field_path(openapi, &rule.field_path, true)
            .map(|found| found.shown)
            .unwrap_or_default();
        Self {
            program,
            message,
            at,
            rule: rule.clone(),
        }
    }

    pub fn uses_old_self(&self) -> bool {
        self.program.as_ref().is_ok_and(|p| p.uses(OLD_SELF))
    }
}

/// The rules of a schema and of everything below it.
struct Node {
    field: Field,
    rules: Vec<Compiled>,
    properties: BTreeMap<Box<str>, Node>,
    items: Option<Box<Node>>,
    values: Option<Box<Node>>,
    schema: Structural,
}

impl std::fmt::Debug for Node {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} rules", self.rules.len())
    }
}

/// Compiles the rules of a resource's schema; `None` when it has none.
pub fn compile(schema: &Structural, openapi: &Value) -> Option<Arc<dyn Rules>> {
    let node = Node::build(schema, openapi, true)?;
    Some(Arc::new(node))
}

impl Node {
    fn build(schema: &Structural, openapi: &Value, root: bool) -> Option<Self> {
        if !schema.has_rules() {
            return None;
        }
        let field = of_structural("self", schema, root)?;
        let rules = schema
            .rules
            .iter()
            .map(|rule| Compiled::new(&field, rule, openapi))
            .collect();
        let properties = schema
            .properties
            .iter()
            .filter_map(|(name, child)| {
                let node = Self::build(
                    child,
                    &openapi["properties"][&**name],
                    child.embedded_resource,
                )?;
                Some((name.clone(), node))
            })
            .collect();
        let below = |child: Option<&Structural>, word: &str| {
            let child = child?;
            Self::build(child, &openapi[word], child.embedded_resource).map(Box::new)
        };
        Some(Self {
            rules,
            properties,
            items: below(schema.items.as_deref(), "items"),
            values: below(schema.additional_schema(), "additionalProperties"),
            field,
            schema: schema.clone(),
        })
    }
}

impl Rules for Node {
    fn validate(
        &self,
        part: Option<&str>,
        object: &Value,
        old: Option<&Value>,
        errors: &mut Errors,
    ) {
        let mut run = Run {
            budget: RUNTIME_BUDGET,
            errors,
        };
        match part {
            None => drop(run.node(self, "", object, old)),
            Some(name) => {
                let (value, old) = (object.get(name), old.and_then(|o| o.get(name)));
                // Rules at the root see the whole object; what they say may depend on the part.
                if run.rules(self, "", object, old.map(|_| object)).is_some()
                    && let (Some(node), Some(value)) = (self.properties.get(name), value)
                {
                    run.node(node, name, value, old);
                }
            }
        }
    }
}

/// One validation of one object.
struct Run<'a> {
    budget: u64,
    errors: &'a mut Errors,
}

impl Run<'_> {
    /// Evaluates the rules of a value and below; `None` when the budget is spent.
    fn node(&mut self, node: &Node, path: &str, value: &Value, old: Option<&Value>) -> Option<()> {
        if value.is_null() {
            return Some(());
        }
        self.rules(node, path, value, old)?;
        match value {
            Value::Object(map) => {
                let old = if node.schema.atomic { None } else { old };
                for (name, value) in map {
                    let old = old.and_then(|o| o.get(name));
                    if let Some(child) = node.properties.get(name.as_str()) {
                        let at = if path.is_empty() {
                            name.clone()
                        } else {
                            format!("{path}.{name}")
                        };
                        self.node(child, &at, value, old)?;
                    } else if let Some(child) = &node.values
                        && !node.schema.properties.contains_key(name.as_str())
                    {
                        self.node(child, &format!("{path}[{name}]"), value, old)?;
                    }
                }
            }
            Value::Array(items) => {
                if let Some(child) = &node.items {
                    for (i, item) in items.iter().enumerate() {
                        let old = correlated(&node.schema, item, old);
                        self.node(child, &format!("{path}[{i}]"), item, old)?;
                    }
                }
            }
            _ => {}
        }
        Some(())
    }

    fn rules(&mut self, node: &Node, path: &str, value: &Value, old: Option<&Value>) -> Option<()> {
        if node.rules.is_empty() {
            return Some(());
        }
        let at = if path.is_empty() { "<nil>" } else { path };
        let ty = Value::from(&*node.schema.ty);
        let typed = |value: &Value| fluyt_cel::Value::typed(value, &node.field.ty);
        let activation = Activation::default().with(SELF, typed(value));
        for compiled in &node.rules {
            let program = match &compiled.program {
                Ok(program) => program,
                Err(why) => {
                    self.errors
                        .invalid(at, &ty, &format!("rule compile error: {why}"));
                    continue;
                }
            };
            let mut activation = activation.clone();
            if compiled.uses_old_self() {
                let optional = compiled.rule.optional_old_self == Some(true);
                match old {
                    None if !optional => continue,
                    old if optional => {
                        activation.set(
                            OLD_SELF,
                            fluyt_cel::Value::Optional(old.map(|o| Box::new(typed(o)))),
                        );
                    }
                    Some(old) => activation.set(OLD_SELF, typed(old)),
                    None => {}
                }
            }
            let (result, cost) = program.run(&activation, PER_CALL_LIMIT);
            if cost > self.budget {
                self.errors.invalid(at, &ty, "validation failed due to running out of cost budget, no further validation rules will be run");
                return None;
            }
            self.budget -= cost;
            let shown = shown(&compiled.rule);
            match result {
                Ok(fluyt_cel::Value::Bool(true)) => {}
                Ok(_) => self.failed(compiled, node, path, value, old, &activation),
                Err(error @ EvalError::NoSuchOverload) => {
                    let detail = format!(
                        "'{error}': call arguments did not match a supported operator, function or macro signature for rule: {shown}"
                    );
                    self.errors.invalid(at, &ty, &detail);
                }
                Err(error @ EvalError::CostExceeded) => {
                    let detail = format!(
                        "'{error}': no further validation rules will be run due to call cost exceeds limit for rule: {shown}"
                    );
                    self.errors.invalid(at, &ty, &detail);
                    return None;
                }
                Err(error) => {
                    self.errors
                        .invalid(at, &ty, &format!("{error} evaluating rule: {shown}"));
                }
            }
        }
        Some(())
    }

    fn failed(
        &mut self,
        compiled: &Compiled,
        node: &Node,
        path: &str,
        value: &Value,
        old: Option<&Value>,
        activation: &Activation,
    ) {
        // What was so before stays tolerated, unless the rule is about the change.
        if !compiled.uses_old_self() && old == Some(value) {
            return;
        }
        let mut field = path.to_owned();
        if !compiled.at.is_empty() {
            if !field.is_empty() {
                field.push('.');
            }
            field.push_str(&compiled.at);
        }
        if field.is_empty() {
            field = "<nil>".into();
        }
        let computed = compiled
            .message
            .as_ref()
            .and_then(|m| m.as_ref().ok())
            .and_then(|program| {
                let (message, cost) = program.run(activation, PER_CALL_LIMIT.min(self.budget));
                self.budget = self.budget.saturating_sub(cost);
                match message {
                    Ok(fluyt_cel::Value::String(text)) => Some(text.trim().to_owned()),
                    _ => None,
                }
            });
        let usable = |text: &String| {
            !text.is_empty() && !text.contains(['\n', '\r']) && text.len() <= MAX_MESSAGE
        };
        let rule = &compiled.rule;
        let detail = computed
            .filter(usable)
            .unwrap_or_else(|| match &*rule.message {
                "" => format!("failed rule: {}", rule.rule.trim()),
                message => message.trim().to_owned(),
            });
        let whole = matches!(&*node.schema.ty, "object" | "array");
        match &*rule.reason {
            "FieldValueForbidden" => self.errors.forbidden(&field, &detail),
            "FieldValueRequired" => self.errors.required(&field, &detail),
            reason => {
                let duplicate = reason == "FieldValueDuplicate";
                let (code, words) = if duplicate {
                    ("FieldValueDuplicate", "Duplicate value")
                } else {
                    ("FieldValueInvalid", "Invalid value")
                };
                let message = match (whole, duplicate) {
                    (true, true) => words.to_owned(),
                    (true, false) => format!("{words}: {detail}"),
                    (false, true) => format!("{words}: {value}"),
                    (false, false) => format!("{words}: {value}: {detail}"),
                };
                self.errors.0.push(Cause {
                    reason: code,
                    message,
                    field,
                });
            }
        }
    }
}

fn shown(rule: &Rule) -> String {
    match rule.message.trim() {
        "" => rule.rule.trim().to_owned(),
        message => format!("{message}: {}", rule.rule.trim()),
    }
}
