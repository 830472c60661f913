//! The estimate of what an expression costs at most, from the sizes that schemas allow.

use std::collections::{BTreeMap, HashMap};

use crate::ast::{Call, Comprehension, Expr, Kind};
use crate::library::MAX_FORMAT_REGEX;
use crate::schema::MAX_REQUEST;
use crate::types::{Field, Type};
use crate::value::Value;

/// A range of costs or sizes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Estimate {
    pub min: u64,
    pub max: u64,
}

impl Estimate {
    const UNKNOWN: Self = Self {
        min: 0,
        max: u64::MAX,
    };

    const fn fixed(n: u64) -> Self {
        Self { min: n, max: n }
    }

    fn add(self, other: Self) -> Self {
        Self {
            min: self.min.saturating_add(other.min),
            max: self.max.saturating_add(other.max),
        }
    }

    fn multiply(self, other: Self) -> Self {
        Self {
            min: self.min.saturating_mul(other.min),
            max: self.max.saturating_mul(other.max),
        }
    }

    fn union(self, other: Self) -> Self {
        Self {
            min: self.min.min(other.min),
            max: self.max.max(other.max),
        }
    }

    #[allow(
        clippy::cast_precision_loss,
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss
    )]
    fn factor(self, factor: f64) -> Self {
        let scale = |n: u64| {
            let scaled = (n as f64 * factor).ceil();
            if scaled >= u64::MAX as f64 {
                u64::MAX
            } else {
                scaled as u64
            }
        };
        Self {
            min: scale(self.min),
            max: scale(self.max),
        }
    }
}

/// How often data of a schema can occur in one request at most.
#[must_use]
pub fn maximum_cardinality(min_size: u64) -> u64 {
    MAX_REQUEST / (min_size + 1)
}

/// Estimates a checked expression.
pub fn estimate(
    expr: &Expr,
    types: &HashMap<u64, Type>,
    variables: &BTreeMap<String, Field>,
) -> Estimate {
    let mut coster = Coster {
        types,
        variables,
        scopes: Vec::new(),
    };
    coster.visit(expr).cost
}

/// What is known of a part of an expression.
#[derive(Clone, Debug, Default)]
struct Node {
    cost: Estimate,
    size: Option<Estimate>,
    /// Where its value comes from, if from the data.
    data: Option<Field>,
    /// Sizes of the items of a literal or computed container.
    items: Option<Estimate>,
}

struct Coster<'a> {
    types: &'a HashMap<u64, Type>,
    variables: &'a BTreeMap<String, Field>,
    scopes: Vec<(String, Node)>,
}

const STRING: f64 = 0.1;
const REGEX: f64 = 0.25;

impl Coster<'_> {
    fn ty(&self, expr: &Expr) -> &Type {
        self.types.get(&expr.id).unwrap_or(&Type::Dyn)
    }

    fn size(&self, expr: &Expr, node: &Node) -> Estimate {
        if let Some(size) = node.size {
            return size;
        }
        if let Some(data) = &node.data {
            return Estimate {
                min: 0,
                max: data.max_elements,
            };
        }
        match self.ty(expr) {
            Type::Bool
            | Type::Int
            | Type::Uint
            | Type::Double
            | Type::Duration
            | Type::Timestamp => Estimate::fixed(1),
            _ => Estimate::UNKNOWN,
        }
    }

    fn visit(&mut self, expr: &Expr) -> Node {
        match &expr.kind {
            Kind::Literal(value) => Node {
                size: Some(Estimate::fixed(value.size())),
                ..Node::default()
            },
            Kind::Ident(name) => {
                let known = self.scopes.iter().rev().find(|(n, _)| n == name);
                let mut node = match known {
                    Some((_, node)) => node.clone(),
                    None => Node {
                        data: self.variables.get(name).cloned(),
                        ..Node::default()
                    },
                };
                node.cost = Estimate::fixed(1);
                node
            }
            Kind::Select(select) => {
                let operand = self.visit(&select.operand);
                if select.test {
                    return Node {
                        cost: operand.cost,
                        ..Node::default()
                    };
                }
                let own = match self.ty(&select.operand) {
                    Type::Map(..) | Type::Object(_) | Type::Optional(_) => 1,
                    _ => 0,
                };
                Node {
                    cost: operand.cost.add(Estimate::fixed(own)),
                    data: operand.data.as_ref().and_then(|d| member(d, &select.field)),
                    ..Node::default()
                }
            }
            Kind::Call(call) => self.call(expr, call),
            Kind::List(list) => {
                let mut cost = Estimate::fixed(10);
                let mut items: Option<Estimate> = None;
                for (item, _) in list {
                    let node = self.visit(item);
                    cost = cost.add(node.cost);
                    let size = self.size(item, &node);
                    items = Some(items.map_or(size, |known| known.union(size)));
                }
                Node {
                    cost,
                    size: Some(Estimate::fixed(list.len() as u64)),
                    items,
                    ..Node::default()
                }
            }
            Kind::Map(entries) => {
                let mut cost = Estimate::fixed(30);
                for (key, value, _) in entries {
                    cost = cost.add(self.visit(key).cost).add(self.visit(value).cost);
                }
                Node {
                    cost,
                    size: Some(Estimate::fixed(entries.len() as u64)),
                    ..Node::default()
                }
            }
            Kind::Struct(_, fields) => {
                let mut cost = Estimate::fixed(40);
                for (_, value, _) in fields {
                    cost = cost.add(self.visit(value).cost);
                }
                Node {
                    cost,
                    ..Node::default()
                }
            }
            Kind::Comprehension(fold) => self.fold(fold),
        }
    }

    fn fold(&mut self, fold: &Comprehension) -> Node {
        let range = self.visit(&fold.range);
        let init = self.visit(&fold.init);
        let mut cost = range.cost.add(init.cost);
        let depth = self.scopes.len();
        self.scopes.push((
            fold.accu_var.clone(),
            Node {
                cost: Estimate::default(),
                ..init.clone()
            },
        ));
        if fold.is_bind() {
            let result = self.visit(&fold.result);
            self.scopes.truncate(depth);
            return Node {
                cost: cost.add(result.cost),
                ..result
            };
        }
        let element = Node {
            data: range
                .data
                .as_ref()
                .and_then(|d| d.element.as_deref().cloned()),
            size: range.items,
            ..Node::default()
        };
        let key = Node {
            data: range.data.as_ref().and_then(|d| d.key.as_deref().cloned()),
            ..Node::default()
        };
        let by_key = matches!(self.ty(&fold.range), Type::Map(..));
        match &fold.var2 {
            Some(var2) => {
                self.scopes.push((fold.var.clone(), key));
                self.scopes.push((var2.clone(), element));
            }
            None => self
                .scopes
                .push((fold.var.clone(), if by_key { key } else { element })),
        }
        let condition = self.visit(&fold.condition);
        let step = self.visit(&fold.step);
        self.scopes.truncate(depth + 1);
        cost = cost.add(self.visit(&fold.result).cost);
        self.scopes.truncate(depth);
        let count = self.size(&fold.range, &range);
        cost = cost.add(count.multiply(step.cost.add(condition.cost)));
        let size = match &fold.init.kind {
            Kind::List(_) | Kind::Map(_) => Some(count),
            _ => init.size,
        };
        Node {
            cost,
            size,
            items: step.items,
            ..Node::default()
        }
    }

    fn call(&mut self, expr: &Expr, call: &Call) -> Node {
        let target = call.target.as_ref().map(|t| self.visit(t));
        let args: Vec<Node> = call.args.iter().map(|a| self.visit(a)).collect();
        let mut sum = target.as_ref().map_or(Estimate::default(), |t| t.cost);
        match (call.function.as_str(), args.as_slice()) {
            ("_&&_" | "_||_", [left, right]) => {
                return Node {
                    cost: Estimate {
                        min: left.cost.min,
                        max: left.cost.max.saturating_add(right.cost.max),
                    },
                    size: Some(Estimate::fixed(1)),
                    ..Node::default()
                };
            }
            ("_?_:_", [condition, yes, no]) => {
                let size = self
                    .size(&call.args[1], yes)
                    .union(self.size(&call.args[2], no));
                return Node {
                    cost: condition.cost.add(yes.cost.union(no.cost)),
                    size: Some(size),
                    ..Node::default()
                };
            }
            _ => {}
        }
        for arg in &args {
            sum = sum.add(arg.cost);
        }
        // The target is the first operand of everything below.
        let mut operands: Vec<(&Expr, &Node)> = Vec::new();
        if let (Some(expr), Some(node)) = (&call.target, &target) {
            operands.push((expr, node));
        }
        operands.extend(call.args.iter().zip(&args));
        let (own, size) = self.own_cost(expr, &call.function, &operands);
        let first = operands.first();
        let data = match call.function.as_str() {
            "_[_]" | "_[?_]" => {
                first.and_then(|(_, n)| n.data.as_ref()?.element.as_deref().cloned())
            }
            "_?._" => match (first, call.args.get(1).map(|a| &a.kind)) {
                (Some((_, node)), Some(Kind::Literal(Value::String(name)))) => {
                    node.data.as_ref().and_then(|d| member(d, name))
                }
                _ => None,
            },
            "dyn" | "orValue" | "value" | "optional.of" => first.and_then(|(_, n)| n.data.clone()),
            _ => None,
        };
        Node {
            cost: sum.add(own),
            size,
            data,
            ..Node::default()
        }
    }

    /// The cost of a function besides its operands', and the size of its result where that is known.
    fn own_cost(
        &self,
        expr: &Expr,
        function: &str,
        operands: &[(&Expr, &Node)],
    ) -> (Estimate, Option<Estimate>) {
        let size = |i: usize| {
            operands
                .get(i)
                .map_or(Estimate::fixed(1), |(expr, node)| self.size(expr, node))
        };
        let is_text = |i: usize| {
            operands
                .get(i)
                .is_some_and(|(expr, _)| matches!(self.ty(expr), Type::String | Type::Bytes))
        };
        let is_list = |i: usize| {
            operands
                .get(i)
                .is_some_and(|(expr, _)| matches!(self.ty(expr), Type::List(_)))
        };
        let one = Estimate::fixed(1);
        match function {
            "check" => (Estimate::fixed(350_000), None),
            "isSorted" | "sum" | "max" | "min" | "indexOf" | "lastIndexOf" => {
                if !is_list(0) {
                    return (size(0).factor(STRING), Some(one));
                }
                let item = match operands.first().map(|(e, _)| self.ty(e)) {
                    Some(Type::List(item)) if matches!(**item, Type::String | Type::Bytes) => {
                        let element = operands[0]
                            .1
                            .data
                            .as_ref()
                            .and_then(|d| d.element.as_deref().map(|e| e.max_elements));
                        let length = Estimate {
                            min: 0,
                            max: element.unwrap_or(u64::MAX),
                        };
                        one.add(length.factor(STRING))
                    }
                    _ => one,
                };
                (size(0).multiply(item), None)
            }
            "url"
            | "isURL"
            | "jsonpatch.escapeKey"
            | "lowerAscii"
            | "upperAscii"
            | "substring"
            | "trim" => (size(0).factor(STRING), Some(size(0))),
            "replace" => {
                let (text, from, to) = (size(0), size(1), size(2));
                let count = if from.min == 0 {
                    text.max.saturating_add(1)
                } else {
                    text.max.div_ceil(from.min)
                };
                let max = count.saturating_mul(to.max).saturating_add(text.max);
                (text.factor(2.0 * STRING), Some(Estimate { min: 0, max }))
            }
            "split" => (
                size(0).factor(2.0 * STRING),
                Some(Estimate {
                    min: 0,
                    max: size(0).max,
                }),
            ),
            "join" => {
                let element = operands
                    .first()
                    .and_then(|(_, n)| n.data.as_ref()?.element.as_deref().map(|e| e.max_elements));
                let item = Estimate {
                    min: 0,
                    max: element.unwrap_or(u64::MAX),
                };
                let item = operands.first().and_then(|(_, n)| n.items).unwrap_or(item);
                let separator = if operands.len() > 1 {
                    size(1)
                } else {
                    Estimate::default()
                };
                let all = size(0).multiply(item.add(separator));
                (all.factor(STRING), Some(all))
            }
            "find" | "findAll" | "matches" => {
                let text = size(0).add(one).factor(STRING);
                (
                    text.multiply(size(1).factor(REGEX)),
                    Some(Estimate {
                        min: 0,
                        max: size(0).max,
                    }),
                )
            }
            "contains" => (
                size(0).factor(STRING).multiply(size(1).factor(STRING)),
                Some(one),
            ),
            "startsWith" | "endsWith" => (size(1).factor(STRING), Some(one)),
            "ip" | "isIP" | "cidr" | "isCIDR" | "quantity" | "isQuantity" | "semver"
            | "isSemver"
                if is_text(0) =>
            {
                (size(0).factor(STRING), None)
            }
            "ip.isCanonical" => (size(0).factor(2.0 * STRING), Some(one)),
            "containsIP" | "containsCIDR" => {
                let address = Estimate { min: 4, max: 16 };
                let mut cost = address.add(address).factor(STRING);
                if function == "containsCIDR" {
                    cost = cost.add(address.factor(STRING)).add(one);
                }
                if is_text(1) {
                    cost = cost.add(size(1).factor(STRING));
                }
                (cost, Some(one))
            }
            "validate" => {
                #[allow(clippy::cast_precision_loss)]
                let regex = MAX_FORMAT_REGEX as f64 * REGEX;
                (size(1).factor(STRING).factor(regex), None)
            }
            "bytes" if is_text(0) => {
                let text = size(0);
                (
                    text.factor(STRING),
                    Some(Estimate {
                        min: text.min,
                        max: text.max.saturating_mul(4),
                    }),
                )
            }
            "string" if is_text(0) => (size(0).factor(STRING), Some(size(0))),
            "strings.quote" => (size(0).factor(STRING), None),
            "format" => (size(0).factor(STRING), None),
            "@in" if is_list(1) => (size(1), Some(one)),
            "_==_" | "_!=_" | "_<_" | "_<=_" | "_>_" | "_>=_" => {
                let (left, right) = (size(0), size(1));
                let min = if left.min == 0 || right.min == 0 {
                    0
                } else {
                    left.min.min(right.min)
                };
                let both = Estimate {
                    min,
                    max: left.max.min(right.max),
                };
                (both.factor(STRING), Some(one))
            }
            "_+_" if is_text(0) => {
                let both = size(0).add(size(1));
                (both.factor(STRING), Some(both))
            }
            "_+_" if is_list(0) => (one, Some(size(0).add(size(1)))),
            "sets.contains" | "sets.intersects" => (size(0).multiply(size(1)).add(one), Some(one)),
            "sets.equivalent" => (size(0).multiply(size(1)).factor(2.0).add(one), Some(one)),
            "reverse" | "flatten" | "distinct" | "sort" | "slice" | "lists.range" => {
                (size(0).add(one), Some(size(0)))
            }
            _ => {
                let scalar = matches!(
                    self.ty(expr),
                    Type::Bool | Type::Int | Type::Uint | Type::Double
                );
                (one, scalar.then_some(one))
            }
        }
    }
}

fn member(data: &Field, name: &str) -> Option<Field> {
    match &data.ty {
        Type::Object(object) => object.fields.get(name).cloned(),
        _ => data.element.as_deref().cloned(),
    }
}
