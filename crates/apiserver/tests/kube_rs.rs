//! A controller written with kube-rs, as its documentation has them: a derived definition, reflectors, a finalizer,
//! server-side apply of what it owns, a status, events.

use std::sync::Arc;
use std::time::Duration;

use crate::common::Api as Served;
use futures::StreamExt as _;
use k8s_openapi::api::core::v1::ConfigMap;
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::api::{DeleteParams, ListParams, Patch, PatchParams, PostParams};
use kube::runtime::controller::Action;
use kube::runtime::events::{Event, EventType, Recorder, Reporter};
use kube::runtime::finalizer::{self, finalizer};
use kube::runtime::wait::{Condition, await_condition, conditions};
use kube::runtime::{Controller, watcher};
use kube::{Api, Client, CustomResource, CustomResourceExt as _, Resource as _, ResourceExt as _};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::json;

/// No step takes longer.
const PATIENCE: Duration = Duration::from_secs(60);
const FINALIZER: &str = "shops.example.com/cleanup";
const MANAGER: &str = "shopkeeper";

#[derive(CustomResource, Clone, Debug, Deserialize, JsonSchema, Serialize)]
#[kube(
    group = "example.com",
    version = "v1",
    kind = "Shop",
    namespaced,
    status = "ShopStatus",
    shortname = "sh"
)]
struct ShopSpec {
    #[schemars(range(min = 0, max = 9))]
    shelves: i32,
}

#[derive(Clone, Debug, Default, Deserialize, JsonSchema, Serialize)]
struct ShopStatus {
    shelves: i32,
    observed_generation: Option<i64>,
}

struct Context {
    client: Client,
    recorder: Recorder,
}

type Error = finalizer::Error<kube::Error>;

async fn reconcile(shop: Arc<Shop>, context: Arc<Context>) -> Result<Action, Error> {
    let namespace = shop.namespace().unwrap();
    let shops: Api<Shop> = Api::namespaced(context.client.clone(), &namespace);
    finalizer(&shops, FINALIZER, shop, |event| async {
        match event {
            finalizer::Event::Apply(shop) => keep(&shop, &context, &shops).await,
            finalizer::Event::Cleanup(shop) => {
                let note = Event {
                    type_: EventType::Normal,
                    reason: "Closed".into(),
                    note: None,
                    action: "Closing".into(),
                    secondary: None,
                };
                context
                    .recorder
                    .publish(&note, &shop.object_ref(&()))
                    .await?;
                Ok(Action::await_change())
            }
        }
    })
    .await
}

/// Gives a shop its configuration, and says so in its status.
async fn keep(shop: &Shop, context: &Context, shops: &Api<Shop>) -> Result<Action, kube::Error> {
    let maps: Api<ConfigMap> = Api::namespaced(
        context.client.clone(),
        &shop.namespace().unwrap_or_default(),
    );
    let name = shop.name_any();
    let manager = PatchParams::apply(MANAGER);
    let map = json!({
        "apiVersion": "v1", "kind": "ConfigMap",
        "metadata": {"name": name, "ownerReferences": [shop.controller_owner_ref(&())]},
        "data": {"shelves": shop.spec.shelves.to_string()},
    });
    maps.patch(&name, &manager, &Patch::Apply(map)).await?;
    let status = json!({
        "apiVersion": "example.com/v1", "kind": "Shop",
        "status": {"shelves": shop.spec.shelves, "observed_generation": shop.meta().generation},
    });
    shops
        .patch_status(&name, &manager, &Patch::Apply(status))
        .await?;
    Ok(Action::requeue(Duration::from_secs(300)))
}

/// Waits until an object is as wanted.
async fn until<K>(api: &Api<K>, name: &str, condition: impl Condition<K>)
where
    K: Clone + std::fmt::Debug + Send + Sync + kube::Resource + 'static,
    K: serde::de::DeserializeOwned,
{
    tokio::time::timeout(PATIENCE, await_condition(api.clone(), name, condition))
        .await
        .unwrap_or_else(|_| panic!("{name} is not as it should be"))
        .unwrap();
}

fn has_shelves(count: &str) -> impl Condition<ConfigMap> {
    move |map: Option<&ConfigMap>| {
        map.and_then(|m| m.data.as_ref())
            .and_then(|d| d.get("shelves"))
            .is_some_and(|n| n == count)
    }
}

fn is_observed(generation: i64) -> impl Condition<Shop> {
    move |shop: Option<&Shop>| {
        shop.and_then(|s| s.status.as_ref())
            .is_some_and(|s| s.observed_generation == Some(generation))
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_controller_of_kube_rs_does_its_work() {
    let served = Served::start().await;
    served.namespace().await;
    let url = served.listen().await;
    let client = Client::try_from(kube::Config::new(url.parse().unwrap())).unwrap();
    let definitions: Api<CustomResourceDefinition> = Api::all(client.clone());
    let shops: Api<Shop> = Api::namespaced(client.clone(), "n");
    let maps: Api<ConfigMap> = Api::namespaced(client.clone(), "n");

    // As an operator installs itself, twice.
    for _ in 0..2 {
        definitions
            .patch(
                "shops.example.com",
                &PatchParams::apply(MANAGER),
                &Patch::Apply(Shop::crd()),
            )
            .await
            .unwrap();
    }
    until(
        &definitions,
        "shops.example.com",
        conditions::is_crd_established(),
    )
    .await;

    let reporter = Reporter {
        controller: MANAGER.into(),
        instance: None,
    };
    let context = Arc::new(Context {
        client: client.clone(),
        recorder: Recorder::new(client.clone(), reporter),
    });
    let controller = Controller::new(shops.clone(), watcher::Config::default())
        .owns(maps.clone(), watcher::Config::default().streaming_lists())
        .run(
            reconcile,
            |_, error, _| {
                eprintln!("will try again: {error:?}");
                Action::requeue(Duration::from_secs(1))
            },
            context,
        )
        .for_each(|_| async {});
    let controller = tokio::spawn(controller);

    let refused = shops
        .create(
            &PostParams::default(),
            &Shop::new("big", ShopSpec { shelves: 10 }),
        )
        .await
        .unwrap_err();
    assert!(
        refused.to_string().contains("less than or equal to 9"),
        "{refused}"
    );

    let shop = Shop::new("corner", ShopSpec { shelves: 3 });
    let shop = shops.create(&PostParams::default(), &shop).await.unwrap();
    until(&shops, "corner", is_observed(1)).await;
    let map = maps.get("corner").await.unwrap();
    assert_eq!(map.owner_references()[0].uid, shop.uid().unwrap());

    // What it owns comes back as it should be, whoever changes it.
    maps.delete("corner", &DeleteParams::default())
        .await
        .unwrap();
    until(&maps, "corner", has_shelves("3")).await;
    let other = json!({"data": {"shelves": "0"}});
    maps.patch("corner", &PatchParams::default(), &Patch::Merge(other))
        .await
        .unwrap();
    let more = json!({"spec": {"shelves": 4}});
    shops
        .patch("corner", &PatchParams::default(), &Patch::Merge(more))
        .await
        .unwrap();
    // Somebody else owns the field now: an apply without force is a conflict, and the controller goes on trying.
    let conflict = keep_error(&shops, &maps).await;
    assert_eq!(conflict.code, 409, "{conflict:?}");
    let gone = json!({"metadata": {"managedFields": [{}]}, "data": {"shelves": null}});
    maps.patch("corner", &PatchParams::default(), &Patch::Merge(gone))
        .await
        .unwrap();
    until(&maps, "corner", has_shelves("4")).await;
    until(&shops, "corner", is_observed(2)).await;

    // It is told before the shop is gone.
    let uid = shop.uid().unwrap();
    shops
        .delete("corner", &DeleteParams::default())
        .await
        .unwrap();
    until(&shops, "corner", conditions::is_deleted(&uid)).await;
    let events: Api<k8s_openapi::api::events::v1::Event> = Api::namespaced(client, "n");
    let events = events.list(&ListParams::default()).await.unwrap();
    let reasons: Vec<_> = events.iter().map(|e| e.reason.clone()).collect();
    assert_eq!(reasons, [Some("Closed".to_owned())]);
    assert!(!controller.is_finished());
    controller.abort();
}

/// What the controller's apply is answered while somebody else owns the field.
async fn keep_error(shops: &Api<Shop>, maps: &Api<ConfigMap>) -> kube::core::Status {
    let shop = shops.get("corner").await.unwrap();
    let map = json!({
        "apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "corner"},
        "data": {"shelves": shop.spec.shelves.to_string()},
    });
    let manager = PatchParams::apply(MANAGER);
    match maps.patch("corner", &manager, &Patch::Apply(map)).await {
        Err(kube::Error::Api(status)) => *status,
        other => panic!("{other:?}"),
    }
}
