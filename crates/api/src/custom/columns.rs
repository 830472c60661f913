//! Printer columns of a custom resource.

use serde_json::{Value, json};

use super::JsonPath;
use crate::meta;
use crate::schema;

/// One of `additionalPrinterColumns`.
#[derive(Clone, Debug)]
pub struct PrinterColumn {
    definition: Value,
    ty: Box<str>,
    path: JsonPath,
}

const OBJECT_META: &str = "io.k8s.apimachinery.pkg.apis.meta.v1.ObjectMeta";

impl PrinterColumn {
    /// The columns of a version: its own, or the age. A column whose path cannot be parsed is left out with those after it.
    #[must_use]
    pub fn of_version(version: &Value) -> Vec<Self> {
        let own = version["additionalPrinterColumns"].as_array();
        let Some(own) = own.filter(|columns| !columns.is_empty()) else {
            let age = json!({"name": "Age", "type": "date", "jsonPath": ".metadata.creationTimestamp",
                "description": schema::description(OBJECT_META, "creationTimestamp").unwrap_or_default()});
            return Self::parse(&age).into_iter().collect();
        };
        own.iter().map_while(Self::parse).collect()
    }

    fn parse(column: &Value) -> Option<Self> {
        let path = column["jsonPath"].as_str()?;
        let text = |name: &str| column[name].as_str().filter(|t| !t.is_empty());
        let description = text("description").map_or_else(
            || format!("Custom resource definition column (in JSONPath format): {path}"),
            str::to_owned,
        );
        Some(Self {
            definition: json!({
                "name": column["name"], "type": column["type"], "format": text("format").unwrap_or_default(),
                "description": description, "priority": column["priority"].as_i64().unwrap_or(0),
            }),
            ty: column["type"].as_str()?.into(),
            path: JsonPath::parse(path)?,
        })
    }

    /// The `columnDefinitions` of a table.
    #[must_use]
    pub fn definitions(columns: &[Self]) -> Value {
        let name = json!({
            "name": "Name", "type": "string", "format": "name", "priority": 0,
            "description": schema::description(OBJECT_META, "name").unwrap_or_default(),
        });
        std::iter::once(name)
            .chain(columns.iter().map(|c| c.definition.clone()))
            .collect()
    }

    /// The cells of one object.
    #[must_use]
    pub fn cells(columns: &[Self], object: &Value) -> Value {
        std::iter::once(Value::from(meta::name(object)))
            .chain(columns.iter().map(|column| column.cell(object)))
            .collect()
    }

    fn cell(&self, object: &Value) -> Value {
        let Some(value) = self.path.first(object) else {
            return Value::Null;
        };
        match (&*self.ty, value) {
            (_, Value::Null) => Value::Null,
            ("string", Value::String(_)) => value.clone(),
            ("string", other) => other.to_string().into(),
            #[allow(clippy::cast_possible_truncation)]
            ("integer", Value::Number(n)) => {
                n.as_i64().or_else(|| n.as_f64().map(|f| f as i64)).into()
            }
            ("number", Value::Number(n)) => n.as_f64().into(),
            ("boolean", Value::Bool(_)) => value.clone(),
            ("date", Value::String(_)) => crate::table::age(value).into(),
            _ => Value::Null,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cells_follow_their_paths_and_types() {
        let version = json!({"additionalPrinterColumns": [
            {"name": "Ready", "type": "string", "jsonPath": ".status.conditions[?(@.type==\"Ready\")].status"},
            {"name": "Replicas", "type": "integer", "jsonPath": ".spec.replicas", "priority": 1},
            {"name": "List", "type": "string", "jsonPath": ".spec.list"},
            {"name": "Wrong", "type": "integer", "jsonPath": ".spec.text"}]});
        let columns = PrinterColumn::of_version(&version);
        let object = json!({"metadata": {"name": "a"}, "spec": {"replicas": 3, "list": [1, "x"], "text": "t"},
            "status": {"conditions": [{"type": "Ready", "status": "True"}]}});
        assert_eq!(
            PrinterColumn::cells(&columns, &object),
            json!(["a", "True", 3, "[1,\"x\"]", null])
        );
        assert_eq!(PrinterColumn::definitions(&columns)[2]["priority"], 1);
        let plain = PrinterColumn::of_version(&json!({}));
        assert_eq!(PrinterColumn::definitions(&plain)[1]["name"], "Age");
    }
}
