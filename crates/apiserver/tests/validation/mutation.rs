//! Changes of an object, and all those that are worth trying.

use fluyt_api::schema::{Field, Kind, Schema, TypeId};
use serde_json::{Map, Value, json};

/// One change: a value at a place, or none.
#[derive(Clone, Debug, PartialEq)]
pub struct Mutation {
    /// A JSON pointer.
    pub at: String,
    pub value: Option<Value>,
}

impl Mutation {
    fn set(at: &str, value: Value) -> Self {
        Self {
            at: at.to_owned(),
            value: Some(value),
        }
    }

    fn remove(at: &str) -> Self {
        Self {
            at: at.to_owned(),
            value: None,
        }
    }

    /// The changes that `{"set": {place: value}, "remove": [place]}` says.
    pub fn list(case: &Value) -> Vec<Self> {
        let set = case["set"].as_object().into_iter().flatten();
        let remove = case["remove"].as_array().into_iter().flatten();
        let set = set.map(|(at, value)| Self::set(at, value.clone()));
        set.chain(remove.map(|at| Self::remove(at.as_str().unwrap())))
            .collect()
    }

    pub fn apply(&self, object: &mut Value) {
        let steps: Vec<String> = self
            .at
            .split('/')
            .skip(1)
            .map(|s| s.replace("~1", "/").replace("~0", "~"))
            .collect();
        let (last, parents) = steps.split_last().unwrap();
        let mut at = object;
        for step in parents {
            if at.is_null() {
                *at = Value::Object(Map::new());
            }
            at = match at {
                Value::Array(items) => &mut items[step.parse::<usize>().unwrap()],
                other => &mut other[step.as_str()],
            };
        }
        match (at, &self.value) {
            (Value::Array(items), Some(value)) => match last.parse::<usize>() {
                Ok(index) if index < items.len() => items[index] = value.clone(),
                _ => items.push(value.clone()),
            },
            (Value::Array(items), None) => {
                items.remove(last.parse::<usize>().unwrap());
            }
            (at, Some(value)) => at[last.as_str()] = value.clone(),
            (at, None) => {
                if let Some(map) = at.as_object_mut() {
                    map.remove(last);
                }
            }
        }
    }
}

/// What is not tried: the server's own, and what clients know to send.
const SKIPPED: [&str; 8] = [
    "/apiVersion",
    "/kind",
    "/metadata/name",
    "/metadata/namespace",
    "/metadata/uid",
    "/metadata/resourceVersion",
    "/metadata/creationTimestamp",
    "/metadata/managedFields",
];

/// All single changes of an object that are worth trying. With `add`, fields that are not there get a value.
pub fn all(
    schema: &Schema,
    ty: TypeId,
    object: &Value,
    add: bool,
    within: Option<&str>,
) -> Vec<Mutation> {
    let mut walk = Walk {
        schema,
        add,
        found: Vec::new(),
    };
    walk.object(ty, object, "");
    let skipped = |m: &Mutation| {
        SKIPPED
            .iter()
            .any(|s| m.at == *s || m.at.starts_with(&format!("{s}/")))
    };
    walk.found
        .into_iter()
        .filter(|m| !skipped(m) && within.is_none_or(|w| m.at.starts_with(w)))
        .collect()
}

struct Walk<'s> {
    schema: &'s Schema,
    add: bool,
    found: Vec<Mutation>,
}

impl Walk<'_> {
    fn object(&mut self, ty: TypeId, object: &Value, at: &str) {
        let schema = self.schema;
        for field in &schema.get(ty).fields {
            let at = format!("{at}/{}", field.name);
            match object.get(&*field.name) {
                Some(value) => {
                    self.found.push(Mutation::remove(&at));
                    self.value(&field.kind, value, &at);
                }
                None if self.add => self.absent(field, &at),
                None => {}
            }
        }
    }

    fn absent(&mut self, field: &Field, at: &str) {
        if let Some(value) = sample(self.schema, &field.kind, 0) {
            self.found.push(Mutation::set(at, value));
        }
    }

    fn set(&mut self, at: &str, old: &Value, values: impl IntoIterator<Item = Value>) {
        for value in values.into_iter().filter(|v| v != old) {
            self.found.push(Mutation::set(at, value));
        }
    }

    fn value(&mut self, kind: &Kind, value: &Value, at: &str) {
        match kind {
            Kind::String => {
                let long = "a".repeat(if at.contains("essage") { 40_000 } else { 260 });
                self.set(
                    at,
                    value,
                    [json!(""), json!("Not Valid!"), json!(long), json!("other")],
                );
            }
            Kind::Int32 | Kind::Int64 => {
                self.set(at, value, [json!(-1), json!(0), json!(70_000), json!(2)]);
            }
            Kind::Bool => self.set(at, value, [json!(true), json!(false)]),
            Kind::Quantity => {
                self.set(at, value, ["-1", "0", "1500m", "3"].map(Value::from));
            }
            Kind::IntOrString => self.set(
                at,
                value,
                [
                    json!(-1),
                    json!(0),
                    json!(70_000),
                    json!("Not Valid!"),
                    json!("101%"),
                    json!("x"),
                    json!("0%"),
                ],
            ),
            Kind::Bytes => self.set(at, value, [json!(""), json!("bm90IHZhbGlk")]),
            Kind::Object(ty) => {
                self.set(at, value, [json!({})]);
                self.object(*ty, value, at);
            }
            Kind::List(item) => self.list(item, value, at),
            Kind::Map(item) => self.map(item, value, at),
            Kind::Double | Kind::Time | Kind::MicroTime | Kind::Json => {}
        }
    }

    fn list(&mut self, item: &Kind, value: &Value, at: &str) {
        self.set(at, value, [json!([])]);
        let items = value.as_array().map_or(&[][..], Vec::as_slice);
        if let Some(first) = items.first() {
            let mut twice = items.to_vec();
            twice.push(first.clone());
            self.found.push(Mutation::set(at, twice.into()));
        }
        for (i, value) in items.iter().enumerate() {
            self.value(item, value, &format!("{at}/{i}"));
        }
    }

    fn map(&mut self, item: &Kind, value: &Value, at: &str) {
        self.set(at, value, [json!({})]);
        let entries: Vec<(&String, &Value)> = value.as_object().into_iter().flatten().collect();
        let Some((_, first)) = entries.first() else {
            return;
        };
        for key in ["Not Valid!", "x"] {
            self.found
                .push(Mutation::set(&format!("{at}/{key}"), (*first).clone()));
        }
        for (key, value) in entries {
            let key = key.replace('~', "~0").replace('/', "~1");
            self.found.push(Mutation::remove(&format!("{at}/{key}")));
            self.value(item, value, &format!("{at}/{key}"));
        }
    }
}

/// A value of a type, as little as makes sense.
fn sample(schema: &Schema, kind: &Kind, depth: usize) -> Option<Value> {
    Some(match kind {
        Kind::String => json!("added"),
        Kind::Int32 | Kind::Int64 => json!(1),
        Kind::Bool => json!(true),
        Kind::Quantity => json!("1"),
        Kind::IntOrString => json!(80),
        Kind::Bytes => json!("YQ=="),
        Kind::Object(ty) => {
            let mut object = Map::new();
            for field in schema
                .get(*ty)
                .fields
                .iter()
                .filter(|f| f.required && depth < 3)
            {
                if let Some(value) = sample(schema, &field.kind, depth + 1) {
                    object.insert(field.name.to_string(), value);
                }
            }
            object.into()
        }
        Kind::List(item) => json!([sample(schema, item, depth + 1)?]),
        Kind::Map(item) => json!({"added": sample(schema, item, depth + 1)?}),
        Kind::Double | Kind::Time | Kind::MicroTime | Kind::Json => return None,
    })
}
