//! Webhooks and policies from files.

use fluyt_apiserver::{Feature, Features};
use http::Request;
use http_body_util::{BodyExt as _, Full};

use super::*;
use crate::common::service::{Service, eventually};

const GROUP: &str = "/apis/admissionregistration.k8s.io/v1";
const MAPS: &str = "/api/v1/namespaces/n/configmaps";

/// A policy that is bound, of the first letter `V` or `M`.
fn policy(kind: &str, name: &str, group: &str, resource: &str, spec: Value) -> String {
    let version = "admissionregistration.k8s.io/v1";
    let mut policy = json!({"apiVersion": version, "kind": kind, "metadata": {"name": name}, "spec": {
        "matchConstraints": {"resourceRules": [{"apiGroups": [group], "apiVersions": ["*"],
            "operations": ["CREATE"], "resources": [resource]}]}}});
    for (field, value) in spec.as_object().unwrap() {
        policy["spec"][field] = value.clone();
    }
    let mut binding = json!({"apiVersion": version, "kind": format!("{kind}Binding"), "metadata": {"name": name},
        "spec": {"policyName": name}});
    if kind.starts_with('V') {
        binding["spec"]["validationActions"] = json!(["Deny"]);
    }
    format!("{policy}\n---\n{binding}\n")
}

/// Refuses objects that are called `bad`.
fn refusing(name: &str, group: &str, resource: &str, message: &str) -> String {
    let validation = json!({"expression": "object.metadata.name != 'bad'", "message": message});
    let spec = json!({"validations": [validation]});
    policy("ValidatingAdmissionPolicy", name, group, resource, spec)
}

struct Files {
    api: Api,
    directory: TempDir,
}

impl Files {
    /// Of each plugin with the contents of a file.
    async fn start(plugins: &[(&str, &str)]) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let configured = plugins.iter().map(|(plugin, content)| {
            let place = directory.path().join(plugin);
            std::fs::create_dir(&place).unwrap();
            std::fs::write(place.join("a.yaml"), content).unwrap();
            let kind = match *plugin {
                "ValidatingAdmissionWebhook" => "WebhookAdmissionConfiguration".to_owned(),
                policy => format!("{policy}Configuration"),
            };
            json!({"name": plugin, "configuration": {"apiVersion": "apiserver.config.k8s.io/v1", "kind": kind,
                "staticManifestsDir": place.to_str().unwrap()}})
        });
        let configured: Vec<Value> = configured.collect();
        let file = configuration(directory.path(), &configured.into());
        let api = Api::configured(|config, _| {
            config.features =
                Features::default().with(Feature::ManifestBasedAdmissionControlConfig);
            config.admission.configuration = AdmissionConfiguration::load(&file).unwrap();
        })
        .await;
        api.namespace().await;
        Self { api, directory }
    }

    fn write(&self, plugin: &str, content: &str) {
        let place = self.directory.path().join(plugin);
        std::fs::write(place.join("a.yaml"), content).unwrap();
    }

    /// Why a config map of this name is refused, if it is. It is not made.
    async fn refused(&self, name: &str) -> Option<String> {
        let map = json!({"metadata": {"name": name}});
        let (_, body) = self.api.post(&format!("{MAPS}?dryRun=All"), map).await;
        body["message"].as_str().map(str::to_owned)
    }

    async fn metrics(&self) -> String {
        let mut request = Request::get("/metrics").body(Full::default()).unwrap();
        request.extensions_mut().insert(self.api.user.clone());
        let response = self.api.server.handle(request).await;
        let bytes = response.into_body().collect().await.unwrap().to_bytes();
        String::from_utf8(bytes.to_vec()).unwrap()
    }
}

#[tokio::test]
async fn policies_of_files_are_at_work_and_change_with_them() {
    let plugin = "ValidatingAdmissionPolicy";
    let name = "maps.static.k8s.io";
    let first = refusing(name, "", "configmaps", "first");
    let files = Files::start(&[(plugin, &first)]).await;
    let denied = |message: &str| {
        Some(format!(
            "configmaps \"bad\" is forbidden: ValidatingAdmissionPolicy '{name}' with binding '{name}' denied request: {message}"
        ))
    };
    assert_eq!(files.refused("bad").await, denied("first"));
    assert_eq!(files.refused("good").await, None);
    // What makes no sense changes nothing, and is told.
    files.write(plugin, "kind: Pod");
    let failures = async |status: &str| {
        let metrics = files.metrics().await;
        let name = "apiserver_manifest_admission_config_controller_automatic_reloads_total";
        let labels = format!("plugin=\"{plugin}\",status=\"{status}\"");
        let mut lines = metrics.lines().filter(|l| l.starts_with(name));
        let count = lines.rfind(|l| l.contains(&labels));
        count.map_or(0, |l| l.rsplit(' ').next().unwrap().parse().unwrap())
    };
    assert!(eventually(async || failures("failure").await == 1).await);
    assert_eq!(files.refused("bad").await, denied("first"));
    files.write(plugin, &refusing(name, "", "configmaps", "second"));
    assert!(eventually(async || files.refused("bad").await == denied("second")).await);
    assert_eq!(failures("success").await, 2);
    std::fs::remove_file(files.directory.path().join(plugin).join("a.yaml")).unwrap();
    assert!(eventually(async || files.refused("bad").await.is_none()).await);
    let metrics = files.metrics().await;
    let info = "apiserver_manifest_admission_config_controller_last_config_info{apiserver_id_hash=\"sha256:";
    let info = metrics.lines().find(|l| l.starts_with(info)).unwrap();
    assert!(
        info.ends_with(&format!("hash=\"\",plugin=\"{plugin}\"}} 1")),
        "{info}"
    );
}

#[tokio::test]
async fn policies_of_files_judge_what_configures_admission() {
    let group = "admissionregistration.k8s.io";
    let policies = refusing("own.static.k8s.io", group, "*", "not this one");
    let label = json!({"mutations": [{"patchType": "ApplyConfiguration", "applyConfiguration":
        {"expression": "Object{metadata: Object.metadata{labels: {'by': 'file'}}}"}}],
        "reinvocationPolicy": "Never"});
    let labelling = policy(
        "MutatingAdmissionPolicy",
        "label.static.k8s.io",
        "",
        "configmaps",
        label,
    );
    let files = Files::start(&[
        ("ValidatingAdmissionPolicy", &policies),
        ("MutatingAdmissionPolicy", &labelling),
    ])
    .await;
    let api = &files.api;
    let bound = |name: &str| json!({"metadata": {"name": name}, "spec": {"policyName": "p", "validationActions": ["Deny"]}});
    let bindings = format!("{GROUP}/validatingadmissionpolicybindings");
    assert_eq!(
        api.post(&bindings, bound("good")).await.0,
        StatusCode::CREATED
    );
    let (code, refused) = api.post(&bindings, bound("bad")).await;
    assert_eq!(code, 422, "{refused}");
    let message = refused["message"].as_str().unwrap();
    assert!(
        message.ends_with("denied request: not this one"),
        "{message}"
    );
    // Their names are theirs.
    let (code, refused) = api.post(&bindings, bound("x.static.k8s.io")).await;
    assert_eq!(code, 422);
    let cause = &refused["details"]["causes"][0];
    assert_eq!(cause["field"], "metadata.name");
    assert_eq!(
        cause["message"],
        "Invalid value: \"x.static.k8s.io\": names ending with \".static.k8s.io\" are reserved for static manifest-based configurations and cannot be managed via the API"
    );
    let map = json!({"metadata": {"name": "m"}});
    let (_, made) = api.post(MAPS, map).await;
    assert_eq!(made["metadata"]["labels"], json!({"by": "file"}));
}

#[tokio::test]
async fn webhooks_of_files_are_asked() {
    let service = Service::start(|_, review| {
        let allowed = review["request"]["name"] != "bad";
        let response = json!({"uid": review["request"]["uid"], "allowed": allowed});
        let review = json!({"apiVersion": "admission.k8s.io/v1", "kind": "AdmissionReview", "response": response});
        (200, review)
    })
    .await;
    use base64::Engine as _;
    let bundle = base64::engine::general_purpose::STANDARD.encode(&service.ca_pem);
    let hooks = json!({"apiVersion": "admissionregistration.k8s.io/v1", "kind": "ValidatingWebhookConfiguration",
        "metadata": {"name": "hooks.static.k8s.io"}, "webhooks": [{"name": "hook.example.com", "sideEffects": "None",
        "clientConfig": {"url": service.url(), "caBundle": bundle}, "admissionReviewVersions": ["v1"],
        "rules": [{"apiGroups": ["*"], "apiVersions": ["*"], "operations": ["CREATE", "DELETE"],
            "resources": ["configmaps", "validatingwebhookconfigurations"]}]}]});
    let files = Files::start(&[("ValidatingAdmissionWebhook", &hooks.to_string())]).await;
    let refused = "admission webhook \"hook.example.com\" denied the request without explanation";
    assert_eq!(files.refused("bad").await.as_deref(), Some(refused));
    assert_eq!(files.refused("good").await, None);
    // Those of the API are not asked about that.
    let own = json!({"metadata": {"name": "bad"}});
    let path = format!("{GROUP}/validatingwebhookconfigurations");
    let (_, body) = files.api.post(&path, own).await;
    assert_eq!(body["message"], refused);
}
