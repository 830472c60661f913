//! Reading a directory: its files in order of their names, the documents in them, and what makes sense of these.

use std::collections::HashMap;
use std::io;
use std::path::Path;

use fluyt_api::decode::conform;
use fluyt_api::resources::{self, Resource};
use fluyt_api::schema::Schema;
use fluyt_api::validation::{self, Errors};
use fluyt_api::{meta, strategy};
use serde_json::Value;

use super::{Kind, SUFFIX, metrics};
use crate::config_file::{DecodeError, parse, strict};

const GROUP: &str = "admissionregistration.k8s.io";

/// What is in the files of a directory, in order of the names of objects.
#[derive(Debug, Default)]
pub struct Loaded {
    pub objects: Vec<Value>,
    pub bindings: Vec<Value>,
    /// A digest of the files; empty when there is nothing in them.
    pub hash: String,
}

/// What has been read so far.
struct Reading<'a> {
    kind: &'a Kind,
    loaded: Loaded,
    /// In which file which name was, of each resource.
    seen: HashMap<(&'static str, String), String>,
}

/// Reads a directory.
///
/// # Errors
/// What upstream says.
pub(super) fn load(kind: &Kind, directory: &Path) -> Result<Loaded, String> {
    let mut reading = Reading {
        kind,
        loaded: Loaded::default(),
        seen: HashMap::new(),
    };
    let mut all = Vec::new();
    for path in files(directory)? {
        let shown = path.display().to_string();
        let content = std::fs::read(&path).map_err(|error| {
            let why = reason(&error);
            format!("failed to read file {shown:?}: open {shown}: {why}")
        })?;
        if content.is_empty() {
            continue;
        }
        all.extend_from_slice(&content);
        all.push(0);
        let text = str::from_utf8(&content)
            .map_err(|error| format!("error loading {shown}: yaml: {error}"))?;
        let documents = documents(text)
            .map_err(|why| format!("failed to split YAML documents in file {shown:?}: {why}"))?;
        for document in documents {
            let read = reading.document(document.trim(), &shown);
            read.map_err(|why| format!("error loading {shown}: {why}"))?;
        }
    }
    let mut loaded = reading.loaded;
    for binding in &loaded.bindings {
        let policy = &binding["spec"]["policyName"];
        if !loaded.objects.iter().any(|o| meta::name(o) == *policy) {
            return Err(format!(
                "binding {:?} references policy {policy} which does not exist in the manifest directory",
                meta::name(binding)
            ));
        }
    }
    for objects in [&mut loaded.objects, &mut loaded.bindings] {
        objects.sort_by(|a, b| meta::name(a).cmp(meta::name(b)));
    }
    if !all.is_empty() {
        loaded.hash = metrics::digest(&all);
    }
    Ok(loaded)
}

/// The files that count, in order of their names.
fn files(directory: &Path) -> Result<Vec<std::path::PathBuf>, String> {
    let shown = directory.display().to_string();
    let failed = |error: io::Error| {
        let why = reason(&error);
        format!("failed to read manifest directory {shown:?}: open {shown}: {why}")
    };
    let mut files = Vec::new();
    for entry in std::fs::read_dir(directory).map_err(failed)? {
        let entry = entry.map_err(failed)?;
        let path = entry.path();
        let extension = path.extension().unwrap_or_default().to_ascii_lowercase();
        let counts = ["yaml", "yml", "json"].iter().any(|e| extension == *e);
        if counts && !entry.file_type().map_err(failed)?.is_dir() {
            files.push(path);
        }
    }
    files.sort();
    Ok(files)
}

/// The documents of a file.
fn documents(text: &str) -> Result<Vec<String>, String> {
    let mut all = vec![String::new()];
    for line in text.split_inclusive('\n') {
        if let Some(rest) = line.strip_prefix("---") {
            let rest = rest.trim();
            if !rest.is_empty() && !rest.starts_with('#') {
                return Err(format!("invalid Yaml document separator: {rest}"));
            }
            all.push(String::new());
        } else if let Some(last) = all.last_mut() {
            last.push_str(line);
        }
    }
    all.retain(|document| !document.trim().is_empty());
    Ok(all)
}

/// Why a file cannot be read, in Go's words.
pub(super) fn reason(error: &io::Error) -> String {
    match error.kind() {
        io::ErrorKind::NotFound => "no such file or directory".to_owned(),
        io::ErrorKind::PermissionDenied => "permission denied".to_owned(),
        io::ErrorKind::NotADirectory => "not a directory".to_owned(),
        _ => error.to_string(),
    }
}

// === impl Reading ===

impl Reading<'_> {
    fn document(&mut self, text: &str, file: &str) -> Result<(), String> {
        let (document, problems) = parse(text).map_err(|error| error.to_string())?;
        self.object(document, text, problems, file)
    }

    /// An object, or each of a list.
    fn object(
        &mut self,
        mut object: Value,
        text: &str,
        problems: Vec<String>,
        file: &str,
    ) -> Result<(), String> {
        let word = |field: &str| object[field].as_str().unwrap_or_default().to_owned();
        let (version, kind) = (word("apiVersion"), word("kind"));
        if (version.as_str(), kind.as_str()) == ("v1", "List") {
            for item in items(&mut object) {
                let text = item.to_string();
                self.recognize(&item, &text)
                    .map_err(|why| format!("failed to decode list item: {why}"))?;
                self.object(item, &text, Vec::new(), file)?;
            }
            return Ok(());
        }
        self.recognize(&object, text)?;
        if let Some(of) = kind.strip_suffix("List") {
            for mut item in items(&mut object) {
                item["apiVersion"] = version.clone().into();
                item["kind"] = of.into();
                self.accept(item, Vec::new(), file)?;
            }
            return Ok(());
        }
        self.accept(object, problems, file)
    }

    /// Whether an object is of a kind that upstream's decoder knows.
    fn recognize(&self, object: &Value, text: &str) -> Result<(), String> {
        let word = |field: &str| object[field].as_str().unwrap_or_default();
        let (version, kind) = (word("apiVersion"), word("kind"));
        let of = kind.strip_suffix("List").unwrap_or(kind);
        let mut known = ["v1", "v1beta1", "v1alpha1"].into_iter().filter(|v| {
            format!("{GROUP}/{v}") == version && resources::type_of(GROUP, v, of).is_some()
        });
        if kind.is_empty() {
            Err(format!("Object 'Kind' is missing in '{text}'"))
        } else if version.is_empty() {
            Err(format!("Object 'apiVersion' is missing in '{text}'"))
        } else if known.next().is_some() || (version, kind) == ("v1", "List") {
            Ok(())
        } else {
            let scheme = self.kind.scheme;
            Err(format!(
                "no kind {kind:?} is registered for version {version:?} in scheme {scheme:?}"
            ))
        }
    }

    /// The resource of an object, if the plugin has to do with it.
    fn resource(&self, object: &Value) -> Result<&'static Resource, String> {
        let word = |field: &str| object[field].as_str().unwrap_or_default();
        let (version, kind) = (word("apiVersion"), word("kind"));
        let plurals = std::iter::once(self.kind.plural).chain(self.kind.bindings);
        let mut own = plurals.filter_map(|plural| resources::find(GROUP, "v1", plural));
        own.find(|r| r.kind == kind && r.api_version() == version)
            .ok_or_else(|| {
                let version = version.rsplit('/').next().unwrap_or_default();
                format!("unsupported resource type *{version}.{kind}")
            })
    }

    /// Takes an object in, filled in and checked.
    fn accept(
        &mut self,
        mut object: Value,
        problems: Vec<String>,
        file: &str,
    ) -> Result<(), String> {
        let resource = self.resource(&object)?;
        if let Some(ty) = resource.ty {
            let unknown = conform(Schema::builtin(), ty, &mut object)?.unknown;
            strict(problems, &unknown).map_err(|error: DecodeError| error.to_string())?;
        }
        let strategy = strategy::of(resource.group, resource.kind);
        crate::registry::apply_defaults(resource, strategy, &mut object);
        let mut errors = Errors::default();
        validation::object_meta(&mut errors, &object, false, strategy.name_rule());
        strategy.validate(&object, &mut errors);
        crate::admission::validate_configuration(resource, &object, None, &mut errors);
        let name = meta::name(&object).to_owned();
        let kind = resource.kind;
        if let Some(why) = crate::validation::sentence(&errors) {
            return Err(format!("{kind} {name:?}: {why}"));
        }
        self.name(resource.plural, &name, file)?;
        if Some(resource.plural) == self.kind.bindings {
            binding(&object, &name)?;
            self.loaded.bindings.push(object);
        } else {
            webhooks(&object, &name, file)?;
            if !object["spec"]["paramKind"].is_null() {
                return Err(format!(
                    "{kind} {name:?}: spec.paramKind is not supported for static manifests"
                ));
            }
            self.loaded.objects.push(object);
        }
        Ok(())
    }

    /// Names are of the kind that is for files, and there once.
    fn name(&mut self, plural: &'static str, name: &str, file: &str) -> Result<(), String> {
        if name.is_empty() {
            return Err(format!("resource in file {file:?} must have a name"));
        }
        if !name.ends_with(SUFFIX) {
            return Err(format!(
                "{name:?} in file {file:?} must have a name ending with {SUFFIX:?}"
            ));
        }
        let key = (plural, name.to_owned());
        match self.seen.insert(key, file.to_owned()) {
            None => Ok(()),
            Some(before) => Err(format!(
                "duplicate name {name:?} found in file {file:?} (previously seen in {before:?})"
            )),
        }
    }
}

fn items(list: &mut Value) -> Vec<Value> {
    match list["items"].take() {
        Value::Array(items) => items,
        _ => Vec::new(),
    }
}

/// Services are objects of the API, which may not be there yet.
fn webhooks(configuration: &Value, name: &str, file: &str) -> Result<(), String> {
    let webhooks = configuration["webhooks"].as_array();
    for webhook in webhooks.into_iter().flatten() {
        let client = &webhook["clientConfig"];
        let of = webhook["name"].as_str().unwrap_or_default();
        let place = format!("webhook {of:?} in {name:?} (file {file:?})");
        if client["service"].is_object() {
            return Err(format!(
                "{place}: clientConfig.service is not supported for static manifests; use clientConfig.url instead"
            ));
        }
        if client["url"].as_str().unwrap_or_default().is_empty() {
            return Err(format!(
                "{place}: clientConfig.url is required for static manifests"
            ));
        }
    }
    Ok(())
}

/// So are the parameters of policies.
fn binding(binding: &Value, name: &str) -> Result<(), String> {
    let policy = binding["spec"]["policyName"].as_str().unwrap_or_default();
    if policy.is_empty() {
        return Err(format!(
            "binding {name:?} must reference a policy (spec.policyName)"
        ));
    }
    if !policy.ends_with(SUFFIX) {
        return Err(format!(
            "binding {name:?}: spec.policyName {policy:?} must end with {SUFFIX:?}"
        ));
    }
    if !binding["spec"]["paramRef"].is_null() {
        return Err(format!(
            "binding {name:?}: spec.paramRef is not supported for static manifests"
        ));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::admission::{policy, webhook};

    /// Reads files of these contents.
    fn read(kind: &Kind, files: &[(&str, &str)]) -> Result<Loaded, String> {
        let directory = tempfile::tempdir().unwrap();
        for (name, content) in files {
            std::fs::write(directory.path().join(name), content).unwrap();
        }
        let place = format!("{}/", directory.path().display());
        load(kind, directory.path()).map_err(|why| why.replace(&place, ""))
    }

    fn webhook_of(name: &str, client: &str) -> String {
        format!(
            "apiVersion: {GROUP}/v1\nkind: ValidatingWebhookConfiguration\nmetadata: {{name: {name}}}\nwebhooks:\n- {{name: w.example.com, sideEffects: None, admissionReviewVersions: [v1], clientConfig: {client}}}\n"
        )
    }

    fn policy_of(name: &str, more: &str) -> String {
        format!(
            "apiVersion: {GROUP}/v1\nkind: ValidatingAdmissionPolicy\nmetadata: {{name: {name}}}\nspec:\n  validations: [{{expression: 'true'}}]\n  matchConstraints: {{resourceRules: [{{apiGroups: [''], apiVersions: [v1], operations: ['*'], resources: [pods]}}]}}\n{more}"
        )
    }

    fn binding_of(name: &str, policy: &str, more: &str) -> String {
        format!(
            "apiVersion: {GROUP}/v1\nkind: ValidatingAdmissionPolicyBinding\nmetadata: {{name: {name}}}\nspec: {{policyName: {policy}, validationActions: [Deny]{more}}}\n"
        )
    }

    const URL: &str = "{url: 'https://127.0.0.1/'}";

    #[test]
    fn files_are_read_in_order_and_filled_in() {
        let b = webhook_of("b.static.k8s.io", URL);
        let a = webhook_of("a.static.k8s.io", URL);
        let a = a.trim().replace('\n', "\n  ");
        let both = format!("---\n{b}--- # more\nkind: List\napiVersion: v1\nitems:\n- {a}");
        let files = [("1.yaml", &*both), ("2.txt", "no manifest"), ("3.JSON", "")];
        let loaded = read(&webhook::VALIDATING, &files).unwrap();
        let names: Vec<&str> = loaded.objects.iter().map(meta::name).collect();
        assert_eq!(names, ["a.static.k8s.io", "b.static.k8s.io"]);
        assert_eq!(loaded.objects[0]["webhooks"][0]["timeoutSeconds"], 10);
        assert_eq!(loaded.hash, metrics::digest(format!("{both}\0").as_bytes()));
        assert_eq!(read(&webhook::VALIDATING, &[]).unwrap().hash, "");
        // A comment alone is a document, as it is upstream.
        let commented = format!("# nothing\n{both}");
        let why = read(&webhook::VALIDATING, &[("1.yaml", &commented)]).unwrap_err();
        assert!(
            why.starts_with("error loading 1.yaml: Object 'Kind' is missing"),
            "{why}"
        );
    }

    #[test]
    fn bytes_that_are_no_text_are_refused() {
        let directory = tempfile::tempdir().unwrap();
        std::fs::write(directory.path().join("a.yaml"), b"kind: \xff").unwrap();
        let why = load(&webhook::VALIDATING, directory.path()).unwrap_err();
        assert!(why.contains("a.yaml: yaml: invalid utf-8"), "{why}");
    }

    #[test]
    fn webhooks_that_make_no_sense_are_refused() {
        let refused = |text: &str| read(&webhook::VALIDATING, &[("w.yaml", text)]).unwrap_err();
        let name = "a.static.k8s.io";
        for (text, why) in [
            (
                webhook_of("a", URL),
                "\"a\" in file \"w.yaml\" must have a name ending with \".static.k8s.io\"",
            ),
            (
                webhook_of(name, "{service: {name: s, namespace: ns}}"),
                "webhook \"w.example.com\" in \"a.static.k8s.io\" (file \"w.yaml\"): clientConfig.service is not supported for static manifests; use clientConfig.url instead",
            ),
            (
                webhook_of(name, "{}"),
                "ValidatingWebhookConfiguration \"a.static.k8s.io\": webhooks[0].clientConfig: Required value: exactly one of url or service is required",
            ),
            (
                webhook_of(name, URL) + "other: 1\n",
                "strict decoding error: unknown field \"other\"",
            ),
            (
                webhook_of(name, URL).replace("Validating", "Mutating"),
                "unsupported resource type *v1.MutatingWebhookConfiguration",
            ),
            (
                "apiVersion: v1\nkind: Pod\n".to_owned(),
                "no kind \"Pod\" is registered for version \"v1\" in scheme \"k8s.io/kubernetes/pkg/admission/plugin/webhook/manifest/loader/loader.go:41\"",
            ),
        ] {
            let shown = refused(&text);
            assert_eq!(
                shown.strip_prefix("error loading w.yaml: "),
                Some(why),
                "{shown}"
            );
        }
        assert_eq!(
            refused("--- a\n"),
            "failed to split YAML documents in file \"w.yaml\": invalid Yaml document separator: a"
        );
        let twice = webhook_of(name, URL);
        let why = read(
            &webhook::VALIDATING,
            &[("1.yaml", &twice), ("2.yaml", &twice)],
        );
        assert_eq!(
            why.unwrap_err(),
            "error loading 2.yaml: duplicate name \"a.static.k8s.io\" found in file \"2.yaml\" (previously seen in \"1.yaml\")"
        );
    }

    #[test]
    fn policies_are_bound_in_their_directory() {
        let (policy, bound) = ("p.static.k8s.io", "b.static.k8s.io");
        let both = policy_of(policy, "") + "---\n" + &binding_of(bound, policy, "");
        let loaded = read(&policy::VALIDATING, &[("p.yml", &both)]).unwrap();
        assert_eq!(meta::name(&loaded.objects[0]), policy);
        assert_eq!(meta::name(&loaded.bindings[0]), bound);
        let refused = |text: &str| read(&policy::VALIDATING, &[("p.yaml", text)]).unwrap_err();
        assert_eq!(
            refused(&binding_of(bound, policy, "")),
            "binding \"b.static.k8s.io\" references policy \"p.static.k8s.io\" which does not exist in the manifest directory"
        );
        assert_eq!(
            refused(&binding_of(bound, "p", "")),
            "error loading p.yaml: binding \"b.static.k8s.io\": spec.policyName \"p\" must end with \".static.k8s.io\""
        );
        let reference = ", paramRef: {name: x, parameterNotFoundAction: Deny}";
        assert_eq!(
            refused(&binding_of(bound, policy, reference)),
            "error loading p.yaml: binding \"b.static.k8s.io\": spec.paramRef is not supported for static manifests"
        );
        let kind = "  paramKind: {apiVersion: v1, kind: ConfigMap}\n";
        assert_eq!(
            refused(&policy_of(policy, kind)),
            "error loading p.yaml: ValidatingAdmissionPolicy \"p.static.k8s.io\": spec.paramKind is not supported for static manifests"
        );
    }
}
