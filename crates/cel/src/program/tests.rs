use std::sync::Arc;

use fluyt_api::custom::Structural;
use serde_json::json;

use super::*;
use crate::{PER_CALL_LIMIT, of_structural};

fn eval_in(
    environment: &Environment,
    activation: &Activation,
    text: &str,
) -> Result<Value, String> {
    let program = environment.compile(text).map_err(|e| e.0)?;
    program
        .run(activation, PER_CALL_LIMIT)
        .0
        .map_err(|e| e.to_string())
}

fn eval(text: &str) -> Result<Value, String> {
    eval_in(&Environment::default(), &Activation::default(), text)
}

fn holds(text: &str) {
    match eval(text) {
        Ok(Value::Bool(true)) => {}
        other => panic!("{text}: {other:?}"),
    }
}

#[test]
fn the_language_and_its_libraries() {
    for text in [
        "1 + 2 * 3 == 7 && 7 / 2 == 3 && -7 % 3 == -1",
        "dyn(1.0) == 1 && dyn(2u) == 2 && 1 < 1.5",
        "[1, 2, 3].all(x, x > 0) && [1, 2].exists(x, x == 2) && [1, 2].exists_one(x, x == 2)",
        "[1, 2, 3].map(x, x * 2) == [2, 4, 6] && [1, 2, 3].filter(x, x > 1).size() == 2",
        "{'a': 1}.a == 1 && 'a' in {'a': 1} && has({'a': 1}.a) && !has({'a': 1}.b)",
        "'hello'.matches('^h.*o$') && 'abc'.startsWith('a') && 'a,b'.split(',') == ['a', 'b']",
        "'%s is %d, %.2f'.format(['x', 3, 1.5]) == 'x is 3, 1.50'",
        "'abc'.substring(1) == 'bc' && 'abc'.charAt(0) == 'a' && 'ABC'.lowerAscii() == 'abc'",
        "duration('1h30m').getMinutes() == 90 && timestamp('2026-01-01T00:00:00Z').getFullYear() == 2026",
        "timestamp('2026-01-02T00:00:00Z') - timestamp('2026-01-01T00:00:00Z') == duration('24h')",
        "[1, 2, 3].sum() == 6 && [3, 1].min() == 1 && [1, 2].isSorted() && [1, 2, 1].lastIndexOf(1) == 2",
        "quantity('1.5Gi').isGreaterThan(quantity('1Gi')) && quantity('2k').asInteger() == 2000",
        "ip('10.0.0.1').family() == 4 && cidr('10.0.0.0/8').containsIP('10.1.2.3') && !isIP('x')",
        "cidr('10.0.0.0/8').containsCIDR('10.1.0.0/16') && ip.isCanonical('::1')",
        "url('https://a.b:80/c?d=e').getPort() == '80' && url('https://a/c?d=e').getQuery()['d'] == ['e']",
        "format.dns1123Label().validate('ok') == optional.none() && format.named('uuid').hasValue()",
        "semver('1.2.3').isLessThan(semver('1.10.0')) && isSemver('v1.0', true) && !isSemver('1')",
        "sets.contains([1, 2, 3], [2, 1]) && sets.equivalent([1, 1], [1]) && sets.intersects([1], [1, 2])",
        "[1, 2].all(i, v, v == i + 1) && [1, 2].transformList(i, v, v * 2) == [2, 4]",
        "{'a': 1}.transformMap(k, v, v + 1) == {'a': 2} && {'a': 1}.exists(k, v, k == 'a' && v == 1)",
        "optional.of(1).optMap(x, x + 1).orValue(0) == 2 && {'a': 1}[?'b'].orValue(5) == 5",
        "{'a': {'b': 1}}.?a.?b.value() == 1 && [?optional.none(), 2].size() == 1",
        "[[1], [2]].flatten() == [1, 2] && [1, 1].distinct() == [1] && lists.range(3) == [0, 1, 2]",
        "true || 1 / 0 == 1",
        "1 / 0 == 1 || true",
        "type(1) == int && string(1.5) == '1.5' && int('3') == 3 && dyn(1) == 1",
        "'a' < 'b' && b'a' < b'b' && jsonpatch.escapeKey('a/b~c') == 'a~1b~0c'",
        "'x'.find('[a-z]') == 'x' && 'a1b2'.findAll('[0-9]') == ['1', '2']",
    ] {
        holds(text);
    }
}

#[test]
fn errors_are_upstreams() {
    assert_eq!(eval("1 / 0").unwrap_err(), "division by zero");
    assert_eq!(eval("{'a': 1}.b").unwrap_err(), "no such key: b");
    assert_eq!(eval("[1][5]").unwrap_err(), "index out of bounds: 5");
    assert_eq!(
        eval("9223372036854775807 + 1").unwrap_err(),
        "integer overflow"
    );
    assert_eq!(
        eval("foo == 1").unwrap_err(),
        "ERROR: <input>:1:1: undeclared reference to 'foo' (in container '')\n | foo == 1\n | ^"
    );
    assert_eq!(
        eval("1 + 'a'").unwrap_err(),
        "ERROR: <input>:1:3: found no matching overload for '_+_' applied to '(int, string)'\n | 1 + 'a'\n | ..^"
    );
    assert!(eval("1 +").unwrap_err().contains("Syntax error"));
    assert!(
        eval("[1, 'a']")
            .unwrap_err()
            .contains("expected type 'int' but found 'string'")
    );
    assert!(
        eval("'a'.matches('(')")
            .unwrap_err()
            .contains("invalid matches argument")
    );
    assert_eq!(
        eval("lists.range(500000).all(x, lists.range(500000).all(y, x != y))").unwrap_err(),
        "operation cancelled: actual cost limit exceeded"
    );
}

fn environment(schema: &serde_json::Value) -> (Environment, Field) {
    let field = of_structural("self", &Structural::parse(schema), true).unwrap();
    let mut environment = Environment::default();
    environment.declare_data("self", field.clone());
    (environment, field)
}

#[test]
fn schemas_type_their_values() {
    let schema = json!({"type": "object", "properties": {"spec": {"type": "object", "properties": {
        "n": {"type": "integer"}, "size": {"x-kubernetes-int-or-string": true}, "when": {"type": "string", "format": "date-time"},
        "namespace": {"type": "string"}, "dash-ed": {"type": "string"},
        "tags": {"type": "array", "items": {"type": "string"}}, "labels": {"type": "object", "additionalProperties": {"type": "string"}}}}}});
    let (environment, field) = environment(&schema);
    let object = json!({"metadata": {"name": "a"}, "spec": {"n": 3, "size": "big", "when": "2026-01-01T00:00:00Z",
        "namespace": "x", "dash-ed": "y", "tags": ["t"], "labels": {"k": "v"}}});
    let activation = Activation::default().with("self", Value::typed(&object, &field.ty));
    for text in [
        "self.spec.n == 3 && self.metadata.name == 'a' && has(self.spec.n)",
        "type(self.spec.size) == string && self.spec.size == 'big'",
        "self.spec.when.getFullYear() == 2026",
        "self.spec.__namespace__ == 'x' && self.spec.dash__dash__ed == 'y'",
        "self.spec.tags.all(t, t.size() == 1) && self.spec.labels.k == 'v' && self.spec.labels.all(k, k == 'k')",
        "self.spec.tags.map(t, t + 'x')[0] == 'tx'",
    ] {
        assert!(
            matches!(
                eval_in(&environment, &activation, text),
                Ok(Value::Bool(true))
            ),
            "{text}: {:?}",
            eval_in(&environment, &activation, text)
        );
    }
    assert!(
        eval_in(&environment, &activation, "self.spec.missing == 1")
            .unwrap_err()
            .contains("undefined field 'missing'")
    );
    assert!(
        eval_in(&environment, &activation, "self.spec.n + 'x' == ''")
            .unwrap_err()
            .contains("found no matching overload for '_+_' applied to '(int, string)'")
    );
}

#[test]
fn estimates_grow_with_what_a_schema_allows() {
    let bounded = json!({"type": "object", "properties": {"l": {"type": "array", "maxItems": 10, "items": {"type": "string", "maxLength": 10}}}});
    let open = json!({"type": "object", "properties": {"l": {"type": "array", "items": {"type": "string"}}}});
    let nested = "self.l.all(x, self.l.all(y, x == y))";
    let (small, large) = (
        environment(&bounded).0.compile(nested).unwrap(),
        environment(&open).0.compile(nested).unwrap(),
    );
    assert!(small.estimate.max < 10_000, "{:?}", small.estimate);
    assert!(
        large.estimate.max > crate::STATIC_COST_LIMIT,
        "{:?}",
        large.estimate
    );
    assert!(
        environment(&open)
            .0
            .compile("self.l.size() == 0")
            .unwrap()
            .estimate
            .max
            < 10
    );
}

#[test]
fn running_costs_what_upstream_counts() {
    let cost = |text: &str| {
        let program = Environment::default().compile(text).unwrap();
        program.run(&Activation::default(), PER_CALL_LIMIT).1
    };
    assert_eq!(cost("true"), 0);
    assert_eq!(cost("1 + 1"), 1);
    assert_eq!(cost("[1, 2]"), 10);
    assert_eq!(cost("{'a': 1}"), 30);
    assert_eq!(cost("'aaaaaaaaaaaaaaaaaaaa' == 'aaaaaaaaaaaaaaaaaaaa'"), 2);
}

#[test]
fn authorizers_are_asked() {
    struct Only;
    impl crate::Authorize for Only {
        fn check(&self, _: Option<(&str, &str)>, query: &crate::Query) -> (bool, String) {
            (
                query.verb == "list"
                    && query.resource == "pods"
                    && query.namespace == "n"
                    && query.field_selector == "spec.nodeName=a"
                    && query.label_selector == "x",
                String::new(),
            )
        }
    }
    let mut environment = Environment::default();
    environment.declare(
        "authorizer",
        Type::Opaque("kubernetes.authorization.Authorizer"),
    );
    let authorizer: crate::Authorizer = Arc::new(Only);
    let activation = Activation::default().with("authorizer", Value::authorizer(authorizer));
    let pods =
        "authorizer.group('').resource('pods').namespace('n').fieldSelector('spec.nodeName=a')";
    for (text, allowed) in [
        (
            &format!("{pods}.labelSelector('x').check('list').allowed()"),
            true,
        ),
        (&format!("{pods}.check('list').allowed()"), false),
        (
            &"authorizer.path('/x').check('get').allowed()".into(),
            false,
        ),
    ] {
        let answer = eval_in(&environment, &activation, text);
        assert!(
            matches!(answer, Ok(Value::Bool(is)) if is == allowed),
            "{text}"
        );
    }
}
