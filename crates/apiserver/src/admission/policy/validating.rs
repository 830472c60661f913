//! `ValidatingAdmissionPolicy`.

use async_trait::async_trait;
use fluyt_api::Error;
use fluyt_cel::{MAX_MESSAGE, PER_CALL_LIMIT, Program, RUNTIME_BUDGET, Value as Cel};
use serde_json::{Value, json};

use super::configuration::VALIDATING;
use super::{
    SCHEME, Scope, Source, Variables, activation, constraints_match, name_of, parameters, refusal,
};
use crate::admission::expressions;
use crate::admission::plugins::Setup;
use crate::admission::static_manifests::Kind;
use crate::admission::{Attributes, Plugin, Shared};
use crate::cache::Caches;

/// The plugin `ValidatingAdmissionPolicy`.
pub struct Validating {
    shared: Shared,
    source: Source<Policy>,
}

pub(in crate::admission) const KIND: Kind = Kind {
    plugin: "ValidatingAdmissionPolicy",
    what: "policy",
    plural: "validatingadmissionpolicies",
    bindings: Some("validatingadmissionpolicybindings"),
    scheme: SCHEME,
};

struct Policy {
    object: Value,
    scope: Scope,
    variables: Variables,
    validations: Vec<Validation>,
    /// Keys of the audit log, and what is recorded under them.
    audit_annotations: Vec<(String, Program)>,
}

struct Validation {
    expression: String,
    program: Result<Program, String>,
    message: String,
    message_expression: Option<Program>,
    reason: String,
}

/// What a policy says against a request.
struct Finding {
    message: String,
    reason: String,
    /// Of the expression.
    index: usize,
}

impl Policy {
    fn compile(object: Value) -> Self {
        let spec = &object["spec"];
        let mut environment = expressions::environment(expressions::Sees::of_policy(spec));
        let scope = Scope::new(&environment, spec);
        let variables = Variables::compile(&mut environment, &spec["variables"]);
        let text = |v: &Value| v.as_str().unwrap_or_default().to_owned();
        let validations = spec["validations"]
            .as_array()
            .into_iter()
            .flatten()
            .map(|validation| Validation {
                expression: text(&validation["expression"]),
                program: expressions::boolean(&environment, &text(&validation["expression"])),
                message: text(&validation["message"]),
                message_expression: validation["messageExpression"]
                    .as_str()
                    .and_then(|text| environment.compile(text).ok()),
                reason: text(&validation["reason"]),
            })
            .collect();
        let annotations = spec["auditAnnotations"].as_array().into_iter().flatten();
        let audit_annotations = annotations
            .filter_map(|annotation| {
                let program = environment.compile(&text(&annotation["valueExpression"]));
                Some((text(&annotation["key"]), program.ok()?))
            })
            .collect();
        Self {
            scope,
            variables,
            validations,
            audit_annotations,
            object,
        }
    }
}

impl Policy {
    /// Records what the policy wants to have on record.
    fn annotate(&self, attributes: &Attributes<'_>, variables: &fluyt_cel::Activation) {
        for (key, program) in &self.audit_annotations {
            if let (Ok(Cel::String(value)), _) = program.run(variables, PER_CALL_LIMIT) {
                let key = format!("{}/{key}", name_of(&self.object));
                attributes.cx.record.annotate(&key, value.trim());
            }
        }
    }
}

impl Validating {
    /// # Errors
    /// When what it is configured with makes no sense.
    pub(in crate::admission) fn new(setup: &Setup<'_>) -> anyhow::Result<Self> {
        Ok(Self {
            shared: setup.shared.clone(),
            source: Source::new(&KIND, VALIDATING, setup, Policy::compile)?,
        })
    }

    /// What one policy says through one binding, for each of its parameters.
    async fn findings(
        &self,
        policy: &Policy,
        binding: &Value,
        attributes: &Attributes<'_>,
        resource: &fluyt_api::resources::Handle,
        object: &Value,
    ) -> Result<Vec<Finding>, Error> {
        let mut findings = Vec::new();
        let failed_at = |index: usize, why: String| Finding {
            message: why,
            reason: String::new(),
            index,
        };
        let failed = |why: String| failed_at(0, why);
        let params = match parameters(&self.shared, attributes, &policy.object, binding) {
            Ok(params) => params,
            Err(why) if policy.scope.fails => return Ok(vec![failed(why)]),
            Err(_) => return Ok(findings),
        };
        for parameter in params {
            let mut variables =
                activation(&self.shared, attributes, resource, object, &parameter).await?;
            match expressions::hold(&policy.scope.conditions, &variables) {
                Ok(true) => {}
                Ok(false) => continue,
                Err(why) => {
                    if policy.scope.fails {
                        findings.push(failed(why));
                    }
                    continue;
                }
            }
            let mut budget = RUNTIME_BUDGET;
            policy.variables.evaluate(&mut variables, &mut budget);
            for (index, validation) in policy.validations.iter().enumerate() {
                let outcome = match &validation.program {
                    Ok(program) => {
                        let (result, cost) = program.run(&variables, PER_CALL_LIMIT.min(budget));
                        budget = budget.saturating_sub(cost);
                        result.map_err(|e| {
                            format!(
                                "expression '{}' resulted in error: {e}",
                                validation.expression
                            )
                        })
                    }
                    Err(why) => Err(format!(
                        "expression '{}' resulted in error: {why}",
                        validation.expression
                    )),
                };
                match outcome {
                    Ok(Cel::Bool(true)) => {}
                    Ok(_) => findings.push(Finding {
                        message: validation.message(&variables),
                        reason: validation.reason.clone(),
                        index,
                    }),
                    Err(why) if policy.scope.fails => findings.push(failed_at(index, why)),
                    Err(_) => {}
                }
            }
            if attributes.cx.record.is_audited() {
                policy.annotate(attributes, &variables);
            }
        }
        Ok(findings)
    }
}

impl Validation {
    fn message(&self, variables: &fluyt_cel::Activation) -> String {
        let computed = self.message_expression.as_ref().and_then(|program| {
            match program.run(variables, PER_CALL_LIMIT).0 {
                Ok(Cel::String(text)) => Some(text.trim().to_owned()),
                _ => None,
            }
        });
        let usable =
            |text: &String| !text.is_empty() && !text.contains('\n') && text.len() <= MAX_MESSAGE;
        computed
            .filter(usable)
            .unwrap_or_else(|| match self.message.trim() {
                "" => format!("failed expression: {}", self.expression.trim()),
                message => message.to_owned(),
            })
    }
}

#[async_trait]
impl Plugin for Validating {
    async fn validate(
        &self,
        caches: &Caches,
        attributes: &Attributes<'_>,
        object: &Value,
    ) -> Result<(), Error> {
        let mut recorded = Vec::new();
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
                let findings = self
                    .findings(policy, binding, attributes, &resource, object)
                    .await?;
                let bound = name_of(binding);
                let actions = binding["spec"]["validationActions"].as_array();
                let has = |action: &str| actions.is_some_and(|a| a.iter().any(|a| a == action));
                for finding in findings {
                    if has("Audit") && attributes.cx.record.is_audited() {
                        recorded.push(json!({
                            "message": finding.message, "policy": &**name, "binding": bound,
                            "expressionIndex": finding.index, "validationActions": actions,
                        }));
                    }
                    if has("Warn") {
                        attributes.cx.warnings.add(format!(
                            "Validation failed for ValidatingAdmissionPolicy '{name}' with binding '{bound}': {}",
                            finding.message
                        ));
                    }
                    if has("Deny") {
                        let message = format!(
                            "ValidatingAdmissionPolicy '{name}' with binding '{bound}' denied request: {}",
                            finding.message
                        );
                        return Err(refusal(attributes, message, &finding.reason));
                    }
                }
            }
        }
        if !recorded.is_empty() {
            attributes.cx.record.annotate(
                "validation.policy.admission.k8s.io/validation_failure",
                Value::from(recorded).to_string(),
            );
        }
        Ok(())
    }
}

/// The warnings of a policy's `status.typeChecking`: its expressions against the types of what it matches.
#[must_use]
pub fn type_check(caches: &Caches, policy: &Value) -> Vec<Value> {
    let spec = &policy["spec"];
    let mut warnings = Vec::new();
    let served = caches.served();
    let rules = spec["matchConstraints"]["resourceRules"].as_array();
    let words = |rule: &Value, field: &str| -> Vec<String> {
        let list = rule[field].as_array().into_iter().flatten();
        list.filter_map(|v| v.as_str().map(str::to_owned)).collect()
    };
    let mut kinds = Vec::new();
    for rule in rules.into_iter().flatten() {
        let (groups, versions, plurals) = (
            words(rule, "apiGroups"),
            words(rule, "apiVersions"),
            words(rule, "resources"),
        );
        if [&groups, &versions, &plurals]
            .iter()
            .any(|l| l.iter().any(|w| w.contains('*')))
        {
            continue;
        }
        for resource in served.all() {
            let named = |list: &[String], word: &str| list.iter().any(|w| w == word);
            if named(&groups, resource.group)
                && named(&versions, resource.version)
                && named(&plurals, resource.plural)
                && let Some(ty) = resource.ty
            {
                let field = match &resource.definition {
                    Some(definition) => {
                        fluyt_cel::of_structural(resource.kind, &definition.structural, true)
                    }
                    None => Some(fluyt_cel::of_schema(resource.schema(), ty)),
                };
                if let Some(field) = field {
                    kinds.push((
                        format!("{}, Kind={}", resource.api_version(), resource.kind),
                        field.ty,
                    ));
                }
            }
        }
    }
    let expressions = |field: &str| -> Vec<(String, String)> {
        let list = spec["validations"]
            .as_array()
            .into_iter()
            .flatten()
            .enumerate();
        list.filter_map(|(i, v)| {
            Some((
                format!("spec.validations[{i}].{field}"),
                v[field].as_str()?.to_owned(),
            ))
        })
        .collect()
    };
    let mut all = expressions("expression");
    all.extend(expressions("messageExpression"));
    for (path, text) in all {
        let mut problems = Vec::new();
        for (name, ty) in &kinds {
            let mut environment = expressions::environment(expressions::Sees::of_policy(spec));
            environment.declare("object", ty.clone());
            environment.declare("oldObject", ty.clone());
            let known = Variables::compile(&mut environment, &spec["variables"]);
            drop(known);
            if let Err(error) = environment.compile(&text) {
                problems.push(format!("{name}: {error}\n"));
            }
        }
        if !problems.is_empty() {
            warnings.push(json!({"fieldRef": path, "warning": problems.join("\n")}));
        }
    }
    warnings
}
