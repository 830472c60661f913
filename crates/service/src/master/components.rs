//! The components beside the API server, each with its own identity.

use std::sync::Arc;

use fluyt_apiserver::{Component, MASTERS, Server, User, Whereabouts};
use fluyt_client::Informers;
use fluyt_controller_manager::config::SigningAuthority;
use ipnet::IpNet;
use kube::Client;

use super::pki::Keys;
use super::{Config, InNetwork, addons};
use crate::routes;
use crate::tasks::Components;

const MANAGER: &str = "kube-controller-manager";
const SCHEDULER: &str = "kube-scheduler";

/// Those whose health `componentstatuses` tells.
pub fn told(components: &Components) -> Vec<Component> {
    let names = [("controller-manager", MANAGER), ("scheduler", SCHEDULER)];
    names
        .map(|(name, task)| Component {
            name: name.to_owned(),
            whereabouts: Whereabouts::Here(components.running(task)),
        })
        .into()
}

/// Starts all of them.
pub fn spawn_all(
    components: &Components,
    server: &Arc<Server>,
    config: &Arc<Config>,
    keys: &Arc<Keys>,
) {
    let client = as_user(
        server,
        User::new("system:addon-manager", &[MASTERS]),
        "addon-manager",
    );
    let of = config.clone();
    components.spawn("addon-manager", move |shutdown| {
        addons::run(of.clone(), client.clone(), shutdown)
    });

    // What the scheduler and the controllers both watch is held once. The informers outlive a restart of either.
    let manager = as_user(
        server,
        User::new("system:kube-controller-manager", &[]),
        MANAGER,
    );
    let informers = Informers::new(manager.clone(), components.shutdown.clone());

    let client = as_user(server, User::new("system:kube-scheduler", &[]), SCHEDULER);
    let shared = informers.clone();
    components.spawn(SCHEDULER, move |shutdown| {
        let settings = fluyt_scheduler::Config {
            informers: Some(shared.clone()),
            ..fluyt_scheduler::Config::default()
        };
        fluyt_scheduler::start(settings, client.clone(), shutdown)
    });

    let client = as_user(
        server,
        User::service_account("kube-system", "cloud-controller-manager", ""),
        "cloud-controller-manager",
    );
    let settings = cloud_controller_manager(config);
    components.spawn("cloud-controller-manager", move |shutdown| {
        fluyt_cloud_controller_manager::start(settings.clone(), client.clone(), shutdown)
    });

    let client = as_user(
        server,
        User::service_account("kube-system", "route-controller", ""),
        "route-controller",
    );
    let of = config.clone();
    components.spawn("route-controller", move |shutdown| {
        let (of, client) = (of.clone(), client.clone());
        async move { routes::run(client, Some(&of.network_namespace), None, shutdown).await }
    });

    let client = manager;
    let (server, config, keys) = (server.clone(), config.clone(), keys.clone());
    components.spawn(MANAGER, move |shutdown| {
        let mut settings = controller_manager(&server, &config, &keys, client.clone());
        settings.informers = Some(informers.clone());
        fluyt_controller_manager::start(settings, client.clone(), shutdown)
    });
}

/// A client that is known by its component's name, as the owner of what it writes, too.
fn as_user(server: &Arc<Server>, user: User, component: &'static str) -> Client {
    Client::new(server.service(user, component), "default")
}

fn controller_manager(
    server: &Arc<Server>,
    config: &Config,
    keys: &Keys,
    client: Client,
) -> fluyt_controller_manager::Config {
    let server = server.clone();
    fluyt_controller_manager::Config {
        // The API server itself vouches for the controllers' identities: they need no tokens.
        client_for: Arc::new(move |account| {
            as_user(
                &server,
                User::service_account("kube-system", account, ""),
                MANAGER,
            )
        }),
        cluster_cidrs: vec![IpNet::V4(config.pod_cidr)],
        allocate_node_cidrs: true,
        service_cluster_ip_range: Some(IpNet::V4(config.service_cidr)),
        cluster_signing: Some(SigningAuthority {
            certificate: keys.ca.certificate_pem().to_owned(),
            key: keys.ca.key_pem().to_owned(),
        }),
        root_ca: Some(keys.ca.certificate_pem().to_owned()),
        service_account_private_key: Some(keys.service_account_pem.clone()),
        ..fluyt_controller_manager::Config::for_client(client)
    }
}

fn cloud_controller_manager(config: &Config) -> fluyt_cloud_controller_manager::Config {
    let network = Arc::new(InNetwork(config.network_namespace.clone()));
    fluyt_cloud_controller_manager::Config {
        load_balancer_pool: config.load_balancer_pool,
        connect: Arc::new(move |address| {
            let network = network.clone();
            Box::pin(async move { network.connect_tcp(address).await })
        }),
    }
}
