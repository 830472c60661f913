//! Admission policies written in CEL: what both kinds have in common.

mod apply;
mod configuration;
mod mutating;
mod validating;

use std::collections::BTreeMap;
use std::sync::Arc;

use fluyt_api::resources::Handle;
use fluyt_api::selector::LabelSelector;
use fluyt_api::{Error, meta};
use fluyt_cel::{Activation, Environment, PER_CALL_LIMIT, Program, Type, Value as Cel};
use serde_json::Value;

use super::expressions::{self, Condition};
use super::plugins::Setup;
use super::static_manifests::{Kind, Manifests};
use super::{Attributes, Compiled, Shared, matching};
use crate::cache::Caches;

pub use mutating::Mutating;
#[cfg(test)]
pub(super) use validating::KIND as VALIDATING;
pub use validating::{Validating, type_check};

/// Where upstream's decoder of manifests is from.
const SCHEME: &str =
    "k8s.io/kubernetes/pkg/admission/plugin/policy/manifest/loader/validating_loader.go:35";

/// A policy that is at work.
pub(super) struct Bound<P> {
    name: Arc<str>,
    policy: Arc<P>,
    /// Those of files; the API's are looked up for those that match.
    bindings: Option<Arc<[Value]>>,
}

/// Where a plugin's policies come from.
pub(super) struct Source<P> {
    kind: &'static Kind,
    manifests: Manifests<Arc<Bound<P>>>,
    compiled: Compiled<P>,
    compile: fn(Value) -> P,
}

impl<P: Send + Sync + 'static> Source<P> {
    /// Of a plugin whose configuration is of a kind.
    ///
    /// # Errors
    /// When what the plugin is configured with makes no sense.
    fn new(
        kind: &'static Kind,
        configuration: &str,
        setup: &Setup<'_>,
        compile: fn(Value) -> P,
    ) -> anyhow::Result<Self> {
        let directory =
            configuration::directory(setup.configuration, configuration, setup.features)?;
        let manifests = Manifests::follow(kind, &directory, setup, move |loaded| {
            let bindings = loaded.bindings;
            let of = |policy: &str| -> Arc<[Value]> {
                let own = bindings.iter();
                own.filter(|b| b["spec"]["policyName"] == policy)
                    .cloned()
                    .collect()
            };
            let bound = |object: Value| {
                let name = meta::name(&object);
                Arc::new(Bound {
                    name: name.into(),
                    bindings: Some(of(name)),
                    policy: Arc::new(compile(object)),
                })
            };
            loaded.objects.into_iter().map(bound).collect()
        });
        Ok(Self {
            kind,
            manifests: manifests?,
            compiled: Compiled::default(),
            compile,
        })
    }

    /// The policies that may have to do with a request: first those of files.
    fn all(&self, caches: &Caches, attributes: &Attributes<'_>) -> Vec<Arc<Bound<P>>> {
        let mut all = self.manifests.all().to_vec();
        if !matching::is_exempt_from_policies(attributes) {
            let policies = matching::configurations(caches, self.kind.plural);
            all.extend(policies.into_iter().map(|(name, revision, entry)| {
                let compile = || (self.compile)(entry.object());
                Arc::new(Bound {
                    policy: self.compiled.get(&name, revision, compile),
                    name,
                    bindings: None,
                })
            }));
        }
        all
    }

    /// What binds a policy.
    fn bindings(&self, caches: &Caches, bound: &Bound<P>) -> Arc<[Value]> {
        if let Some(bindings) = &bound.bindings {
            return bindings.clone();
        }
        let all = matching::configurations(caches, self.kind.bindings.unwrap_or_default());
        all.into_iter()
            .map(|(_, _, entry)| entry.object())
            .filter(|binding| binding["spec"]["policyName"] == *bound.name)
            .collect()
    }
}

/// The variables that a policy computes, in their order.
pub(super) struct Variables(Vec<(String, Result<Program, String>)>);

impl Variables {
    /// Compiles them; each may use those before it.
    pub(super) fn compile(environment: &mut Environment, list: &Value) -> Self {
        let mut fields = BTreeMap::new();
        let mut all = Vec::new();
        for variable in list.as_array().into_iter().flatten() {
            let name = variable["name"].as_str().unwrap_or_default().to_owned();
            let expression = variable["expression"].as_str().unwrap_or_default();
            environment.declare("variables", variables_type(&fields));
            let program = environment
                .compile(expression)
                .map_err(|e| format!("compilation failed: {e}"));
            let ty = program.as_ref().map_or(Type::Dyn, |p| p.result.clone());
            fields.insert(name.clone(), ty);
            all.push((name, program));
        }
        environment.declare("variables", variables_type(&fields));
        Self(all)
    }

    /// Computes them. One that fails is absent, and whoever uses it fails.
    pub(super) fn evaluate(&self, activation: &mut Activation, budget: &mut u64) {
        let mut values = BTreeMap::new();
        for (name, program) in &self.0 {
            activation.set("variables", Cel::object(&values));
            let Ok(program) = program else { continue };
            let (result, cost) = program.run(activation, PER_CALL_LIMIT.min(*budget));
            *budget = budget.saturating_sub(cost);
            if let Ok(value) = result {
                values.insert(name.clone(), value);
            }
        }
        activation.set("variables", Cel::object(&values));
    }
}

fn variables_type(fields: &BTreeMap<String, Type>) -> Type {
    Type::object("kubernetes.variables", fields)
}

/// The part of a policy that decides whether a request is its business.
pub(super) struct Scope {
    conditions: Vec<Condition>,
    constraints: Value,
    fails: bool,
}

impl Scope {
    pub(super) fn new(environment: &Environment, spec: &Value) -> Self {
        Self {
            conditions: expressions::conditions(environment, &spec["matchConditions"]),
            constraints: spec["matchConstraints"].clone(),
            fails: spec["failurePolicy"] != "Ignore",
        }
    }

    pub(super) fn matches(
        &self,
        shared: &Shared,
        attributes: &Attributes<'_>,
        object: &Value,
    ) -> Option<Handle> {
        constraints_match(shared, attributes, object, &self.constraints)
    }
}

/// Whether a request matches `matchConstraints` or `matchResources`.
pub(super) fn constraints_match(
    shared: &Shared,
    attributes: &Attributes<'_>,
    object: &Value,
    constraints: &Value,
) -> Option<Handle> {
    let namespace = matching::namespace(&shared.caches, attributes, object);
    if !matching::namespace_matches(&constraints["namespaceSelector"], namespace.as_ref())
        || !matching::object_matches(&constraints["objectSelector"], object, attributes.old)
        || matching::is_excluded(attributes, &constraints["excludeResourceRules"])
    {
        return None;
    }
    let rules = &constraints["resourceRules"];
    if rules.as_array().is_none_or(Vec::is_empty) {
        let own = attributes.requested();
        return shared
            .caches
            .served()
            .find(own.group, own.version, own.plural);
    }
    matching::matched(
        &shared.caches,
        attributes,
        rules,
        constraints["matchPolicy"] != "Exact",
    )
}

/// The parameter objects of a binding; one null when the policy takes none.
pub(super) fn parameters(
    shared: &Shared,
    attributes: &Attributes<'_>,
    policy: &Value,
    binding: &Value,
) -> Result<Vec<Value>, String> {
    let kind = &policy["spec"]["paramKind"];
    let reference = &binding["spec"]["paramRef"];
    if !kind.is_object() {
        return Ok(vec![Value::Null]);
    }
    if !reference.is_object() {
        return Ok(vec![Value::Null]);
    }
    let text = |v: &Value| v.as_str().unwrap_or_default().to_owned();
    let api_version = text(&kind["apiVersion"]);
    let (group, version) = api_version.split_once('/').unwrap_or(("", &api_version));
    let served = shared.caches.served();
    let Some(resource) = served.find_kind(group, version, &text(&kind["kind"])) else {
        return Err(format!(
            "failed to configure binding: failed to find resource referenced by paramKind: '{group}/{version}, Kind={}'",
            text(&kind["kind"])
        ));
    };
    let cache = shared.caches.of(crate::cache::storage_resource(&resource));
    let namespace = match text(&reference["namespace"]) {
        _ if !resource.namespaced => String::new(),
        given if !given.is_empty() => given,
        _ if attributes.at.namespace.is_empty() => {
            return Err("failed to configure binding: cannot use namespaced paramRef in policy binding that matches cluster-scoped resources".into());
        }
        _ => attributes.at.namespace.to_owned(),
    };
    let name = text(&reference["name"]);
    let found: Vec<Value> = if name.is_empty() {
        let selector = LabelSelector::from_json(&reference["selector"]).unwrap_or_default();
        cache
            .snapshot()
            .entries
            .values()
            .filter(|e| {
                e.namespace() == namespace && selector.matches_with(|key| e.labels.get(key))
            })
            .map(|e| e.object())
            .collect()
    } else {
        let key = if namespace.is_empty() {
            name
        } else {
            format!("{namespace}/{name}")
        };
        cache.get(&key).map(|e| e.object()).into_iter().collect()
    };
    match (found.is_empty(), reference["parameterNotFoundAction"].as_str()) {
        (true, Some("Allow")) => Ok(Vec::new()),
        (true, _) => Err("failed to configure binding: no params found for policy binding with `Deny` parameterNotFoundAction".into()),
        (false, _) => Ok(found),
    }
}

/// The variables of one evaluation of a policy.
pub(super) async fn activation(
    shared: &Shared,
    attributes: &Attributes<'_>,
    resource: &Handle,
    object: &Value,
    parameter: &Value,
) -> Result<Activation, Error> {
    let convert = |value| matching::versioned(&shared.converter, attributes, resource, value);
    let (object_sent, old) = (
        convert(object).await?,
        match attributes.old {
            Some(old) => Some(convert(old).await?),
            None => None,
        },
    );
    let request = expressions::request(attributes, resource);
    let namespace = matching::namespace(&shared.caches, attributes, object);
    let mut activation = expressions::activation(
        attributes,
        &shared.authorizer,
        &request,
        &object_sent,
        old.as_ref(),
        namespace.as_ref(),
    );
    activation.set("params", Cel::from_json(parameter));
    Ok(activation)
}

/// A refusal in the name of a policy.
pub(super) fn refusal(attributes: &Attributes<'_>, message: String, reason: &str) -> Error {
    let mut error = attributes.forbidden(&message);
    error.reason = fluyt_api::Reason::parse(if reason.is_empty() { "Invalid" } else { reason });
    error.code = error.reason.code();
    error.causes.push(fluyt_api::Cause {
        reason: "",
        message,
        field: String::new(),
    });
    error
}

pub(super) fn name_of(object: &Value) -> &str {
    meta::name(object)
}
