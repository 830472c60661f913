//! Type checking: every expression gets a type, or the error that cel-go would report.

use std::collections::{BTreeMap, HashMap, HashSet};

use crate::ast::{Call, Comprehension, Expr, Kind};
use crate::decls::{self, Overload};
use crate::parse::{Source, describe};
use crate::types::Type;
use crate::value::Value;

/// What checking found out.
#[derive(Debug, Default)]
pub struct Checked {
    pub types: HashMap<u64, Type>,
    /// Variables that the expression refers to.
    pub variables: HashSet<String>,
    pub errors: Vec<String>,
}

/// Checks an expression, rewriting qualified names of functions on the way.
pub fn check(
    expr: &mut Expr,
    source: &Source,
    variables: &BTreeMap<String, Type>,
    objects: &BTreeMap<String, Type>,
) -> Checked {
    let mut checker = Checker {
        source,
        variables,
        objects,
        scopes: Vec::new(),
        mixed: false,
        found: Checked::default(),
    };
    checker.visit(expr);
    checker.found
}

struct Checker<'a> {
    source: &'a Source,
    variables: &'a BTreeMap<String, Type>,
    /// Object types that expressions may construct, by name.
    objects: &'a BTreeMap<String, Type>,
    scopes: Vec<(String, Type)>,
    /// Elements of the present literal may be of several types.
    mixed: bool,
    found: Checked,
}

type Bindings = HashMap<char, Type>;

impl Checker<'_> {
    fn error(&mut self, id: u64, message: &str) {
        let (line, column) = self.source.position(id);
        let error = describe(&self.source.text, line, column, message);
        if !self.found.errors.contains(&error) {
            self.found.errors.push(error);
        }
    }

    fn visit(&mut self, expr: &mut Expr) -> Type {
        let id = expr.id;
        let ty = match &mut expr.kind {
            Kind::Literal(value) => literal(value),
            Kind::Ident(name) => self.ident(id, name),
            Kind::Select(_) => self.select(expr),
            Kind::Call(_) => self.call(expr),
            Kind::List(items) => {
                let mut item = Type::Unbound;
                for (expr, optional) in items {
                    let mut ty = self.visit(expr);
                    if *optional && let Type::Optional(inner) = ty {
                        ty = *inner;
                    }
                    item = self.same_element(expr.id, item, ty);
                }
                Type::list(item)
            }
            Kind::Map(entries) => {
                let (mut key, mut value) = (Type::Unbound, Type::Unbound);
                for (k, v, optional) in entries {
                    let ty = self.visit(k);
                    key = self.same_element(k.id, key, ty);
                    let mut ty = self.visit(v);
                    if *optional && let Type::Optional(inner) = ty {
                        ty = *inner;
                    }
                    value = self.same_element(v.id, value, ty);
                }
                Type::map(key, value)
            }
            Kind::Struct(name, fields) => {
                let ty = self.constructed(name);
                let mut problems = Vec::new();
                for (field, value, _) in fields.iter_mut() {
                    let given = self.visit(value);
                    let Some(Type::Object(object)) = &ty else {
                        continue;
                    };
                    match object.fields.get(field.as_str()) {
                        None => problems.push((value.id, format!("undefined field '{field}'"))),
                        Some(known) if unify(&known.ty, &given, &mut Bindings::new()).is_none() => {
                            problems.push((value.id, format!("expected type of field '{field}' is '{}' but provided type is '{given}'", known.ty)));
                        }
                        Some(_) => {}
                    }
                }
                for (id, message) in problems {
                    self.error(id, &message);
                }
                match ty {
                    Some(ty) => ty,
                    None => {
                        let message = format!("undeclared reference to '{name}' (in container '')");
                        self.error(id, &message);
                        Type::Dyn
                    }
                }
            }
            Kind::Comprehension(fold) => self.fold(fold),
        };
        self.found.types.insert(id, ty.clone());
        ty
    }

    /// The type of an object that is constructed under a name. `Object.spec` is a part of `Object`.
    fn constructed(&self, name: &str) -> Option<Type> {
        let whole = name.split('.').next().unwrap_or_default();
        let dynamic = matches!(self.objects.get(whole), Some(Type::Dynamic(_)));
        if dynamic {
            return Some(Type::Dynamic(name.into()));
        }
        self.objects.get(name).cloned()
    }

    /// Literals of Kubernetes' expressions hold elements of one type.
    fn same_element(&mut self, id: u64, known: Type, new: Type) -> Type {
        match join(&known, &new) {
            Some(joined) => joined,
            None if self.mixed => Type::Dyn,
            None => {
                let message = format!("expected type '{known}' but found '{new}'");
                self.error(id, &message);
                Type::Dyn
            }
        }
    }

    fn lookup(&mut self, name: &str) -> Option<Type> {
        if let Some((_, ty)) = self.scopes.iter().rev().find(|(n, _)| n == name) {
            return Some(ty.clone());
        }
        let ty = self.variables.get(name)?.clone();
        self.found.variables.insert(name.to_owned());
        Some(ty)
    }

    fn ident(&mut self, id: u64, name: &str) -> Type {
        if let Some(ty) = self.lookup(name) {
            return ty;
        }
        if decls::is_type_name(name) {
            return Type::Type;
        }
        let message = format!("undeclared reference to '{name}' (in container '')");
        self.error(id, &message);
        Type::Dyn
    }

    fn select(&mut self, expr: &mut Expr) -> Type {
        // A dotted name may be a variable's or a type's as a whole.
        if let Some(name) = qualified(expr)
            && name.contains('.')
            && self.scopes.iter().all(|(n, _)| *n != name)
            && (self.variables.contains_key(&name) || decls::is_type_name(&name))
        {
            expr.kind = Kind::Ident(name.clone());
            return self.ident(expr.id, &name);
        }
        let id = expr.id;
        let Kind::Select(select) = &mut expr.kind else {
            return Type::Dyn;
        };
        let operand = self.visit(&mut select.operand);
        let (field, test) = (select.field.clone(), select.test);
        let (inner, optional) = match operand {
            Type::Optional(inner) => (*inner, true),
            other => (other, false),
        };
        let ty = match &inner {
            Type::Dyn | Type::Unbound | Type::Dynamic(_) => Type::Dyn,
            Type::Map(key, value) => {
                if !matches!(**key, Type::String | Type::Dyn | Type::Unbound) {
                    let message = format!(
                        "found no matching overload for '_[_]' applied to '({inner}, string)'"
                    );
                    self.error(id, &message);
                }
                (**value).clone()
            }
            Type::Object(object) => match object.fields.get(&field) {
                Some(field) => field.ty.clone(),
                None => {
                    self.error(id, &format!("undefined field '{field}'"));
                    Type::Dyn
                }
            },
            other => {
                let message = format!("type '{other}' does not support field selection");
                self.error(id, &message);
                Type::Dyn
            }
        };
        match (test, optional) {
            (true, _) => Type::Bool,
            (false, true) => Type::optional(ty),
            (false, false) => ty,
        }
    }

    fn call(&mut self, expr: &mut Expr) -> Type {
        let id = expr.id;
        let Kind::Call(call) = &mut expr.kind else {
            return Type::Dyn;
        };
        // `format.named('x')` is a function with a dotted name, unless the first part is a variable.
        if let Some(target) = &call.target
            && let Some(space) = qualified(target)
            && decls::overloads(&format!("{space}.{}", call.function)).is_some()
            && self.scopes.iter().all(|(n, _)| *n != space)
            && !self.variables.contains_key(&space)
        {
            call.function = format!("{space}.{}", call.function);
            call.target = None;
        }
        if call.function == "_?._" {
            return self.optional_select(call);
        }
        let mut args = Vec::new();
        let member = call.target.is_some();
        if let Some(target) = &mut call.target {
            args.push(self.visit(target));
        }
        for arg in &mut call.args {
            // What is formatted may be of several types.
            let formatted = call.function == "format" && matches!(arg.kind, Kind::List(_));
            self.mixed |= formatted;
            args.push(self.visit(arg));
            self.mixed &= !formatted;
        }
        let function = call.function.clone();
        let Some(overloads) = decls::overloads(&function) else {
            let message = format!("undeclared reference to '{function}' (in container '')");
            self.error(id, &message);
            return Type::Dyn;
        };
        match resolve(overloads, member, &args) {
            Some(result) => {
                if matches!(function.as_str(), "type") {
                    return Type::Type;
                }
                self.literals(call);
                result
            }
            None => {
                let shown: Vec<String> = args.iter().map(ToString::to_string).collect();
                let applied = if member {
                    let (first, rest) = shown
                        .split_first()
                        .map_or(("", &shown[..]), |(f, r)| (f.as_str(), r));
                    format!("{first}.({})", rest.join(", "))
                } else {
                    format!("({})", shown.join(", "))
                };
                let message =
                    format!("found no matching overload for '{function}' applied to '{applied}'");
                self.error(id, &message);
                Type::Dyn
            }
        }
    }

    /// Constants that can never be what they are used as.
    fn literals(&mut self, call: &Call) {
        let Some(Expr {
            id,
            kind: Kind::Literal(Value::String(text)),
        }) = call.args.last()
        else {
            return;
        };
        match call.function.as_str() {
            "duration" if crate::library::parse_duration(text).is_none() => {
                self.error(*id, "invalid duration argument");
            }
            "timestamp" if text.parse::<jiff::Timestamp>().is_err() => {
                self.error(*id, "invalid timestamp argument");
            }
            "matches" if regex::Regex::new(text).is_err() => {
                self.error(*id, "invalid matches argument");
            }
            _ => {}
        }
    }

    fn optional_select(&mut self, call: &mut Call) -> Type {
        let Some((operand, _)) = call.args.split_first_mut() else {
            return Type::Dyn;
        };
        let ty = self.visit(operand);
        let name = match call.args.get(1).map(|e| &e.kind) {
            Some(Kind::Literal(Value::String(name))) => name.to_string(),
            _ => return Type::Dyn,
        };
        let inner = match ty {
            Type::Optional(inner) => *inner,
            other => other,
        };
        let field = match &inner {
            Type::Map(_, value) => (**value).clone(),
            Type::Object(object) => match object.fields.get(&name) {
                Some(field) => field.ty.clone(),
                None => {
                    let id = call.args[1].id;
                    self.error(id, &format!("undefined field '{name}'"));
                    Type::Dyn
                }
            },
            _ => Type::Dyn,
        };
        Type::optional(field)
    }

    fn fold(&mut self, fold: &mut Comprehension) -> Type {
        let range = self.visit(&mut fold.range);
        let (first, second) = match &range {
            Type::List(item) => (Type::Int, (**item).clone()),
            Type::Map(key, value) => ((**key).clone(), (**value).clone()),
            Type::Dyn | Type::Unbound => (Type::Dyn, Type::Dyn),
            Type::Optional(_) if fold.is_bind() => (Type::Dyn, Type::Dyn),
            other => {
                let message = format!(
                    "expression of type '{other}' cannot be range of a comprehension (must be list, map, or dynamic)"
                );
                self.error(fold.range.id, &message);
                (Type::Dyn, Type::Dyn)
            }
        };
        let mut accu = self.visit(&mut fold.init);
        // What an empty literal holds is known after one round.
        for _ in 0..2 {
            let depth = self.scopes.len();
            self.scopes.push((fold.accu_var.clone(), accu.clone()));
            match &fold.var2 {
                Some(var2) => {
                    self.scopes.push((fold.var.clone(), first.clone()));
                    self.scopes.push((var2.clone(), second.clone()));
                }
                None => {
                    let item = if matches!(range, Type::Map(..)) {
                        &first
                    } else {
                        &second
                    };
                    self.scopes.push((fold.var.clone(), item.clone()));
                }
            }
            self.visit(&mut fold.condition);
            let step = self.visit(&mut fold.step);
            self.scopes.truncate(depth);
            let joined = if fold.is_bind() {
                accu.clone()
            } else {
                join(&accu, &step).unwrap_or(step)
            };
            if joined == accu {
                break;
            }
            accu = joined;
        }
        self.scopes.push((fold.accu_var.clone(), accu));
        let result = self.visit(&mut fold.result);
        self.scopes.pop();
        result
    }
}

fn literal(value: &Value) -> Type {
    match value {
        Value::Null => Type::Null,
        Value::Bool(_) => Type::Bool,
        Value::Int(_) => Type::Int,
        Value::Uint(_) => Type::Uint,
        Value::Double(_) => Type::Double,
        Value::Bytes(_) => Type::Bytes,
        _ => Type::String,
    }
}

/// `a.b.c` of nothing but names.
fn qualified(expr: &Expr) -> Option<String> {
    match &expr.kind {
        Kind::Ident(name) => Some(name.clone()),
        Kind::Select(select) if !select.test => {
            Some(format!("{}.{}", qualified(&select.operand)?, select.field))
        }
        _ => None,
    }
}

/// The type that values of both types have, if there is one.
fn join(a: &Type, b: &Type) -> Option<Type> {
    match (a, b) {
        (Type::Unbound, other) | (other, Type::Unbound) => Some(other.clone()),
        (Type::Dyn, _) | (_, Type::Dyn) => Some(Type::Dyn),
        (Type::List(a), Type::List(b)) => Some(Type::list(join(a, b)?)),
        (Type::Map(ka, va), Type::Map(kb, vb)) => Some(Type::map(join(ka, kb)?, join(va, vb)?)),
        (Type::Optional(a), Type::Optional(b)) => Some(Type::optional(join(a, b)?)),
        (a, b) if is_wrapper(a) && *b == Type::Null => Some(a.clone()),
        (a, b) if is_wrapper(b) && *a == Type::Null => Some(b.clone()),
        (a, b) => (a == b).then(|| a.clone()),
    }
}

/// Types whose values may be null.
fn is_wrapper(ty: &Type) -> bool {
    matches!(
        ty,
        Type::Object(_) | Type::Dynamic(_) | Type::Duration | Type::Timestamp | Type::Optional(_)
    )
}

/// The result of the overloads that fit; `None` when none does.
pub(crate) fn resolve(overloads: &[Overload], member: bool, args: &[Type]) -> Option<Type> {
    let mut result: Option<Type> = None;
    for overload in overloads {
        if overload.member != member || overload.params.len() != args.len() {
            continue;
        }
        let mut bindings = Bindings::new();
        let fits = overload
            .params
            .iter()
            .zip(args)
            .all(|(param, arg)| unify(param, arg, &mut bindings).is_some());
        if !fits {
            continue;
        }
        let ty = substitute(&overload.result, &bindings);
        result = Some(match result {
            None => ty,
            Some(known) if known == ty => known,
            Some(_) => Type::Dyn,
        });
    }
    result
}

/// Makes a parameter fit an argument.
fn unify(param: &Type, arg: &Type, bindings: &mut Bindings) -> Option<()> {
    match (param, arg) {
        (Type::Param(name), arg) => {
            let joined = match bindings.get(name) {
                Some(bound) => join(bound, arg)?,
                None => arg.clone(),
            };
            bindings.insert(*name, joined);
            Some(())
        }
        (Type::Dyn, _) | (_, Type::Dyn | Type::Unbound) => {
            bind_dyn(param, bindings);
            Some(())
        }
        (Type::List(a), Type::List(b)) | (Type::Optional(a), Type::Optional(b)) => {
            unify(a, b, bindings)
        }
        (Type::Map(ka, va), Type::Map(kb, vb)) => {
            unify(ka, kb, bindings)?;
            unify(va, vb, bindings)
        }
        (a, Type::Null) if is_wrapper(a) => Some(()),
        (a, b) => (a == b).then_some(()),
    }
}

/// What a dynamic argument leaves open is dynamic.
fn bind_dyn(param: &Type, bindings: &mut Bindings) {
    match param {
        Type::Param(name) => {
            bindings.entry(*name).or_insert(Type::Dyn);
        }
        Type::List(inner) | Type::Optional(inner) => bind_dyn(inner, bindings),
        Type::Map(key, value) => {
            bind_dyn(key, bindings);
            bind_dyn(value, bindings);
        }
        _ => {}
    }
}

fn substitute(ty: &Type, bindings: &Bindings) -> Type {
    match ty {
        Type::Param(name) => bindings.get(name).cloned().unwrap_or(Type::Unbound),
        Type::List(inner) => Type::list(substitute(inner, bindings)),
        Type::Optional(inner) => Type::optional(substitute(inner, bindings)),
        Type::Map(key, value) => Type::map(substitute(key, bindings), substitute(value, bindings)),
        other => other.clone(),
    }
}
