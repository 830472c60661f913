//! What a request is about: ARM's paths, whose fixed words have no case.

/// A resource or collection.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Target {
    Subscriptions,
    Subscription,
    Groups,
    Group {
        group: String,
    },
    /// Managed clusters of a subscription, or of one of its groups.
    Clusters {
        group: Option<String>,
    },
    Cluster {
        group: String,
        name: String,
    },
    /// A POST on a cluster, such as `listClusterAdminCredential`.
    Action {
        group: String,
        name: String,
        action: String,
    },
    Pools {
        group: String,
        cluster: String,
    },
    Pool {
        group: String,
        cluster: String,
        name: String,
    },
    /// The versions that a pool may be upgraded to.
    AvailableVersions {
        group: String,
        cluster: String,
    },
    /// The versions that a cluster may be upgraded to.
    UpgradeProfile {
        group: String,
        cluster: String,
    },
    Versions {
        location: String,
    },
    Operation {
        id: String,
    },
    OperationResult {
        id: String,
    },
}

const PROVIDER: &str = "microsoft.containerservice";

/// Subscription, if the path names one, and target.
#[must_use]
pub fn parse(path: &str) -> Option<(Option<String>, Target)> {
    let segments: Vec<String> = path.trim_matches('/').split('/').map(decode).collect();
    let lower: Vec<String> = segments.iter().map(|s| s.to_lowercase()).collect();
    let lower: Vec<&str> = lower.iter().map(String::as_str).collect();
    let at = |index: usize| segments[index].clone();
    if lower == ["subscriptions"] {
        return Some((None, Target::Subscriptions));
    }
    let ["subscriptions", _, rest @ ..] = lower.as_slice() else {
        return None;
    };
    let target = match rest {
        [] => Target::Subscription,
        ["resourcegroups"] => Target::Groups,
        ["resourcegroups", _] => Target::Group { group: at(3) },
        ["providers", PROVIDER, "managedclusters"] => Target::Clusters { group: None },
        ["providers", PROVIDER, "locations", _, "kubernetesversions"] => {
            Target::Versions { location: at(5) }
        }
        ["providers", PROVIDER, "locations", _, "operations", _] => Target::Operation { id: at(7) },
        ["providers", PROVIDER, "locations", _, "operationresults", _] => {
            Target::OperationResult { id: at(7) }
        }
        [
            "resourcegroups",
            _,
            "providers",
            PROVIDER,
            "managedclusters",
            rest @ ..,
        ] => {
            let group = at(3);
            match rest {
                [] => Target::Clusters { group: Some(group) },
                [_] => Target::Cluster { group, name: at(7) },
                [_, "agentpools"] => Target::Pools {
                    group,
                    cluster: at(7),
                },
                [_, "agentpools", _] => Target::Pool {
                    group,
                    cluster: at(7),
                    name: at(9),
                },
                [_, "availableagentpoolversions"] => Target::AvailableVersions {
                    group,
                    cluster: at(7),
                },
                [_, "upgradeprofiles", "default"] => Target::UpgradeProfile {
                    group,
                    cluster: at(7),
                },
                [_, action] => Target::Action {
                    group,
                    name: at(7),
                    action: (*action).to_owned(),
                },
                _ => return None,
            }
        }
        _ => return None,
    };
    Some((Some(at(1)), target))
}

/// Undoes percent-encoding; what is not UTF-8 then will not be a valid name either.
fn decode(segment: &str) -> String {
    let mut bytes = Vec::with_capacity(segment.len());
    let mut rest = segment.as_bytes();
    while let [first, tail @ ..] = rest {
        let hex = tail
            .get(..2)
            .and_then(|h| std::str::from_utf8(h).ok())
            .and_then(|h| u8::from_str_radix(h, 16).ok());
        match (first, hex) {
            (b'%', Some(byte)) => {
                bytes.push(byte);
                rest = &tail[2..];
            }
            _ => {
                bytes.push(*first);
                rest = tail;
            }
        }
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_have_no_case_and_names_keep_theirs() {
        let path = "/subscriptions/S/resourceGroups/Rg/providers/Microsoft.ContainerService/managedClusters/Demo/agentPools/p1";
        let expected = Target::Pool {
            group: "Rg".into(),
            cluster: "Demo".into(),
            name: "p1".into(),
        };
        assert_eq!(parse(path), Some((Some("S".into()), expected.clone())));
        assert_eq!(
            parse(&path.replace("agentPools", "AGENTPOOLS")).unwrap().1,
            expected
        );
        assert_eq!(
            parse("/subscriptions/"),
            Some((None, Target::Subscriptions))
        );
        assert_eq!(parse("/subscriptions/s/nonsense"), None);
        assert_eq!(parse("/"), None);
    }

    #[test]
    fn names_are_decoded() {
        assert_eq!(decode("a%20b%"), "a b%");
        assert_eq!(decode("%zz%é"), "%zz%é");
    }
}
