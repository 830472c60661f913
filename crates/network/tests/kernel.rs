//! Two nodes of a cluster with pods on each, made of real namespaces. Needs root.
#![allow(clippy::unwrap_used)] // Tests fail by panicking.

use std::net::{Ipv4Addr, SocketAddr};

use fluyt_network::{ClusterNetwork, netns, set_routes};
use ipnet::Ipv4Net;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

/// Namespaces made by a test; gone when it ends, however it ends.
struct Namespaces(Vec<String>);

impl Namespaces {
    fn make(&mut self, suffix: &str) -> std::path::PathBuf {
        let name = format!("fluyt-test-{}-{suffix}", std::process::id());
        let _ = netns::delete(&name);
        self.0.push(name.clone());
        netns::create(&name).unwrap()
    }
}

impl Drop for Namespaces {
    fn drop(&mut self) {
        for name in &self.0 {
            let _ = netns::delete(name);
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn nodes_and_the_gateway_reach_each_other() {
    let mut namespaces = Namespaces(Vec::new());
    let gateway: Ipv4Net = "10.224.0.1/16".parse().unwrap();
    let cluster_name = format!("fluyt-test-{}-cluster", std::process::id());
    namespaces.0.push(cluster_name.clone());
    let cluster = ClusterNetwork::create(&cluster_name, gateway)
        .await
        .unwrap();
    // Adopting a network that is there changes nothing.
    assert_eq!(
        ClusterNetwork::create(&cluster_name, gateway)
            .await
            .unwrap(),
        cluster
    );
    let one = namespaces.make("node1");
    let two = namespaces.make("node2");
    let address_one = Ipv4Addr::new(10, 224, 0, 4);
    let address_two = Ipv4Addr::new(10, 224, 0, 5);
    cluster
        .attach_node("node1", &one, address_one)
        .await
        .unwrap();
    cluster
        .attach_node("node2", &two, address_two)
        .await
        .unwrap();

    let cidr: Ipv4Net = "10.244.1.0/24".parse().unwrap();
    set_routes(Some(&one), &[(cidr, address_two)])
        .await
        .unwrap();
    set_routes(Some(&one), &[]).await.unwrap();
    set_routes(Some(&one), &[(cidr, address_two)])
        .await
        .unwrap();

    let listener = netns::bind_tcp_in(
        &cluster.path(),
        SocketAddr::new(cluster.gateway().into(), 443),
    )
    .await
    .unwrap();
    let server = tokio::spawn(async move {
        let (mut stream, peer) = listener.accept().await.unwrap();
        stream.write_all(b"hello").await.unwrap();
        peer.ip()
    });
    let mut stream = netns::connect_tcp_in(&two, SocketAddr::new(cluster.gateway().into(), 443))
        .await
        .unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    assert_eq!(answer, "hello");
    assert_eq!(server.await.unwrap(), address_two);
    cluster.detach_node("node2").await.unwrap();
    cluster.delete().await.unwrap();
    assert!(!cluster.exists());
}
