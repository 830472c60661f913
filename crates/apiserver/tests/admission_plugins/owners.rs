//! `OwnerReferencesPermissionEnforcement`.

use super::*;
use fluyt_apiserver::User;
use http::Method;

const MAPS: &str = "/api/v1/namespaces/n/configmaps";

/// Grants verbs on resources of the core group in the namespace to the user `u`.
async fn grant(api: &Api, name: &str, resource: &str, verbs: &[&str]) {
    const RBAC: &str = "/apis/rbac.authorization.k8s.io/v1/namespaces/n";
    let rule = json!({"apiGroups": [""], "resources": [resource], "verbs": verbs});
    let role = json!({"metadata": {"name": name}, "rules": [rule]});
    made(api.post(&format!("{RBAC}/roles"), role).await);
    let binding = json!({"metadata": {"name": name},
        "subjects": [{"kind": "User", "name": "u", "apiGroup": "rbac.authorization.k8s.io"}],
        "roleRef": {"kind": "Role", "name": name, "apiGroup": "rbac.authorization.k8s.io"}});
    made(api.post(&format!("{RBAC}/rolebindings"), binding).await);
}

fn owned(name: &str, kind: &str, blocks: bool) -> Value {
    json!({"metadata": {"name": name, "ownerReferences": [
        {"apiVersion": "v1", "kind": kind, "name": "owner", "uid": "1", "blockOwnerDeletion": blocks}]}})
}

#[tokio::test]
async fn owners_are_changed_by_whom_it_is_allowed() {
    let strict = Plugged::start(&["OwnerReferencesPermissionEnforcement"], json!([])).await;
    let strict = strict.with_namespace().await;
    let (api, user) = (&strict.api, User::new("u", &[]));
    grant(api, "write", "configmaps", &["create", "patch"]).await;
    let send = async |method: Method, path: &str, body: Value| {
        let format = match method {
            Method::PATCH => "application/merge-patch+json",
            _ => "application/json",
        };
        api.call_as(&user, method, path, format, body).await
    };
    // Whoever creates an object could as well not have done it.
    made(send(Method::POST, MAPS, owned("a", "Secret", false)).await);
    let path = format!("{MAPS}/a");
    let labels = json!({"metadata": {"labels": {"a": "b"}}});
    made(send(Method::PATCH, &path, labels).await);
    let disowned = || json!({"metadata": {"ownerReferences": null}});
    assert_refused(
        send(Method::PATCH, &path, disowned()).await,
        403,
        "configmaps \"a\" is forbidden: cannot set an ownerRef on a resource you can't delete: , <nil>",
    );
    grant(api, "delete", "configmaps", &["delete"]).await;
    made(send(Method::PATCH, &path, disowned()).await);
    let blocking = || owned("b", "Secret", true);
    assert_refused(
        send(Method::POST, MAPS, blocking()).await,
        403,
        "configmaps \"b\" is forbidden: cannot set blockOwnerDeletion if an ownerReference refers to a resource you can't set finalizers on: , <nil>",
    );
    assert_refused(
        send(Method::POST, MAPS, owned("c", "Ship", true)).await,
        403,
        "configmaps \"c\" is forbidden: cannot set blockOwnerDeletion in this case because cannot find RESTMapping for APIVersion v1 Kind Ship: no matches for kind \"Ship\" in version \"v1\"",
    );
    grant(api, "finalize", "secrets/finalizers", &["update"]).await;
    made(send(Method::POST, MAPS, blocking()).await);
}
