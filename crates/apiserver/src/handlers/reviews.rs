//! Kinds that are questions: access reviews, token reviews, and the legacy binding.

use std::sync::Arc;

use fluyt_api::validation::Errors;
use fluyt_api::{Error, defaults, meta};
use http::{Response, StatusCode};
use serde_json::{Value, json};

use super::{Call, decode};
use crate::authz::{Question, Selectors, Verdict, aggregate};
use crate::http::{self as responses, Body};
use crate::user::{User, user_info};

pub(super) async fn handle(mut call: Call) -> Result<Response<Body>, Error> {
    let resource = call.resource.clone();
    if call.info.verb != "create" {
        return Err(Error::method_not_allowed(
            resource.group,
            resource.plural,
            call.info.verb,
        ));
    }
    let offer = responses::Offer {
        only_whole: true,
        // Answered in JSON all the same, which every client of protobuf reads.
        protobuf: true,
        ..responses::Offer::default()
    };
    responses::negotiate(&call.parts.headers, offer)?;
    let body = responses::collect(call.take_body()).await?;
    let kind = (resource.group, resource.version, resource.kind);
    let mut review = decode::object(&call.parts, &body, &call.info.query, kind)?.object;
    meta::set(&mut review, "creationTimestamp", Value::Null);
    if let Some(ty) = resource.ty {
        defaults::strip_absent(resource.schema(), ty, &mut review);
    }
    if resource.namespaced {
        super::own_namespace(&call, &review)?;
        meta::set(&mut review, "namespace", call.target.namespace.clone());
    } else {
        meta::set(&mut review, "namespace", Value::Null);
    }
    let mut errors = Errors::default();
    resource.strategy().validate(&review, &mut errors);
    if !errors.is_empty() {
        // Upstream's internal objects have forgotten their kind by then.
        return Err(Error::invalid(resource.group, "", "", errors.0));
    }
    let spec = &review["spec"];
    let status = match resource.kind {
        "SubjectAccessReview" | "LocalSubjectAccessReview" => {
            access(&call, spec, &subject(spec)).await
        }
        "SelfSubjectAccessReview" => access(&call, spec, &call.user).await,
        "SelfSubjectRulesReview" => {
            let found = rules(&call, spec)?;
            review["metadata"] = json!({});
            review["spec"] = json!({});
            found
        }
        "SelfSubjectReview" => {
            review["metadata"] = json!({"creationTimestamp": meta::now()});
            json!({"userInfo": user_info(&call.user)})
        }
        "TokenReview" => token(&call, spec).await?,
        _ => {
            return Err(Error::method_not_allowed(
                resource.group,
                resource.plural,
                call.info.verb,
            ));
        }
    };
    review["status"] = status;
    Ok(responses::json(StatusCode::CREATED, &review))
}

fn strings(value: &Value) -> Vec<String> {
    value
        .as_array()
        .into_iter()
        .flatten()
        .filter_map(|v| v.as_str().map(Into::into))
        .collect()
}

/// Whom a review is about.
fn subject(spec: &Value) -> User {
    let text = |field: &str| spec[field].as_str().unwrap_or_default().to_owned();
    let extra = spec["extra"].as_object().into_iter().flatten();
    User {
        name: text("user"),
        uid: text("uid"),
        groups: strings(&spec["groups"]),
        extra: extra.map(|(k, v)| (k.clone(), strings(v))).collect(),
    }
}

fn question(spec: &Value) -> Question {
    let (resource, path) = (&spec["resourceAttributes"], &spec["nonResourceAttributes"]);
    let text = |v: &Value, field: &str| v[field].as_str().unwrap_or_default().to_owned();
    if !resource.is_object() {
        return Question {
            verb: text(path, "verb"),
            path: text(path, "path"),
            ..Question::default()
        };
    }
    let version = text(resource, "version");
    Question {
        verb: text(resource, "verb"),
        group: text(resource, "group"),
        version: if version.is_empty() {
            "*".into()
        } else {
            version
        },
        resource: text(resource, "resource"),
        subresource: text(resource, "subresource"),
        namespace: text(resource, "namespace"),
        name: text(resource, "name"),
        path: String::new(),
        selectors: Selectors::of_review(resource).map(Arc::new),
    }
}

async fn access(call: &Call, spec: &Value, user: &User) -> Value {
    let question = question(spec);
    let decision = call.server.authorizer.decide(user, &question).await;
    let mut status = json!({"allowed": decision.allows()});
    if decision.verdict == Verdict::Deny {
        status["denied"] = true.into();
    }
    if !decision.reason.is_empty() {
        status["reason"] = decision.reason.into();
    }
    let ignored = question.selectors.iter().flat_map(|s| s.ignored.iter());
    let errors: Vec<String> = decision
        .error
        .into_iter()
        .chain(ignored.map(|i| (*i).to_owned()))
        .collect();
    if !errors.is_empty() {
        status["evaluationError"] = errors.join("; ").into();
    }
    status
}

fn rules(call: &Call, spec: &Value) -> Result<Value, Error> {
    let namespace = spec["namespace"].as_str().unwrap_or_default();
    if namespace.is_empty() {
        return Err(Error::bad_request("no namespace on request"));
    }
    let (mut resources, mut paths) = (Vec::new(), Vec::new());
    let found = call.server.authorizer.rules(&call.user, namespace);
    for rule in found.rules {
        if rule.urls.is_empty() {
            let mut entry =
                json!({"verbs": rule.verbs, "apiGroups": rule.groups, "resources": rule.resources});
            if !rule.names.is_empty() {
                entry["resourceNames"] = json!(rule.names);
            }
            resources.push(entry);
        } else {
            paths.push(json!({"verbs": rule.verbs, "nonResourceURLs": rule.urls}));
        }
    }
    let mut status = json!({
        "resourceRules": resources, "nonResourceRules": paths, "incomplete": found.incomplete,
    });
    if let Some(errors) = aggregate(found.errors) {
        status["evaluationError"] = errors.into();
    }
    Ok(status)
}

async fn token(call: &Call, spec: &Value) -> Result<Value, Error> {
    let text = spec["token"].as_str().unwrap_or_default();
    if text.is_empty() {
        return Err(Error::bad_request(
            "token is required for TokenReview in authentication",
        ));
    }
    let authenticator = &call.server.authenticator;
    let wanted = strings(&spec["audiences"]);
    let audiences = if wanted.is_empty() {
        authenticator.audiences()
    } else {
        &wanted
    };
    Ok(match authenticator.token(text, audiences).await {
        Ok(found) => {
            let mut status = json!({"authenticated": true, "user": user_info(&found.user)});
            if !found.audiences.is_empty() {
                status["audiences"] = json!(found.audiences);
            }
            status
        }
        Err(error) => json!({"user": {}, "error": error}),
    })
}
