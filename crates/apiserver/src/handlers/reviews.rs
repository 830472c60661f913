//! Kinds that are questions: access reviews, token reviews, and the legacy binding.

use fluyt_api::{Error, meta};
use http::{Response, StatusCode};
use serde_json::{Value, json};

use super::{Call, decode};
use crate::authz::Question;
use crate::http::{self as responses, Body};
use crate::user::{AUTHENTICATED, User};

pub(super) async fn handle(mut call: Call) -> Result<Response<Body>, Error> {
    let resource = call.resource.clone();
    if resource.plural == "componentstatuses" {
        let list =
            json!({"kind": "ComponentStatusList", "apiVersion": "v1", "metadata": {}, "items": []});
        return Ok(responses::json(StatusCode::OK, &list));
    }
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
    let status = match resource.kind {
        "SubjectAccessReview" => access(&call, &review["spec"], &subject(&review["spec"])?)?,
        "LocalSubjectAccessReview" => {
            if review["spec"]["resourceAttributes"]["namespace"] != call.target.namespace.as_str() {
                return Err(Error::bad_request(format!(
                    "spec.resourceAttributes.namespace must match namespace: {}",
                    call.target.namespace
                )));
            }
            access(&call, &review["spec"], &subject(&review["spec"])?)?
        }
        "SelfSubjectAccessReview" => access(&call, &review["spec"], &call.user)?,
        "SelfSubjectRulesReview" => rules(
            &call,
            review["spec"]["namespace"].as_str().unwrap_or_default(),
        ),
        "SelfSubjectReview" => json!({"userInfo": user_info(&call.user)}),
        "TokenReview" => token(&call, &review["spec"]).await,
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

fn subject(spec: &Value) -> Result<User, Error> {
    let user = User {
        name: spec["user"].as_str().unwrap_or_default().to_owned(),
        groups: strings(&spec["groups"]),
        ..User::default()
    };
    if user.name.is_empty() && user.groups.is_empty() {
        return Err(Error::bad_request(
            "spec.user: Invalid value: \"\": at least one of user or group must be specified",
        ));
    }
    Ok(user)
}

fn access(call: &Call, spec: &Value, user: &User) -> Result<Value, Error> {
    let text = |v: &Value, field: &str| v[field].as_str().unwrap_or_default().to_owned();
    let (resource, path) = (&spec["resourceAttributes"], &spec["nonResourceAttributes"]);
    let question = match (resource.is_object(), path.is_object()) {
        (true, false) => Question {
            verb: text(resource, "verb"),
            group: text(resource, "group"),
            resource: text(resource, "resource"),
            subresource: text(resource, "subresource"),
            namespace: text(resource, "namespace"),
            name: text(resource, "name"),
            path: String::new(),
        },
        (false, true) => Question {
            verb: text(path, "verb"),
            path: text(path, "path"),
            ..Question::default()
        },
        _ => {
            return Err(Error::bad_request(
                "exactly one of nonResourceAttributes or resourceAttributes must be specified",
            ));
        }
    };
    Ok(match call.server.authorizer.allows(user, &question) {
        Some(reason) if reason.is_empty() => json!({"allowed": true}),
        Some(reason) => json!({"allowed": true, "reason": reason}),
        None => json!({"allowed": false}),
    })
}

fn rules(call: &Call, namespace: &str) -> Value {
    let (mut resources, mut paths) = (Vec::new(), Vec::new());
    for rule in call.server.authorizer.rules(&call.user, namespace) {
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
    json!({"resourceRules": resources, "nonResourceRules": paths, "incomplete": false})
}

fn user_info(user: &User) -> Value {
    let mut info = json!({"username": user.name, "groups": user.groups});
    if !user.uid.is_empty() {
        info["uid"] = user.uid.clone().into();
    }
    if !user.extra.is_empty() {
        info["extra"] = json!(user.extra);
    }
    info
}

async fn token(call: &Call, spec: &Value) -> Value {
    let mut audiences = strings(&spec["audiences"]);
    if audiences.is_empty() {
        audiences = call.server.authenticator.audiences().to_vec();
    }
    let token = spec["token"].as_str().unwrap_or_default();
    match call.server.authenticator.token(token, &audiences).await {
        Some(found) => {
            let mut user = found.user;
            if !user.is_in(AUTHENTICATED) {
                user.groups.push(AUTHENTICATED.into());
            }
            json!({"authenticated": true, "user": user_info(&user), "audiences": found.audiences})
        }
        None => json!({"authenticated": false, "user": {}, "error": "invalid bearer token"}),
    }
}
