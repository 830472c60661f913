//! Events. Both groups store the same objects, but the newer one validates more.

use std::borrow::Cow;

use serde_json::Value;

use super::{MetaCheck, Strategy, text};
use crate::meta;
use crate::validation::{At, Errors, dns_subdomain, internal, qualified_name};

const MAX_WORD: usize = 128;
const MAX_MESSAGE: usize = 1024;

/// The events of one group.
pub(super) enum Event {
    /// `v1`, with what the oldest clients send.
    Core,
    /// `events.k8s.io`.
    Events,
}

/// What may not change, in upstream's order; objects have types. The time has its own rule, after `type`.
const IMMUTABLE: [(&str, &str); 9] = [
    ("involvedObject", REFERENCE),
    ("reason", ""),
    ("message", ""),
    ("source", "io.k8s.api.core.v1.EventSource"),
    ("firstTimestamp", NULLABLE),
    ("lastTimestamp", NULLABLE),
    ("count", ""),
    ("reason", ""),
    ("type", ""),
];

const REFERENCE: &str = "io.k8s.api.core.v1.ObjectReference";

/// Where nothing is null, and not the empty string.
const NULLABLE: &str = "null";

/// A field that must keep its value, and how it is shown.
fn immutable(new: &At<'_, '_>, old: &Value, ty: &str, errors: &mut Errors) {
    const DETAIL: &str = "field is immutable";
    if new.value() == old {
        return;
    }
    match ty {
        "" => errors.bad(new, DETAIL),
        NULLABLE => errors.invalid(new, new.value(), DETAIL),
        _ => errors.invalid_as(new, &internal(ty, new.value()), DETAIL),
    }
}

impl Event {
    fn validate_basics(&self, event: &At<'_, '_>, errors: &mut Errors) {
        let controller = match self {
            Self::Core => "reportingComponent",
            Self::Events => "reportingController",
        };
        let own = meta::namespace(event.value());
        let involved = event.field("involvedObject");
        let namespace = involved.field("namespace");
        let is_new = event.field("eventTime").is_set();
        let agrees = match (namespace.str(), is_new) {
            ("", true) => ["default", "kube-system"].contains(&own),
            ("", false) => ["", "default"].contains(&own),
            (_, true) => true,
            (involved, false) => involved == own,
        };
        if !agrees {
            let detail = "does not match event.namespace";
            errors.invalid_text(namespace, namespace.str(), detail);
        }
        if is_new {
            let by = event.place(controller, event.get("reportingComponent"));
            if by.is_empty() {
                errors.required(by, "");
            }
            errors.problems(&by, qualified_name(by.str()));
            word(event, "reportingInstance", MAX_WORD, errors);
            word(event, "action", MAX_WORD, errors);
            word(event, "reason", MAX_WORD, errors);
            let message = event.field("message");
            if message.str().len() > MAX_MESSAGE {
                too_long(&message, MAX_MESSAGE, errors);
            }
        }
        for problem in dns_subdomain(own) {
            errors.invalid_text("namespace", own, &problem);
        }
    }
}

/// A word that has to be there and must not be too long.
fn word(event: &At<'_, '_>, field: &str, max: usize, errors: &mut Errors) {
    let at = event.field(field);
    if at.is_empty() {
        errors.required(at, "");
    }
    if at.str().len() > max {
        too_long(&at, max, errors);
    }
}

fn too_long(at: &At<'_, '_>, max: usize, errors: &mut Errors) {
    errors.invalid_text(at, "", &format!("can have at most {max} characters"));
}

fn validate_series(event: &At<'_, '_>, errors: &mut Errors) {
    let series = event.field("series");
    if !series.is_set() {
        return;
    }
    let count = series.field("count");
    if count.int().unwrap_or(0) < 2 {
        errors.invalid_text(count, "", "should be at least 2");
    }
    let last = series.field("lastObservedTime");
    if !last.is_set() {
        errors.required(last, "");
    }
}

impl Strategy for Event {
    fn prepare_create(&self, _object: &mut Value) {}

    fn prepare_update(&self, _object: &mut Value, _old: &Value) {}

    fn validate(&self, object: &Value, errors: &mut Errors) {
        let event = At::root(object);
        self.validate_basics(&event, errors);
        if matches!(self, Self::Core) {
            return;
        }
        validate_series(&event, errors);
        let (time, ty) = (event.field("eventTime"), event.field("type"));
        if !time.is_set() {
            errors.required(time, "");
        }
        if !["Normal", "Warning"].contains(&ty.str()) {
            errors.invalid_text(ty, "", &format!("has invalid value: {}", ty.str()));
        }
        for field in ["firstTimestamp", "lastTimestamp", "count", "source"] {
            let at = event.field(field);
            if !at.is_empty() && at.int() != Some(0) {
                errors.invalid_text(at, "", "needs to be unset");
            }
        }
    }

    fn validate_on_update(&self, object: &Value, old: &Value, errors: &mut Errors) {
        let (event, old) = (At::root(object), At::root(old));
        self.validate_basics(&event, errors);
        if matches!(self, Self::Core) {
            return;
        }
        if event.get("series") != old.get("series") {
            validate_series(&event, errors);
        }
        for (field, ty) in IMMUTABLE {
            immutable(&event.field(field), old.get(field), ty, errors);
        }
        let microseconds = |at: &At<'_, '_>| {
            at.text("eventTime")
                .parse::<jiff::Timestamp>()
                .ok()
                .map(jiff::Timestamp::as_microsecond)
        };
        if microseconds(&event) != microseconds(&old) {
            immutable(
                &event.field("eventTime"),
                old.get("eventTime"),
                NULLABLE,
                errors,
            );
        }
        immutable(&event.field("action"), old.get("action"), "", errors);
        let related = event.field("related");
        let ty = if related.is_set() {
            REFERENCE
        } else {
            NULLABLE
        };
        immutable(&related, old.get("related"), ty, errors);
        let controller = event.place("reportingController", event.get("reportingComponent"));
        immutable(&controller, old.get("reportingComponent"), "", errors);
        let instance = event.field("reportingInstance");
        immutable(&instance, old.get("reportingInstance"), "", errors);
    }

    fn has_standard_finalizers(&self) -> bool {
        matches!(self, Self::Events)
    }

    fn metadata_on_update(&self) -> &'static [MetaCheck] {
        match self {
            Self::Core => &[],
            Self::Events => &[MetaCheck::Update],
        }
    }

    fn generation_of(&self) -> &'static [&'static str] {
        &[]
    }

    fn allow_create_on_update(&self) -> bool {
        true
    }

    fn selectable_fields(&self) -> &'static [&'static str] {
        &[
            "involvedObject.kind",
            "involvedObject.namespace",
            "involvedObject.name",
            "involvedObject.uid",
            "involvedObject.apiVersion",
            "involvedObject.resourceVersion",
            "involvedObject.fieldPath",
            "regarding.kind",
            "regarding.namespace",
            "regarding.name",
            "regarding.uid",
            "reason",
            "reportingComponent",
            "reportingController",
            "source",
            "type",
        ]
    }

    fn field<'a>(&self, object: &'a Value, field: &str) -> Option<Cow<'a, str>> {
        Some(match field {
            "involvedObject.kind" | "regarding.kind" => text(object, "/involvedObject/kind"),
            "involvedObject.namespace" | "regarding.namespace" => {
                text(object, "/involvedObject/namespace")
            }
            "involvedObject.name" | "regarding.name" => text(object, "/involvedObject/name"),
            "involvedObject.uid" | "regarding.uid" => text(object, "/involvedObject/uid"),
            "involvedObject.apiVersion" => text(object, "/involvedObject/apiVersion"),
            "involvedObject.resourceVersion" => text(object, "/involvedObject/resourceVersion"),
            "involvedObject.fieldPath" => text(object, "/involvedObject/fieldPath"),
            "reason" => text(object, "/reason"),
            "reportingComponent" | "reportingController" => text(object, "/reportingComponent"),
            "source" => match text(object, "/source/component") {
                Cow::Borrowed("") => text(object, "/reportingComponent"),
                component => component,
            },
            "type" => text(object, "/type"),
            _ => return None,
        })
    }
}
