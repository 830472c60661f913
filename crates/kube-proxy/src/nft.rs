//! Applies rulesets through `nft`, each as one atomic transaction with just what changed.

use std::fmt::Write as _;
use std::process::Stdio;

use anyhow::{Context as _, bail};
use tokio::io::AsyncWriteExt as _;

use crate::ruleset::{self, Ruleset};

/// Our table; nothing else may write to it.
const TABLE: &str = "ip kube-proxy";

/// The kernel's table as we left it.
#[derive(Default)]
pub struct Table {
    applied: Option<Ruleset>,
}

impl Table {
    /// Makes the table say `wanted`. After a failure nothing is assumed about it, and the next call writes all of it.
    ///
    /// # Errors
    /// What `nft` says.
    pub async fn apply(&mut self, wanted: Ruleset) -> anyhow::Result<()> {
        let script = match &self.applied {
            Some(present) if *present == wanted => return Ok(()),
            Some(present) => difference(present, &wanted),
            None => everything(&wanted),
        };
        self.applied = None;
        run(&script).await?;
        self.applied = Some(wanted);
        Ok(())
    }
}

/// Replaces the whole table.
fn everything(wanted: &Ruleset) -> String {
    let mut script = format!(
        "add table {TABLE}\ndelete table {TABLE}\ntable {TABLE} {{\n{}}}\n",
        ruleset::base()
    );
    let empty = Ruleset::default();
    script.push_str(&difference(&empty, wanted));
    script
}

/// From one ruleset to another. Sets and chains come before what refers to them, and go after it.
fn difference(present: &Ruleset, wanted: &Ruleset) -> String {
    let mut script = String::new();
    let mut line = |text: std::fmt::Arguments<'_>| {
        // Writing to a string cannot fail.
        let _ = script.write_fmt(text);
        script.push('\n');
    };
    for (set, seconds) in wanted
        .affinity_sets
        .iter()
        .filter(|(s, t)| present.affinity_sets.get(*s) != Some(t))
    {
        line(format_args!(
            "add set {TABLE} {set} {{ type ipv4_addr; flags dynamic,timeout; timeout {seconds}s; }}"
        ));
    }
    let changed = || {
        wanted
            .chains
            .iter()
            .filter(|(chain, rules)| present.chains.get(*chain) != Some(rules))
    };
    for (chain, _) in changed() {
        line(format_args!("add chain {TABLE} {chain}"));
        line(format_args!("flush chain {TABLE} {chain}"));
    }
    for (chain, rules) in changed() {
        for rule in rules {
            line(format_args!("add rule {TABLE} {chain} {rule}"));
        }
    }
    for (map, elements) in &wanted.maps {
        let before = present.maps.get(map);
        for (key, verdict) in before.into_iter().flatten() {
            if elements.get(key) != Some(verdict) {
                line(format_args!("delete element {TABLE} {map} {{ {key} }}"));
            }
        }
        for (key, verdict) in elements {
            if before.and_then(|b| b.get(key)) != Some(verdict) {
                line(format_args!(
                    "add element {TABLE} {map} {{ {key} : {verdict} }}"
                ));
            }
        }
    }
    let gone: Vec<&String> = present
        .chains
        .keys()
        .filter(|c| !wanted.chains.contains_key(*c))
        .collect();
    for chain in &gone {
        line(format_args!("flush chain {TABLE} {chain}"));
    }
    for chain in gone {
        line(format_args!("delete chain {TABLE} {chain}"));
    }
    for set in present
        .affinity_sets
        .keys()
        .filter(|s| !wanted.affinity_sets.contains_key(*s))
    {
        line(format_args!("delete set {TABLE} {set}"));
    }
    script
}

async fn run(script: &str) -> anyhow::Result<()> {
    let mut child = tokio::process::Command::new("nft")
        .args(["-f", "-"])
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .context("cannot run nft")?;
    if let Some(mut stdin) = child.stdin.take() {
        stdin
            .write_all(script.as_bytes())
            .await
            .context("cannot write to nft")?;
    }
    let output = child.wait_with_output().await.context("nft")?;
    if !output.status.success() {
        bail!("nft: {}", String::from_utf8_lossy(&output.stderr).trim());
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeMap;

    fn ruleset(chains: &[(&str, &str)], elements: &[(&str, &str)]) -> Ruleset {
        Ruleset {
            chains: chains
                .iter()
                .map(|(c, r)| ((*c).to_owned(), vec![(*r).to_owned()]))
                .collect(),
            maps: [(
                ruleset::SERVICE_IPS,
                elements
                    .iter()
                    .map(|(k, v)| ((*k).to_owned(), (*v).to_owned()))
                    .collect(),
            )]
            .into(),
            affinity_sets: BTreeMap::new(),
        }
    }

    #[test]
    fn only_changes_are_written_and_references_go_first() {
        let before = ruleset(
            &[("a", "x"), ("b", "y")],
            &[("1", "goto a"), ("2", "goto b")],
        );
        let after = ruleset(
            &[("a", "x"), ("c", "z")],
            &[("1", "goto a"), ("2", "goto c")],
        );
        let script = difference(&before, &after);
        let at = |text: &str| {
            script
                .find(text)
                .unwrap_or_else(|| panic!("{text} in {script}"))
        };
        assert!(
            at("add chain ip kube-proxy c")
                < at("add element ip kube-proxy service-ips { 2 : goto c }")
        );
        assert!(
            at("delete element ip kube-proxy service-ips { 2 }")
                < at("delete chain ip kube-proxy b")
        );
        assert!(!script.contains("kube-proxy a"));
        assert!(difference(&after, &after).is_empty());
    }

    /// In a network namespace of its own, which ends with the thread.
    #[test]
    fn the_kernel_takes_every_transition() {
        use crate::model::{Endpoint, ServicePort};
        use crate::ruleset::Settings;
        let port = |endpoints: &[&str], affinity| ServicePort {
            service: "n/s".into(),
            port_name: "http".into(),
            protocol: "tcp",
            cluster_ip: "10.0.0.7".parse().unwrap(),
            port: 80,
            node_port: Some(30_001),
            external_ips: ["127.20.0.1".parse().unwrap()].into(),
            affinity,
            internal_local: false,
            external_local: true,
            endpoints: endpoints
                .iter()
                .map(|a| Endpoint {
                    address: a.parse().unwrap(),
                    port: 8080,
                })
                .collect(),
            local_endpoints: std::collections::BTreeSet::new(),
        };
        let states = [
            port(&["10.244.0.2"], None),
            port(&["10.244.0.2", "10.244.1.2"], Some(60)),
            port(&["10.244.1.2"], Some(60)),
            port(&[], None),
        ];
        let settings = Settings {
            cluster_cidr: Some("10.244.0.0/16".parse().unwrap()),
        };
        let thread = std::thread::spawn(move || {
            nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNET).unwrap();
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()
                .unwrap();
            runtime.block_on(async {
                let mut table = Table::default();
                for state in states {
                    table
                        .apply(Ruleset::build(&[state].into(), &settings))
                        .await
                        .unwrap();
                }
                table
                    .apply(Ruleset::build(
                        &std::collections::BTreeSet::new(),
                        &settings,
                    ))
                    .await
                    .unwrap();
            });
        });
        thread.join().unwrap();
    }
}
