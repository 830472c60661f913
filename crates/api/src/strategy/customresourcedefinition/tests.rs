use super::*;

fn crd(schema: Value) -> Value {
    let mut crd = json!({"metadata": {"name": "widgets.example.com"}, "spec": {"group": "example.com", "scope": "Namespaced",
        "names": {"plural": "widgets", "kind": "Widget"},
        "versions": [{"name": "v1", "served": true, "storage": true, "schema": {"openAPIV3Schema": schema}}]}});
    CustomResourceDefinition.default(&mut crd);
    CustomResourceDefinition.prepare_create(&mut crd);
    crd
}

fn problems(crd: &Value) -> Vec<String> {
    let mut errors = Errors::default();
    CustomResourceDefinition.validate(crd, &mut errors);
    errors
        .0
        .iter()
        .map(|c| format!("{}: {}", c.field, c.message))
        .collect()
}

#[test]
fn a_plain_definition_is_accepted_with_its_names() {
    let crd = crd(
        json!({"type": "object", "properties": {"spec": {"type": "object", "properties": {"n": {"type": "integer", "default": 1}}}}}),
    );
    assert_eq!(problems(&crd), Vec::<String>::new());
    assert_eq!(crd["spec"]["names"]["listKind"], "WidgetList");
    assert_eq!(crd["status"]["storedVersions"], json!(["v1"]));
}

#[test]
fn schemas_must_be_structural() {
    let crd = crd(
        json!({"type": "object", "properties": {"a": {}, "b": {"type": "array"}, "c": {"type": "string", "default": 3},
        "d": {"type": "object", "properties": {"x": {"type": "string"}}, "anyOf": [{"required": ["x"]}, {"properties": {"y": {"minimum": 1}}}]}}}),
    );
    let found = problems(&crd);
    for expected in [
        "spec.validation.openAPIV3Schema.properties[a].type: Required value: must not be empty for specified object fields",
        "spec.validation.openAPIV3Schema.properties[b].items: Required value: must be specified",
    ] {
        assert!(found.contains(&expected.to_owned()), "{found:#?}");
    }
}

#[test]
fn defaults_must_match_their_schema() {
    let crd = crd(json!({"type": "object", "properties": {"c": {"type": "string", "default": 3}}}));
    assert_eq!(
        problems(&crd),
        [
            "spec.validation.openAPIV3Schema.properties[c].default: Invalid value: \"integer\":  in body must be of type string: \"integer\""
        ]
    );
}

#[test]
fn versions_names_and_columns_are_checked() {
    let mut crd = crd(json!({"type": "object"}));
    crd["metadata"]["name"] = "other".into();
    crd["spec"]["versions"][0]["storage"] = false.into();
    crd["spec"]["versions"][0]["additionalPrinterColumns"] =
        json!([{"name": "A", "type": "text", "jsonPath": "spec"}]);
    crd["spec"]["names"]["shortNames"] = json!(["UP"]);
    let found = problems(&crd).join("\n");
    for expected in [
        "metadata.name: Invalid value: \"other\": must be spec.names.plural+\".\"+spec.group",
        "must have exactly one version marked as storage version",
        "spec.additionalPrinterColumns[0].type: Invalid value: \"text\": must be one of boolean,date,integer,number,string",
        "spec.additionalPrinterColumns[0].JSONPath: Invalid value: \"spec\": must be a simple json path starting with .",
        "spec.names.shortNames[0]: Invalid value: \"UP\": a DNS-1035 label",
    ] {
        assert!(found.contains(expected), "{expected}\n{found}");
    }
}

#[test]
fn field_paths_lead_through_properties_and_maps() {
    let schema = json!({"type": "object", "properties": {"a.b": {"type": "object", "additionalProperties": {"type": "string"}}}});
    assert_eq!(
        field_path(&schema, "['a.b'].k", true).unwrap().shown,
        "a.b[k]"
    );
    assert!(field_path(&schema, ".a", true).is_err());
    assert!(field_path(&schema, "['a.b']", false).is_err());
}
