//! The compact schema of every API type. Pruning, defaulting, strategic merge patch, OpenAPI and the protobuf codec are
//! algorithms over it; the schema of a custom resource becomes the same structure.

use std::collections::HashMap;
use std::sync::OnceLock;

use serde_json::Value;

/// All types of one universe (the built-in API, or one custom resource).
#[derive(Debug, Default)]
pub struct Schema {
    types: Vec<Type>,
    by_name: HashMap<Box<str>, TypeId>,
    /// Free-form JSON is owned as a whole; elsewhere its objects are merged field by field.
    opaque_json: bool,
}

/// Index of a [`Type`] in its [`Schema`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct TypeId(u32);

impl TypeId {
    /// Its place among [`Schema::types`].
    pub(crate) fn index(self) -> usize {
        self.0 as usize
    }
}

/// An object type.
#[derive(Clone, Debug)]
pub struct Type {
    /// Full name as in OpenAPI, e.g. `io.k8s.api.core.v1.Pod`.
    pub name: Box<str>,
    /// In order of name.
    pub fields: Vec<Field>,
    /// Server-side apply replaces the object as a whole.
    pub atomic: bool,
    /// The kind of fields that are not named above, where such may be (custom resources only).
    pub rest: Option<Kind>,
}

#[derive(Clone, Debug)]
pub struct Field {
    pub name: Box<str>,
    pub kind: Kind,
    /// Protobuf field number, after those of the messages that JSON inlines; empty when there is no protobuf form.
    pub path: Box<[u32]>,
    pub required: bool,
    /// Zero (`""`, `false`, 0, an empty list or map) means the same as absence, as in most fields of built-in types.
    pub omit_zero: bool,
    pub list: ListType,
    pub patch: PatchStrategy,
    /// Inserted when the field is absent.
    pub default: Option<Value>,
    /// A map that server-side apply replaces as a whole.
    pub atomic: bool,
    /// An object of an atomic type that server-side apply merges all the same.
    pub granular: bool,
    /// An object that upstream holds by value: it is never absent, only empty.
    pub by_value: bool,
}

/// The type of a value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Kind {
    String,
    Int32,
    Int64,
    Bool,
    Double,
    /// Base64 in JSON.
    Bytes,
    /// RFC 3339, seconds.
    Time,
    /// RFC 3339, microseconds.
    MicroTime,
    Quantity,
    IntOrString,
    /// Anything.
    Json,
    Object(TypeId),
    List(Box<Kind>),
    Map(Box<Kind>),
}

/// How server-side apply merges a list.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum ListType {
    #[default]
    Atomic,
    Set,
    /// Items are identified by these fields.
    Map(Box<[Box<str>]>),
}

/// How strategic merge patch treats a field.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PatchStrategy {
    pub merge: bool,
    pub merge_key: Option<Box<str>>,
    pub retain_keys: bool,
}

impl Type {
    #[must_use]
    pub fn field(&self, name: &str) -> Option<&Field> {
        self.fields
            .binary_search_by(|f| (*f.name).cmp(name))
            .ok()
            .map(|i| &self.fields[i])
    }
}

impl Schema {
    /// The built-in API's schema, parsed from the generated table on first use.
    pub fn builtin() -> &'static Self {
        static BUILTIN: OnceLock<Schema> = OnceLock::new();
        BUILTIN.get_or_init(|| Self::parse(include_str!("../schema/types.txt")))
    }

    #[must_use]
    pub fn find(&self, name: &str) -> Option<TypeId> {
        self.by_name.get(name).copied()
    }

    #[must_use]
    pub fn get(&self, id: TypeId) -> &Type {
        &self.types[id.0 as usize]
    }

    /// Whether server-side apply looks into free-form JSON.
    #[must_use]
    pub fn deduces(&self) -> bool {
        !self.opaque_json
    }

    /// Every type, in order of name.
    pub fn types(&self) -> impl Iterator<Item = &Type> {
        self.types.iter()
    }

    /// Adds a type. A type of the same name stays reachable by its id only.
    pub fn insert(&mut self, mut ty: Type) -> TypeId {
        ty.fields.sort_by(|a, b| a.name.cmp(&b.name));
        let id = TypeId(u32::try_from(self.types.len()).unwrap_or(u32::MAX));
        self.by_name.insert(ty.name.clone(), id);
        self.types.push(ty);
        id
    }

    /// Adds a type of another universe, with everything it refers to.
    pub fn import(&mut self, from: &Self, id: TypeId) -> TypeId {
        let ty = from.get(id);
        if let Some(known) = self.find(&ty.name) {
            return known;
        }
        // The place is taken first: a type may refer to itself.
        let imported = self.insert(Type {
            fields: Vec::new(),
            ..ty.clone()
        });
        let fields = ty
            .fields
            .iter()
            .map(|field| Field {
                kind: self.import_kind(from, &field.kind),
                ..field.clone()
            })
            .collect();
        self.types[imported.0 as usize].fields = fields;
        imported
    }

    fn import_kind(&mut self, from: &Self, kind: &Kind) -> Kind {
        match kind {
            Kind::Object(id) => Kind::Object(self.import(from, *id)),
            Kind::List(item) => Kind::List(Box::new(self.import_kind(from, item))),
            Kind::Map(item) => Kind::Map(Box::new(self.import_kind(from, item))),
            scalar => scalar.clone(),
        }
    }

    /// Parses the generated table. The table is part of the program, so a malformed one is a defect and panics.
    fn parse(table: &str) -> Self {
        let mut schema = Self {
            opaque_json: true,
            ..Self::default()
        };
        let names = table
            .lines()
            .filter(|l| !l.starts_with([' ', '#']) && !l.is_empty());
        for (index, line) in names.enumerate() {
            let mut words = line.split(' ');
            let name: Box<str> = words.next().unwrap_or_default().into();
            let id = TypeId(u32::try_from(index).unwrap_or(u32::MAX));
            schema.by_name.insert(name.clone(), id);
            schema.types.push(Type {
                name,
                fields: Vec::new(),
                atomic: words.any(|w| w == "map=atomic"),
                rest: None,
            });
        }
        let mut current = None::<usize>;
        let mut by_value = Vec::new();
        for line in table
            .lines()
            .filter(|l| !l.starts_with('#') && !l.is_empty())
        {
            if let Some(field) = line.strip_prefix("  ") {
                let field = schema.parse_field(field);
                let index = current.unwrap_or_default();
                schema.types[index].fields.push(field);
            } else {
                current = Some(current.map_or(0, |c| c + 1));
                let listed = line.split(' ').find_map(|w| w.strip_prefix("value="));
                by_value.push(listed.unwrap_or_default());
            }
        }
        for (ty, by_value) in schema.types.iter_mut().zip(by_value) {
            for field in &mut ty.fields {
                field.by_value |= by_value.split(',').any(|name| *name == *field.name);
            }
            ty.fields.sort_by(|a, b| a.name.cmp(&b.name));
            ty.fields.shrink_to_fit();
        }
        schema
    }

    fn parse_field(&self, line: &str) -> Field {
        let (line, default) = match line.split_once(" default=") {
            Some((rest, json)) => (rest, serde_json::from_str(json).ok()),
            None => (line, None),
        };
        let mut words = line.split(' ');
        let mut next = || words.next().unwrap_or_default();
        let (name, kind, number) = (next(), next(), next());
        let mut field = Field {
            name: name.into(),
            kind: self.parse_kind(kind),
            path: number
                .split('.')
                .filter_map(|n| n.parse().ok())
                .filter(|n| *n != 0)
                .collect(),
            required: false,
            omit_zero: true,
            list: ListType::Atomic,
            patch: PatchStrategy::default(),
            default,
            atomic: false,
            granular: false,
            by_value: kind.ends_with("meta.v1.ObjectMeta"),
        };
        for flag in words {
            match flag.split_once('=').unwrap_or((flag, "")) {
                ("required", _) => (field.required, field.omit_zero) = (true, false),
                ("pointer", _) => field.omit_zero = false,
                ("map", "granular") => field.granular = true,
                ("map", _) => field.atomic = true,
                ("list", "set") => field.list = ListType::Set,
                ("list", keys) => {
                    let keys = keys
                        .trim_start_matches("map:")
                        .split(',')
                        .map(Into::into)
                        .collect();
                    field.list = ListType::Map(keys);
                }
                ("patch", strategy) => field.patch = parse_patch_strategy(strategy),
                _ => unreachable!("flag `{flag}` of field `{name}`"),
            }
        }
        field
    }

    fn parse_kind(&self, word: &str) -> Kind {
        if let Some(inner) = word.strip_prefix('[').and_then(|w| w.strip_suffix(']')) {
            return Kind::List(Box::new(self.parse_kind(inner)));
        }
        if let Some(inner) = word.strip_prefix('{').and_then(|w| w.strip_suffix('}')) {
            return Kind::Map(Box::new(self.parse_kind(inner)));
        }
        match word {
            "string" => Kind::String,
            "int32" => Kind::Int32,
            "int64" => Kind::Int64,
            "bool" => Kind::Bool,
            "double" => Kind::Double,
            "bytes" => Kind::Bytes,
            "time" => Kind::Time,
            "microtime" => Kind::MicroTime,
            "quantity" => Kind::Quantity,
            "intOrString" => Kind::IntOrString,
            "json" => Kind::Json,
            name => self.find(name).map_or(Kind::Json, Kind::Object),
        }
    }
}

/// `merge:KEY`, `merge`, `retainKeys`, or `merge,retainKeys:KEY`.
fn parse_patch_strategy(text: &str) -> PatchStrategy {
    let (strategies, key) = text
        .split_once(':')
        .map_or((text, None), |(s, k)| (s, Some(k)));
    PatchStrategy {
        merge: strategies.split(',').any(|s| s == "merge"),
        merge_key: key.map(Into::into),
        retain_keys: strategies.split(',').any(|s| s == "retainKeys"),
    }
}

/// Description of a type (`field` empty) or of one of its fields, as OpenAPI publishes it.
#[must_use]
pub fn description(type_name: &str, field: &str) -> Option<String> {
    static INDEX: OnceLock<HashMap<&'static str, &'static str>> = OnceLock::new();
    const TEXT: &str = include_str!("../schema/descriptions.txt");
    let index = INDEX.get_or_init(|| {
        let mut index = HashMap::new();
        let mut rest = TEXT;
        while let Some(start) = rest.find("\nio.k8s.") {
            rest = &rest[start + 1..];
            let end = rest.find("\nio.k8s.").unwrap_or(rest.len());
            let block = &rest[..end];
            index.insert(block.split('\t').next().unwrap_or_default(), block);
        }
        index
    });
    let block = index.get(type_name)?;
    let line = if field.is_empty() {
        block.lines().next()?
    } else {
        block
            .lines()
            .skip(1)
            .find(|l| l.trim_start().split('\t').next() == Some(field))?
    };
    Some(line.split_once('\t')?.1.replace("\\n", "\n"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn builtin_schema_knows_containers() {
        let schema = Schema::builtin();
        let container = schema.get(schema.find("io.k8s.api.core.v1.Container").unwrap());
        let ports = container.field("ports").unwrap();
        assert_eq!(*ports.path, [6]);
        let volume = schema.get(schema.find("io.k8s.api.core.v1.Volume").unwrap());
        assert_eq!(*volume.field("emptyDir").unwrap().path, [2, 2]);
        assert_eq!(ports.patch.merge_key.as_deref(), Some("containerPort"));
        assert!(matches!(&ports.list, ListType::Map(keys) if keys.len() == 2));
        assert!(container.field("name").unwrap().required);
        assert_eq!(
            container.field("terminationMessagePolicy").unwrap().default,
            Some("File".into())
        );
    }

    #[test]
    fn every_object_reference_resolves() {
        let table = include_str!("../schema/types.txt");
        let schema = Schema::builtin();
        for line in table.lines().filter(|l| l.starts_with("  ")) {
            let kind = line
                .trim()
                .split(' ')
                .nth(1)
                .unwrap()
                .trim_matches(['[', ']', '{', '}']);
            if kind.starts_with("io.k8s.") {
                assert!(schema.find(kind).is_some(), "{line}");
            }
        }
    }

    #[test]
    fn descriptions_are_found() {
        assert!(
            description("io.k8s.api.core.v1.Pod", "")
                .unwrap()
                .starts_with("Pod is a collection")
        );
        assert!(
            description("io.k8s.api.core.v1.Pod", "spec")
                .unwrap()
                .contains("desired behavior")
        );
    }
}
