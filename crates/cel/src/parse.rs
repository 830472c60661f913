//! From text to the tree, through the `cel` crate's parser and macros.

use std::sync::LazyLock;

use cel::Env;
use cel::common::ast::{
    CallExpr, ComprehensionExpr, EntryExpr, Expr as Parsed, IdedExpr, ListExpr, LiteralValue,
    MapExpr, SourceInfo,
};
use cel::parser::{Macro, MacroExprHelper, ParseError};

use crate::ast::{Call, Comprehension, Expr, Kind, Select};
use crate::program::CompileError;
use crate::value::Value;

/// Deeper expressions are refused.
const MAX_DEPTH: u16 = 250;

/// Longer ones too.
const MAX_LENGTH: usize = 100_000;

static ENV: LazyLock<Env> = LazyLock::new(|| {
    let mut env = Env::stdlib().with_optional_support(true);
    for one in macros() {
        // Every macro of the list is declared once.
        let _ = env.add_macro(one);
    }
    env
});

/// Where things stand in the source.
pub struct Source {
    pub text: String,
    info: SourceInfo,
}

impl Source {
    /// Line and column of an expression, both from 1.
    pub fn position(&self, id: u64) -> (usize, usize) {
        let at = self
            .info
            .offset_for(id)
            .map_or(0, |(start, _)| start as usize);
        let before: String = self.text.chars().take(at).collect();
        let line = before.matches('\n').count() + 1;
        let column = before
            .rsplit('\n')
            .next()
            .unwrap_or_default()
            .chars()
            .count();
        (line, column + 1)
    }
}

/// Parses an expression.
pub fn parse(text: &str) -> Result<(Expr, Source), CompileError> {
    if text.len() > MAX_LENGTH {
        return Err(CompileError(format!(
            "expression code point size exceeds limit: size: {}, limit {MAX_LENGTH}",
            text.len()
        )));
    }
    let parser = ENV.parser().max_recursion_depth(MAX_DEPTH);
    let (parsed, info) = parser.parse_with_source_info(text).map_err(|errors| {
        // What could not be finished has no message of its own where upstream reads on to the end.
        let real = errors
            .errors
            .iter()
            .filter(|e| !e.msg.starts_with(UNFINISHED));
        let mut all: Vec<String> = real.map(|e| report(text, e.pos, &e.msg)).collect();
        if all.is_empty() {
            all.push(unfinished(text));
        }
        CompileError(all.join("\n"))
    })?;
    let source = Source {
        text: text.to_owned(),
        info,
    };
    Ok((convert(parsed)?, source))
}

/// How the parser's complaints about its own tree begin.
const UNFINISHED: &str = "Incomplete `";

/// What an expression can begin with.
const BEGINNINGS: &str = "{'[', '{', '(', '.', '-', '!', 'true', 'false', 'null', NUM_FLOAT, NUM_INT, NUM_UINT, STRING, BYTES, IDENTIFIER}";

/// An expression that ends where another should begin.
fn unfinished(text: &str) -> String {
    let line = text.lines().count().max(1);
    let column = text.lines().last().map_or(0, |l| l.chars().count() + 1);
    let message = format!("Syntax error: mismatched input '<EOF>' expecting {BEGINNINGS}");
    describe(text, line, column, &message)
}

fn report(text: &str, (line, column): (isize, isize), message: &str) -> String {
    // Nothing at all has no first column.
    let column = match text {
        "" => 0,
        _ => usize::try_from(column).unwrap_or(1).max(1),
    };
    let line = usize::try_from(line).unwrap_or(1).max(1);
    // Where the expression could be at its end, nothing else is said of what could follow.
    match message.split_once("expecting {<EOF>") {
        Some((start, _)) => describe(text, line, column, &format!("{start}expecting <EOF>")),
        None => describe(text, line, column, message),
    }
}

/// An error as cel-go prints it: position, message, the line and a mark.
pub fn describe(text: &str, line: usize, column: usize, message: &str) -> String {
    let shown = text.lines().nth(line - 1).unwrap_or_default();
    let dots = ".".repeat(column.saturating_sub(1));
    format!("ERROR: <input>:{line}:{column}: {message}\n | {shown}\n | {dots}^")
}

fn convert(parsed: IdedExpr) -> Result<Expr, CompileError> {
    let id = parsed.id;
    let kind = match parsed.expr {
        Parsed::Unspecified => return Err(CompileError("unspecified expression".into())),
        Parsed::Literal(literal) => Kind::Literal(constant(&literal)),
        Parsed::Ident(name) => Kind::Ident(name.trim_start_matches('.').to_owned()),
        Parsed::Select(select) => Kind::Select(Box::new(Select {
            operand: convert(*select.operand)?,
            field: select.field,
            test: select.test,
        })),
        Parsed::Call(call) => Kind::Call(Box::new(Call {
            function: call.func_name,
            target: call.target.map(|t| convert(*t)).transpose()?,
            args: call
                .args
                .into_iter()
                .map(convert)
                .collect::<Result<_, _>>()?,
        })),
        Parsed::List(list) => {
            let optional = list.optional_indices;
            let items = list.elements.into_iter().enumerate();
            let items = items.map(|(i, e)| Ok((convert(e)?, optional.contains(&i))));
            Kind::List(items.collect::<Result<_, CompileError>>()?)
        }
        Parsed::Map(map) => {
            let mut entries = Vec::new();
            for entry in map.entries {
                if let EntryExpr::MapEntry(entry) = entry.expr {
                    entries.push((convert(entry.key)?, convert(entry.value)?, entry.optional));
                }
            }
            Kind::Map(entries)
        }
        Parsed::Struct(object) => {
            let mut fields = Vec::new();
            for entry in object.entries {
                if let EntryExpr::StructField(field) = entry.expr {
                    fields.push((field.field, convert(field.value)?, field.optional));
                }
            }
            Kind::Struct(object.type_name, fields)
        }
        Parsed::Comprehension(fold) => Kind::Comprehension(Box::new(Comprehension {
            range: convert(fold.iter_range)?,
            var: fold.iter_var,
            var2: fold.iter_var2,
            accu_var: fold.accu_var,
            init: convert(fold.accu_init)?,
            condition: convert(fold.loop_cond)?,
            step: convert(fold.loop_step)?,
            result: convert(fold.result)?,
        })),
    };
    Ok(Expr { id, kind })
}

fn constant(literal: &LiteralValue) -> Value {
    match literal {
        LiteralValue::Boolean(b) => Value::Bool(*b.inner()),
        LiteralValue::Bytes(b) => Value::Bytes(b.inner().into()),
        LiteralValue::Double(d) => Value::Double(*d.inner()),
        LiteralValue::Int(i) => Value::Int(*i.inner()),
        LiteralValue::Null => Value::Null,
        LiteralValue::String(s) => Value::String(s.inner().into()),
        LiteralValue::UInt(u) => Value::Uint(*u.inner()),
    }
}

/// Macros that are not the language's own: comprehensions with two variables, and those of optional values.
fn macros() -> Vec<Macro> {
    let mut all = vec![
        Macro::receiver("optMap", 2, |helper, target, args| {
            opt_map(helper, target, args, true)
        }),
        Macro::receiver("optFlatMap", 2, |helper, target, args| {
            opt_map(helper, target, args, false)
        }),
    ];
    for name in ["all", "exists", "existsOne", "exists_one"] {
        all.push(Macro::receiver(name, 3, move |helper, target, args| {
            quantifier(helper, name, target, args)
        }));
    }
    for count in [3, 4] {
        for name in ["transformList", "transformMap", "transformMapEntry"] {
            all.push(Macro::receiver(name, count, move |helper, target, args| {
                transform(helper, name, target, args)
            }));
        }
    }
    all
}

type Expanded = Result<Option<IdedExpr>, ParseError>;
type Helper<'a, 'b> = &'a mut MacroExprHelper<'b>;

const ACCU: &str = "@result";

fn ident(helper: Helper<'_, '_>, name: &str) -> IdedExpr {
    helper.next_expr(Parsed::Ident(name.to_owned()))
}

fn call(helper: Helper<'_, '_>, name: &str, args: Vec<IdedExpr>) -> IdedExpr {
    helper.next_expr(Parsed::Call(CallExpr {
        func_name: name.to_owned(),
        target: None,
        args,
    }))
}

fn boolean(helper: Helper<'_, '_>, value: bool) -> IdedExpr {
    helper.next_expr(Parsed::Literal(LiteralValue::Boolean(value.into())))
}

fn int(helper: Helper<'_, '_>, value: i64) -> IdedExpr {
    helper.next_expr(Parsed::Literal(LiteralValue::Int(value.into())))
}

fn name_of(helper: Helper<'_, '_>, arg: &IdedExpr) -> Result<String, ParseError> {
    match &arg.expr {
        Parsed::Ident(name) => Ok(name.clone()),
        _ => Err(helper.new_error(arg.id, "argument must be a simple name")),
    }
}

struct Loop {
    range: IdedExpr,
    var: String,
    var2: String,
    init: IdedExpr,
    condition: IdedExpr,
    step: IdedExpr,
    result: IdedExpr,
}

fn fold(helper: Helper<'_, '_>, parts: Loop) -> IdedExpr {
    helper.next_expr(Parsed::Comprehension(Box::new(ComprehensionExpr {
        iter_range: parts.range,
        iter_var: parts.var,
        iter_var2: Some(parts.var2),
        accu_var: ACCU.to_owned(),
        accu_init: parts.init,
        loop_cond: parts.condition,
        loop_step: parts.step,
        result: parts.result,
    })))
}

fn two_names(
    helper: Helper<'_, '_>,
    args: &mut Vec<IdedExpr>,
) -> Result<(String, String), ParseError> {
    let (first, second) = (name_of(helper, &args[0])?, name_of(helper, &args[1])?);
    if first == second {
        return Err(helper.new_error(args[1].id, format!("duplicate variable name: {second}")));
    }
    args.drain(..2);
    Ok((first, second))
}

fn quantifier(
    helper: Helper<'_, '_>,
    name: &str,
    target: &mut Option<IdedExpr>,
    args: &mut Vec<IdedExpr>,
) -> Expanded {
    let (var, var2) = two_names(helper, args)?;
    let (Some(range), Some(predicate)) = (target.take(), args.pop()) else {
        return Ok(None);
    };
    let accu = ident(helper, ACCU);
    let (init, condition, step, result) = match name {
        "all" => {
            let condition = call(helper, "@not_strictly_false", vec![accu.clone()]);
            let step = call(helper, "_&&_", vec![accu.clone(), predicate]);
            (boolean(helper, true), condition, step, accu)
        }
        "exists" => {
            let not = call(helper, "!_", vec![accu.clone()]);
            let condition = call(helper, "@not_strictly_false", vec![not]);
            let step = call(helper, "_||_", vec![accu.clone(), predicate]);
            (boolean(helper, false), condition, step, accu)
        }
        _ => {
            let one = int(helper, 1);
            let more = call(helper, "_+_", vec![accu.clone(), one.clone()]);
            let step = call(helper, "_?_:_", vec![predicate, more, accu.clone()]);
            let result = call(helper, "_==_", vec![accu, one]);
            (int(helper, 0), boolean(helper, true), step, result)
        }
    };
    let parts = Loop {
        range,
        var,
        var2,
        init,
        condition,
        step,
        result,
    };
    Ok(Some(fold(helper, parts)))
}

fn transform(
    helper: Helper<'_, '_>,
    name: &str,
    target: &mut Option<IdedExpr>,
    args: &mut Vec<IdedExpr>,
) -> Expanded {
    let (var, var2) = two_names(helper, args)?;
    let (Some(range), Some(value)) = (target.take(), args.pop()) else {
        return Ok(None);
    };
    let filter = args.pop();
    let accu = ident(helper, ACCU);
    let (init, added) = match name {
        "transformList" => {
            let init = helper.next_expr(Parsed::List(ListExpr::new(Vec::new())));
            let one = helper.next_expr(Parsed::List(ListExpr::new(vec![value])));
            (init, call(helper, "_+_", vec![accu.clone(), one]))
        }
        "transformMap" => {
            let init = helper.next_expr(Parsed::Map(MapExpr::default()));
            let key = ident(helper, &var);
            (
                init,
                call(helper, "cel.@mapInsert", vec![accu.clone(), key, value]),
            )
        }
        _ => {
            let init = helper.next_expr(Parsed::Map(MapExpr::default()));
            (
                init,
                call(helper, "cel.@mapInsert", vec![accu.clone(), value]),
            )
        }
    };
    let step = match filter {
        Some(filter) => call(helper, "_?_:_", vec![filter, added, accu.clone()]),
        None => added,
    };
    let parts = Loop {
        range,
        var,
        var2,
        init,
        condition: boolean(helper, true),
        step,
        result: accu,
    };
    Ok(Some(fold(helper, parts)))
}

/// `x.optMap(v, e)`: `x.hasValue() ? optional.of(bind(v, x.value(), e)) : optional.none()`.
fn opt_map(
    helper: Helper<'_, '_>,
    target: &mut Option<IdedExpr>,
    args: &mut Vec<IdedExpr>,
    wrap: bool,
) -> Expanded {
    let var = name_of(helper, &args[0])?;
    let (Some(target), Some(body)) = (target.take(), args.pop()) else {
        return Ok(None);
    };
    let member = |helper: Helper<'_, '_>, name: &str| {
        helper.next_expr(Parsed::Call(CallExpr {
            func_name: name.to_owned(),
            target: Some(Box::new(target.clone())),
            args: Vec::new(),
        }))
    };
    let (has, value) = (member(helper, "hasValue"), member(helper, "value"));
    let range = helper.next_expr(Parsed::List(ListExpr::new(Vec::new())));
    let condition = boolean(helper, false);
    let step = ident(helper, &var);
    let bound = helper.next_expr(Parsed::Comprehension(Box::new(ComprehensionExpr {
        iter_range: range,
        iter_var: "#unused".to_owned(),
        iter_var2: None,
        accu_var: var,
        accu_init: value,
        loop_cond: condition,
        loop_step: step,
        result: body,
    })));
    let present = if wrap {
        call(helper, "optional.of", vec![bound])
    } else {
        bound
    };
    let none = call(helper, "optional.none", Vec::new());
    Ok(Some(call(helper, "_?_:_", vec![has, present, none])))
}
