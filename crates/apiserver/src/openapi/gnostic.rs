//! Documents as messages of gnostic (`openapi.v2.Document`, `openapi.v3.Document`), which Go clients ask for. One encoder
//! over a table of messages: a field's name in JSON, its number, and its form.

use fluyt_api::protobuf::wire::{bytes, message, tag, varint};
use serde_json::{Map, Value};

/// A message: what it is made of, and the number of its list of extensions (`x-…`), 0 when it has none.
pub struct Message {
    fields: &'static [(&'static str, u32, Form)],
    extensions: u32,
}

/// How a value is written.
enum Form {
    Text,
    Bool,
    Int,
    Double,
    /// Texts, or one.
    Texts,
    /// The same in a message of its own.
    TextList,
    /// YAML, of which JSON is a part.
    Any,
    Anys,
    One(&'static Message),
    /// A message around one of several, by what the value is.
    Either(&'static [Choice]),
    Many(&'static Form),
    /// An object whose values are of one form, in a message with a list of pairs.
    Pairs(&'static Pairs),
    /// Schemas, or one, in a message of their own.
    Items(&'static Form),
    /// A schema or a boolean.
    SchemaOrBool(&'static Form),
    /// Version 3's default: a scalar.
    Scalar,
}

struct Choice {
    when: fn(&Map<String, Value>) -> bool,
    number: u32,
    form: Form,
}

/// A message with a list of names and values.
struct Pairs {
    number: u32,
    value: &'static Form,
    extensions: u32,
}

const fn always(number: u32, form: Form) -> Choice {
    Choice {
        when: |_| true,
        number,
        form,
    }
}

const fn reference(number: u32, form: Form) -> Choice {
    Choice {
        when: |map| map.contains_key("$ref"),
        number,
        form,
    }
}

/// `openapi.v2.Document`.
pub static V2: Message = Message {
    fields: &[
        ("swagger", 1, Form::Text),
        ("info", 2, Form::One(&v2::INFO)),
        ("paths", 8, Form::Pairs(&v2::PATHS)),
        ("definitions", 9, Form::Pairs(&v2::DEFINITIONS)),
        ("parameters", 10, Form::Pairs(&v2::PARAMETERS)),
        ("security", 12, Form::Many(&SECURITY)),
        ("securityDefinitions", 13, Form::Pairs(&v2::SECURITY)),
    ],
    extensions: 16,
};

/// `openapi.v3.Document`.
pub static V3: Message = Message {
    fields: &[
        ("openapi", 1, Form::Text),
        ("info", 2, Form::One(&v3::INFO)),
        ("paths", 4, Form::Pairs(&v3::PATHS)),
        ("components", 5, Form::One(&v3::COMPONENTS)),
        ("security", 6, Form::Many(&SECURITY)),
    ],
    extensions: 9,
};

/// A security requirement.
static SECURITY: Form = Form::Pairs(&SCOPES);
static SCOPES: Pairs = Pairs {
    number: 1,
    value: &Form::TextList,
    extensions: 0,
};

mod v2 {
    use serde_json::{Map, Value};

    use super::{Choice, Form, Message, Pairs, always, reference};

    pub static INFO: Message = Message {
        fields: &[
            ("title", 1, Form::Text),
            ("version", 2, Form::Text),
            ("description", 3, Form::Text),
        ],
        extensions: 7,
    };
    pub static PATHS: Pairs = Pairs {
        number: 2,
        value: &Form::One(&PATH_ITEM),
        extensions: 1,
    };
    pub static DEFINITIONS: Pairs = Pairs {
        number: 1,
        value: &Form::One(&SCHEMA),
        extensions: 0,
    };
    pub static PARAMETERS: Pairs = Pairs {
        number: 1,
        value: &PARAMETER,
        extensions: 0,
    };
    pub static SECURITY: Pairs = Pairs {
        number: 1,
        value: &Form::Either(&[always(2, Form::One(&API_KEY))]),
        extensions: 0,
    };
    static API_KEY: Message = Message {
        fields: &[
            ("type", 1, Form::Text),
            ("name", 2, Form::Text),
            ("in", 3, Form::Text),
            ("description", 4, Form::Text),
        ],
        extensions: 5,
    };
    static PATH_ITEM: Message = Message {
        fields: &[
            ("$ref", 1, Form::Text),
            ("get", 2, Form::One(&OPERATION)),
            ("put", 3, Form::One(&OPERATION)),
            ("post", 4, Form::One(&OPERATION)),
            ("delete", 5, Form::One(&OPERATION)),
            ("options", 6, Form::One(&OPERATION)),
            ("head", 7, Form::One(&OPERATION)),
            ("patch", 8, Form::One(&OPERATION)),
            ("parameters", 9, Form::Many(&PARAMETERS_ITEM)),
        ],
        extensions: 10,
    };
    static OPERATION: Message = Message {
        fields: &[
            ("tags", 1, Form::Texts),
            ("summary", 2, Form::Text),
            ("description", 3, Form::Text),
            ("operationId", 5, Form::Text),
            ("produces", 6, Form::Texts),
            ("consumes", 7, Form::Texts),
            ("parameters", 8, Form::Many(&PARAMETERS_ITEM)),
            ("responses", 9, Form::Pairs(&RESPONSES)),
            ("schemes", 10, Form::Texts),
            ("deprecated", 11, Form::Bool),
            ("security", 12, Form::Many(&super::SECURITY)),
        ],
        extensions: 13,
    };
    static PARAMETERS_ITEM: Form = Form::Either(&[
        reference(2, Form::One(&REFERENCE)),
        always(1, Form::Either(&PARAMETER_CHOICES)),
    ]);
    static PARAMETER: Form = Form::Either(&PARAMETER_CHOICES);
    static PARAMETER_CHOICES: [Choice; 2] = [
        Choice {
            when: |map| is_in(map, "body"),
            number: 1,
            form: Form::One(&BODY_PARAMETER),
        },
        always(2, Form::Either(&OTHER_PARAMETER)),
    ];

    fn is_in(map: &Map<String, Value>, place: &str) -> bool {
        map.get("in").is_some_and(|v| v == place)
    }

    static REFERENCE: Message = Message {
        fields: &[("$ref", 1, Form::Text), ("description", 2, Form::Text)],
        extensions: 0,
    };
    static BODY_PARAMETER: Message = Message {
        fields: &[
            ("description", 1, Form::Text),
            ("name", 2, Form::Text),
            ("in", 3, Form::Text),
            ("required", 4, Form::Bool),
            ("schema", 5, Form::One(&SCHEMA)),
        ],
        extensions: 6,
    };
    static OTHER_PARAMETER: [Choice; 3] = [
        Choice {
            when: |map| is_in(map, "header"),
            number: 1,
            form: Form::One(&PATH_PARAMETER),
        },
        Choice {
            when: |map| is_in(map, "path"),
            number: 4,
            form: Form::One(&PATH_PARAMETER),
        },
        always(3, Form::One(&QUERY_PARAMETER)),
    ];
    static QUERY_PARAMETER: Message = Message {
        fields: &[
            ("required", 1, Form::Bool),
            ("in", 2, Form::Text),
            ("description", 3, Form::Text),
            ("name", 4, Form::Text),
            ("type", 6, Form::Text),
            ("format", 7, Form::Text),
            ("pattern", 17, Form::Text),
            ("uniqueItems", 20, Form::Bool),
        ],
        extensions: 23,
    };
    static PATH_PARAMETER: Message = Message {
        fields: &[
            ("required", 1, Form::Bool),
            ("in", 2, Form::Text),
            ("description", 3, Form::Text),
            ("name", 4, Form::Text),
            ("type", 5, Form::Text),
            ("format", 6, Form::Text),
            ("pattern", 16, Form::Text),
            ("uniqueItems", 19, Form::Bool),
        ],
        extensions: 22,
    };
    static RESPONSES: Pairs = Pairs {
        number: 1,
        value: &Form::Either(&[always(1, Form::One(&RESPONSE))]),
        extensions: 2,
    };
    static RESPONSE: Message = Message {
        fields: &[
            ("description", 1, Form::Text),
            ("schema", 2, Form::Either(&[always(1, Form::One(&SCHEMA))])),
        ],
        extensions: 5,
    };
    static ANY_SCHEMA: Form = Form::One(&SCHEMA);
    static PROPERTIES: Pairs = Pairs {
        number: 1,
        value: &Form::One(&SCHEMA),
        extensions: 0,
    };
    pub static SCHEMA: Message = Message {
        fields: &[
            ("$ref", 1, Form::Text),
            ("format", 2, Form::Text),
            ("title", 3, Form::Text),
            ("description", 4, Form::Text),
            ("default", 5, Form::Any),
            ("multipleOf", 6, Form::Double),
            ("maximum", 7, Form::Double),
            ("exclusiveMaximum", 8, Form::Bool),
            ("minimum", 9, Form::Double),
            ("exclusiveMinimum", 10, Form::Bool),
            ("maxLength", 11, Form::Int),
            ("minLength", 12, Form::Int),
            ("pattern", 13, Form::Text),
            ("maxItems", 14, Form::Int),
            ("minItems", 15, Form::Int),
            ("uniqueItems", 16, Form::Bool),
            ("maxProperties", 17, Form::Int),
            ("minProperties", 18, Form::Int),
            ("required", 19, Form::Texts),
            ("enum", 20, Form::Anys),
            ("additionalProperties", 21, Form::SchemaOrBool(&ANY_SCHEMA)),
            ("type", 22, Form::TextList),
            ("items", 23, Form::Items(&ANY_SCHEMA)),
            ("allOf", 24, Form::Many(&ANY_SCHEMA)),
            ("properties", 25, Form::Pairs(&PROPERTIES)),
            ("discriminator", 26, Form::Text),
            ("readOnly", 27, Form::Bool),
            ("example", 30, Form::Any),
        ],
        extensions: 31,
    };
}

mod v3 {
    use super::{Choice, Form, Message, Pairs, always, reference};

    pub static INFO: Message = Message {
        fields: &[
            ("title", 1, Form::Text),
            ("description", 2, Form::Text),
            ("version", 6, Form::Text),
        ],
        extensions: 7,
    };
    pub static PATHS: Pairs = Pairs {
        number: 1,
        value: &Form::One(&PATH_ITEM),
        extensions: 2,
    };
    pub static COMPONENTS: Message = Message {
        fields: &[
            ("schemas", 1, Form::Pairs(&SCHEMAS)),
            ("securitySchemes", 7, Form::Pairs(&SECURITY_SCHEMES)),
        ],
        extensions: 10,
    };
    static SCHEMAS: Pairs = Pairs {
        number: 1,
        value: &SCHEMA_OR_REFERENCE,
        extensions: 0,
    };
    static SECURITY_SCHEMES: Pairs = Pairs {
        number: 1,
        value: &Form::Either(&[always(1, Form::One(&SECURITY_SCHEME))]),
        extensions: 0,
    };
    static SECURITY_SCHEME: Message = Message {
        fields: &[
            ("type", 1, Form::Text),
            ("description", 2, Form::Text),
            ("name", 3, Form::Text),
            ("in", 4, Form::Text),
        ],
        extensions: 9,
    };
    static PATH_ITEM: Message = Message {
        fields: &[
            ("$ref", 1, Form::Text),
            ("summary", 2, Form::Text),
            ("description", 3, Form::Text),
            ("get", 4, Form::One(&OPERATION)),
            ("put", 5, Form::One(&OPERATION)),
            ("post", 6, Form::One(&OPERATION)),
            ("delete", 7, Form::One(&OPERATION)),
            ("options", 8, Form::One(&OPERATION)),
            ("head", 9, Form::One(&OPERATION)),
            ("patch", 10, Form::One(&OPERATION)),
            ("parameters", 13, Form::Many(&ANY_PARAMETER)),
        ],
        extensions: 14,
    };
    static OPERATION: Message = Message {
        fields: &[
            ("tags", 1, Form::Texts),
            ("summary", 2, Form::Text),
            ("description", 3, Form::Text),
            ("operationId", 5, Form::Text),
            ("parameters", 6, Form::Many(&ANY_PARAMETER)),
            (
                "requestBody",
                7,
                Form::Either(&[always(1, Form::One(&REQUEST_BODY))]),
            ),
            ("responses", 8, Form::Pairs(&RESPONSES)),
            ("deprecated", 10, Form::Bool),
            ("security", 11, Form::Many(&super::SECURITY)),
        ],
        extensions: 13,
    };
    static ANY_PARAMETER: Form = Form::Either(&[always(1, Form::One(&PARAMETER))]);
    static PARAMETER: Message = Message {
        fields: &[
            ("name", 1, Form::Text),
            ("in", 2, Form::Text),
            ("description", 3, Form::Text),
            ("required", 4, Form::Bool),
            ("deprecated", 5, Form::Bool),
            ("schema", 10, Form::Either(&SCHEMA_CHOICES)),
        ],
        extensions: 14,
    };
    static REQUEST_BODY: Message = Message {
        fields: &[
            ("description", 1, Form::Text),
            ("content", 2, Form::Pairs(&MEDIA_TYPES)),
            ("required", 3, Form::Bool),
        ],
        extensions: 4,
    };
    static MEDIA_TYPES: Pairs = Pairs {
        number: 1,
        value: &Form::One(&MEDIA_TYPE),
        extensions: 0,
    };
    static MEDIA_TYPE: Message = Message {
        fields: &[("schema", 1, Form::Either(&SCHEMA_CHOICES))],
        extensions: 5,
    };
    static RESPONSES: Pairs = Pairs {
        number: 2,
        value: &Form::Either(&[always(1, Form::One(&RESPONSE))]),
        extensions: 3,
    };
    static RESPONSE: Message = Message {
        fields: &[
            ("description", 1, Form::Text),
            ("content", 3, Form::Pairs(&MEDIA_TYPES)),
        ],
        extensions: 5,
    };
    static PROPERTIES: Pairs = Pairs {
        number: 1,
        value: &SCHEMA_OR_REFERENCE,
        extensions: 0,
    };
    static SCHEMA_OR_REFERENCE: Form = Form::Either(&SCHEMA_CHOICES);
    static SCHEMA_CHOICES: [Choice; 2] = [
        reference(2, Form::One(&REFERENCE)),
        always(1, Form::One(&SCHEMA)),
    ];
    static REFERENCE: Message = Message {
        fields: &[("$ref", 1, Form::Text), ("description", 3, Form::Text)],
        extensions: 0,
    };
    static SCHEMA: Message = Message {
        fields: &[
            ("nullable", 1, Form::Bool),
            ("readOnly", 3, Form::Bool),
            ("writeOnly", 4, Form::Bool),
            ("example", 7, Form::Any),
            ("deprecated", 8, Form::Bool),
            ("title", 9, Form::Text),
            ("multipleOf", 10, Form::Double),
            ("maximum", 11, Form::Double),
            ("exclusiveMaximum", 12, Form::Bool),
            ("minimum", 13, Form::Double),
            ("exclusiveMinimum", 14, Form::Bool),
            ("maxLength", 15, Form::Int),
            ("minLength", 16, Form::Int),
            ("pattern", 17, Form::Text),
            ("maxItems", 18, Form::Int),
            ("minItems", 19, Form::Int),
            ("uniqueItems", 20, Form::Bool),
            ("maxProperties", 21, Form::Int),
            ("minProperties", 22, Form::Int),
            ("required", 23, Form::Texts),
            ("enum", 24, Form::Anys),
            ("type", 25, Form::Text),
            ("allOf", 26, Form::Many(&SCHEMA_OR_REFERENCE)),
            ("oneOf", 27, Form::Many(&SCHEMA_OR_REFERENCE)),
            ("anyOf", 28, Form::Many(&SCHEMA_OR_REFERENCE)),
            ("not", 29, Form::One(&SCHEMA)),
            ("items", 30, Form::Items(&SCHEMA_OR_REFERENCE)),
            ("properties", 31, Form::Pairs(&PROPERTIES)),
            (
                "additionalProperties",
                32,
                Form::SchemaOrBool(&SCHEMA_OR_REFERENCE),
            ),
            ("default", 33, Form::Scalar),
            ("description", 34, Form::Text),
            ("format", 35, Form::Text),
        ],
        extensions: 36,
    };
}

impl Message {
    /// Writes the content of the message.
    pub fn encode(&self, value: &Value, out: &mut Vec<u8>) {
        let Value::Object(map) = value else { return };
        for (name, number, form) in self.fields {
            if let Some(value) = map.get(*name) {
                form.encode(*number, value, out);
            }
        }
        if self.extensions != 0 {
            extensions(self.extensions, map, out);
        }
    }
}

impl Pairs {
    fn encode(&self, map: &Map<String, Value>, out: &mut Vec<u8>) {
        let is_extension = |name: &str| self.extensions != 0 && name.starts_with("x-");
        for (name, value) in map.iter().filter(|(name, _)| !is_extension(name)) {
            message(out, self.number, |out| {
                bytes(out, 1, name.as_bytes());
                self.value.encode(2, value, out);
            });
        }
        if self.extensions != 0 {
            extensions(self.extensions, map, out);
        }
    }
}

impl Form {
    fn encode(&self, number: u32, value: &Value, out: &mut Vec<u8>) {
        match (self, value) {
            (Self::Text, Value::String(text)) if !text.is_empty() => {
                bytes(out, number, text.as_bytes());
            }
            (Self::Bool, Value::Bool(true)) => scalar(out, number, 1),
            (Self::Int, Value::Number(n)) => {
                let n = n.as_i64().unwrap_or_default();
                if n != 0 {
                    scalar(out, number, n.cast_unsigned());
                }
            }
            (Self::Double, Value::Number(n)) => {
                let n = n.as_f64().unwrap_or_default();
                if n != 0.0 {
                    double(out, number, n);
                }
            }
            (Self::Texts, value) => {
                for text in list(value).iter().filter_map(Value::as_str) {
                    bytes(out, number, text.as_bytes());
                }
            }
            (Self::TextList, value) => {
                message(out, number, |out| Self::Texts.encode(1, value, out));
            }
            (Self::Any, value) => any(out, number, value),
            (Self::Anys, value) => list(value).iter().for_each(|v| any(out, number, v)),
            (Self::One(of), value) => message(out, number, |out| of.encode(value, out)),
            (Self::Either(choices), Value::Object(map)) => message(out, number, |out| {
                if let Some(chosen) = choices.iter().find(|choice| (choice.when)(map)) {
                    chosen.form.encode(chosen.number, value, out);
                }
            }),
            (Self::Many(form), value) => {
                list(value).iter().for_each(|v| form.encode(number, v, out));
            }
            (Self::Pairs(pairs), Value::Object(map)) => {
                message(out, number, |out| pairs.encode(map, out));
            }
            (Self::Items(form), value) => message(out, number, |out| {
                list(value).iter().for_each(|v| form.encode(1, v, out));
            }),
            (Self::SchemaOrBool(_), Value::Bool(allowed)) => {
                message(out, number, |out| scalar(out, 2, u64::from(*allowed)));
            }
            (Self::SchemaOrBool(form), value) => {
                message(out, number, |out| form.encode(1, value, out));
            }
            (Self::Scalar, Value::Number(n)) => message(out, number, |out| {
                double(out, 1, n.as_f64().unwrap_or_default());
            }),
            (Self::Scalar, Value::Bool(b)) => {
                message(out, number, |out| scalar(out, 2, u64::from(*b)));
            }
            (Self::Scalar, Value::String(text)) => {
                message(out, number, |out| bytes(out, 3, text.as_bytes()));
            }
            // Objects and lists have no form as a default; values of a wrong type have none anywhere.
            _ => {}
        }
    }
}

/// A list's items, or the one value that stands for a list.
fn list(value: &Value) -> &[Value] {
    match value {
        Value::Array(items) => items,
        one => std::slice::from_ref(one),
    }
}

fn extensions(number: u32, map: &Map<String, Value>, out: &mut Vec<u8>) {
    for (name, value) in map.iter().filter(|(name, _)| name.starts_with("x-")) {
        message(out, number, |out| {
            bytes(out, 1, name.as_bytes());
            any(out, 2, value);
        });
    }
}

fn any(out: &mut Vec<u8>, number: u32, value: &Value) {
    message(out, number, |out| {
        bytes(out, 2, format!("{value}\n").as_bytes())
    });
}

fn scalar(out: &mut Vec<u8>, number: u32, value: u64) {
    tag(out, number, 0);
    varint(out, value);
}

fn double(out: &mut Vec<u8>, number: u32, value: f64) {
    tag(out, number, 1);
    out.extend_from_slice(&value.to_le_bytes());
}
