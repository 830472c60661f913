//! `MutatingAdmissionPolicy`.

use async_trait::async_trait;
use fluyt_api::Error;
use fluyt_api::json_patch::{Failure, Patch};
use fluyt_cel::{Environment, PER_CALL_LIMIT, Program, RUNTIME_BUDGET};
use serde_json::Value;

use super::configuration::MUTATING;
use super::{
    SCHEME, Scope, Source, Variables, activation, apply, constraints_match, name_of, parameters,
    refusal,
};
use crate::admission::expressions;
use crate::admission::plugins::Setup;
use crate::admission::static_manifests::Kind;
use crate::admission::{Attributes, Plugin, Shared, matching};
use crate::cache::Caches;

/// The plugin `MutatingAdmissionPolicy`.
pub struct Mutating {
    shared: Shared,
    source: Source<Policy>,
}

const KIND: Kind = Kind {
    plugin: "MutatingAdmissionPolicy",
    what: "policy",
    plural: "mutatingadmissionpolicies",
    bindings: Some("mutatingadmissionpolicybindings"),
    scheme: SCHEME,
};

struct Policy {
    object: Value,
    scope: Scope,
    variables: Variables,
    mutations: Vec<Mutation>,
}

struct Mutation {
    /// Or a list of patch operations.
    applies: bool,
    program: Result<Program, String>,
}

impl Policy {
    fn compile(object: Value) -> Self {
        let spec = &object["spec"];
        let mut environment = expressions::environment(expressions::Sees::of_policy(spec));
        let scope = Scope::new(&environment, spec);
        let variables = Variables::compile(&mut environment, &spec["variables"]);
        for (name, ty) in expressions::patch_types() {
            environment.declare_object(name, ty);
        }
        let mutations = spec["mutations"]
            .as_array()
            .into_iter()
            .flatten()
            .map(|mutation| Mutation::compile(&environment, mutation))
            .collect();
        Self {
            scope,
            variables,
            mutations,
            object,
        }
    }
}

impl Mutation {
    fn compile(environment: &Environment, mutation: &Value) -> Self {
        let applies = mutation["patchType"] == "ApplyConfiguration";
        let part = if applies {
            "applyConfiguration"
        } else {
            "jsonPatch"
        };
        let text = mutation[part]["expression"].as_str().unwrap_or_default();
        Self {
            applies,
            program: environment
                .compile(text)
                .map_err(|e| format!("compilation failed: {e}")),
        }
    }
}

impl Mutating {
    /// # Errors
    /// When what it is configured with makes no sense.
    pub(in crate::admission) fn new(setup: &Setup<'_>) -> anyhow::Result<Self> {
        Ok(Self {
            shared: setup.shared.clone(),
            source: Source::new(&KIND, MUTATING, setup, Policy::compile)?,
        })
    }

    async fn mutate(
        &self,
        policy: &Policy,
        parameter: &Value,
        attributes: &Attributes<'_>,
        resource: &fluyt_api::resources::Handle,
        object: &mut Value,
    ) -> Result<(), String> {
        let text = |e: Error| e.message;
        let mut budget = RUNTIME_BUDGET;
        for mutation in &policy.mutations {
            // Each mutation sees what those before it made.
            let mut variables = activation(&self.shared, attributes, resource, object, parameter)
                .await
                .map_err(text)?;
            if !expressions::hold(&policy.scope.conditions, &variables)? {
                return Ok(());
            }
            policy.variables.evaluate(&mut variables, &mut budget);
            let program = mutation.program.as_ref().map_err(Clone::clone)?;
            let (result, cost) = program.run(&variables, PER_CALL_LIMIT.min(budget));
            budget = budget.saturating_sub(cost);
            let value = result.map_err(|e| e.to_string())?;
            let json = value
                .to_json()
                .ok_or("the result is no object that can be applied")?;
            // It is changed as the policy sees it.
            let converter = &self.shared.converter;
            let seen = matching::versioned(converter, attributes, resource, object);
            let mut seen = seen.await.map_err(text)?;
            if mutation.applies {
                apply::merge(resource, &mut seen, &json)?;
            } else {
                let patch = serde_json::to_vec(&json).unwrap_or_default();
                let patch = Patch::decode(&patch).map_err(|refused| refused.why().to_owned())?;
                let mut patched = seen.clone();
                match patch.apply(&mut patched) {
                    Ok(()) => seen = patched,
                    // A patch that is not for this object.
                    Err(Failure::Test(_)) => {}
                    Err(Failure::Other(why)) => return Err(format!("JSON Patch: {why}")),
                }
            }
            let changed = matching::worked_in(converter, attributes, resource, seen);
            *object = changed.await.map_err(text)?;
        }
        Ok(())
    }
}

#[async_trait]
impl Plugin for Mutating {
    fn mutations(&self) -> Option<&'static str> {
        Some(KIND.plural)
    }

    fn has_manifests(&self) -> bool {
        !self.source.manifests.is_empty()
    }

    async fn admit(
        &self,
        caches: &Caches,
        attributes: &Attributes<'_>,
        object: &mut Value,
    ) -> Result<(), Error> {
        if object.is_null() {
            return Ok(());
        }
        for bound in self.source.all(caches, attributes) {
            let (name, policy) = (&bound.name, &bound.policy);
            let Some(resource) = policy.scope.matches(&self.shared, attributes, object) else {
                continue;
            };
            for binding in self.source.bindings(caches, &bound).iter() {
                let own = &binding["spec"]["matchResources"];
                if own.is_object()
                    && constraints_match(&self.shared, attributes, object, own).is_none()
                {
                    continue;
                }
                let params = parameters(&self.shared, attributes, &policy.object, binding);
                let mut outcome = params.as_ref().map(|_| ()).map_err(Clone::clone);
                for parameter in params.unwrap_or_default() {
                    let mut changed = object.clone();
                    outcome = self
                        .mutate(policy, &parameter, attributes, &resource, &mut changed)
                        .await;
                    if outcome.is_err() {
                        break;
                    }
                    *object = changed;
                }
                if let Err(why) = outcome
                    && policy.scope.fails
                {
                    let bound = name_of(binding);
                    let message =
                        format!("policy '{name}' with binding '{bound}' denied request: {why}");
                    return Err(refusal(attributes, message, ""));
                }
            }
        }
        Ok(())
    }
}
