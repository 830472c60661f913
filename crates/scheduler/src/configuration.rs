//! KubeSchedulerConfiguration (`kubescheduler.config.k8s.io/v1`): profiles, their plugins and weights.

use fluyt_client::Informers;
use kube::Client;
use serde::Deserialize;

use crate::{
    framework::Profile,
    plugins::{self, ScoringStrategy},
};

/// The file that `--config` names. Fields that we have no use for are ignored.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct KubeSchedulerConfiguration {
    pub api_version: String,
    pub kind: String,
    #[serde(default)]
    pub profiles: Vec<ProfileConfig>,
    pub leader_election: Option<LeaderElection>,
    pub client_connection: Option<ClientConnection>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct LeaderElection {
    pub leader_elect: Option<bool>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ClientConnection {
    pub kubeconfig: Option<String>,
}

/// One profile: the default plugins with the given changes.
#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ProfileConfig {
    #[serde(default = "default_scheduler_name")]
    pub scheduler_name: String,
    #[serde(default)]
    pub plugins: Plugins,
    #[serde(default)]
    pub plugin_config: Vec<PluginConfig>,
}

/// Which plugins run at which extension points. We know `multiPoint` (all of a plugin) and `score` (its weight).
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Plugins {
    #[serde(default)]
    pub multi_point: PluginSet,
    #[serde(default)]
    pub score: PluginSet,
}

#[derive(Debug, Clone, Default, Deserialize)]
pub struct PluginSet {
    #[serde(default)]
    pub enabled: Vec<Named>,
    #[serde(default)]
    pub disabled: Vec<Named>,
}

#[derive(Debug, Clone, Deserialize)]
pub struct Named {
    pub name: String,
    pub weight: Option<i64>,
}

#[derive(Debug, Clone, Deserialize)]
pub struct PluginConfig {
    pub name: String,
    #[serde(default)]
    pub args: PluginArgs,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PluginArgs {
    pub scoring_strategy: Option<Scoring>,
}

#[derive(Debug, Clone, Deserialize)]
pub struct Scoring {
    #[serde(rename = "type")]
    pub type_: String,
}

fn default_scheduler_name() -> String {
    "default-scheduler".to_owned()
}

impl Default for ProfileConfig {
    fn default() -> Self {
        Self {
            scheduler_name: default_scheduler_name(),
            plugins: Plugins::default(),
            plugin_config: Vec::new(),
        }
    }
}

impl KubeSchedulerConfiguration {
    /// Parse and check a configuration file.
    pub fn parse(text: &str) -> anyhow::Result<Self> {
        let config: Self = serde_saphyr::from_str(text)?;
        if config.kind != "KubeSchedulerConfiguration"
            || config.api_version != "kubescheduler.config.k8s.io/v1"
        {
            anyhow::bail!(
                "expected kubescheduler.config.k8s.io/v1 KubeSchedulerConfiguration, got {} {}",
                config.api_version,
                config.kind
            );
        }
        let mut names = std::collections::BTreeSet::new();
        for profile in &config.profiles {
            if !names.insert(&profile.scheduler_name) {
                anyhow::bail!("duplicate profile {:?}", profile.scheduler_name);
            }
            profile.scoring()?;
        }
        Ok(config)
    }
}

impl ProfileConfig {
    fn scoring(&self) -> anyhow::Result<ScoringStrategy> {
        let fit = self
            .plugin_config
            .iter()
            .find(|config| config.name == "NodeResourcesFit");
        let strategy = fit.and_then(|config| config.args.scoring_strategy.as_ref());
        match strategy.map(|strategy| strategy.type_.as_str()) {
            None | Some("LeastAllocated") => Ok(ScoringStrategy::LeastAllocated),
            Some("MostAllocated") => Ok(ScoringStrategy::MostAllocated),
            Some(other) => anyhow::bail!("scoring strategy {other:?} is not supported"),
        }
    }

    /// The profile with its plugins.
    pub fn build(&self, client: &Client, informers: &Informers) -> Profile {
        let scoring = self.scoring().unwrap_or_default();
        let mut plugins = plugins::default_plugins(client, informers, scoring);
        let listed = |set: &[Named], name: &str| {
            set.iter()
                .any(|named| named.name == name || named.name == "*")
        };
        let exactly =
            |set: &[Named], name: &str| set.iter().find(|named| named.name == name).cloned();
        let (whole, score) = (&self.plugins.multi_point, &self.plugins.score);
        plugins.retain(|weighted| {
            let name = weighted.plugin.name();
            !listed(&whole.disabled, name) || exactly(&whole.enabled, name).is_some()
        });
        for weighted in &mut plugins {
            let name = weighted.plugin.name();
            if listed(&score.disabled, name) {
                weighted.weight = 0;
            }
            for set in [&whole.enabled, &score.enabled] {
                if let Some(weight) =
                    exactly(set, name).map(|named| named.weight.unwrap_or(1).max(1))
                {
                    weighted.weight = weight;
                }
            }
        }
        Profile {
            scheduler_name: self.scheduler_name.clone(),
            plugins,
        }
    }
}

#[cfg(test)]
mod tests {
    use fluyt_client::fake::FakeApi;
    use tokio_util::sync::CancellationToken;

    use super::*;

    #[tokio::test]
    async fn profiles_change_the_defaults() {
        let text = "
apiVersion: kubescheduler.config.k8s.io/v1
kind: KubeSchedulerConfiguration
profiles:
- schedulerName: default-scheduler
- schedulerName: packing
  plugins:
    multiPoint:
      disabled: [{name: ImageLocality}]
    score:
      disabled: [{name: '*'}]
      enabled: [{name: NodeResourcesFit, weight: 7}]
  pluginConfig:
  - name: NodeResourcesFit
    args: {scoringStrategy: {type: MostAllocated}}
";
        let config = KubeSchedulerConfiguration::parse(text).unwrap();
        let client = FakeApi::new().client();
        let informers = Informers::new(client.clone(), CancellationToken::new());
        let weights = |profile: &ProfileConfig| -> Vec<(&'static str, i64)> {
            let built = profile.build(&client, &informers);
            let named = built
                .plugins
                .iter()
                .map(|weighted| (weighted.plugin.name(), weighted.weight));
            named.filter(|(_, weight)| *weight > 0).collect()
        };
        assert!(weights(&config.profiles[0]).contains(&("TaintToleration", 3)));
        assert_eq!(weights(&config.profiles[1]), [("NodeResourcesFit", 7)]);
        let packing = config.profiles[1].build(&client, &informers);
        assert!(packing.get("ImageLocality").is_none() && packing.get("NodeName").is_some());
        assert_eq!(
            config.profiles[1].scoring().unwrap(),
            ScoringStrategy::MostAllocated
        );
    }

    #[test]
    fn wrong_files_are_refused() {
        let head = "apiVersion: kubescheduler.config.k8s.io/v1\nkind: KubeSchedulerConfiguration\n";
        let twice = format!("{head}profiles: [{{schedulerName: a}}, {{schedulerName: a}}]");
        for text in ["kind: Pod\napiVersion: v1", "][", &twice] {
            assert!(KubeSchedulerConfiguration::parse(text).is_err(), "{text}");
        }
    }
}
