//! Types of the variables that expressions of configurations and policies see.

use std::collections::BTreeMap;
use std::sync::Arc;

use fluyt_cel::{Field, ObjectType, Type};

/// An object by the names of its fields in JSON. Those are not escaped, as a schema's would be: upstream's are not.
#[must_use]
pub fn object(name: &str, fields: &[(&str, Type)]) -> Type {
    let fields: BTreeMap<String, Field> = fields
        .iter()
        .map(|(name, ty)| {
            let field = Field {
                ty: ty.clone(),
                name: (*name).to_owned(),
                max_elements: u64::MAX,
                element: None,
                key: None,
                min_size: 2,
            };
            ((*name).to_owned(), field)
        })
        .collect();
    Type::Object(Arc::new(ObjectType {
        name: name.to_owned(),
        fields,
    }))
}

/// `authentication.k8s.io/v1` `UserInfo`.
#[must_use]
pub fn user_info() -> Type {
    object(
        "kubernetes.UserInfo",
        &[
            ("username", Type::String),
            ("uid", Type::String),
            ("groups", Type::list(Type::String)),
            ("extra", Type::map(Type::String, Type::list(Type::String))),
        ],
    )
}
