//! Who a container runs as: numbers of the request, names of the image's `/etc/passwd` and `/etc/group`.

use std::io::Read;
use std::path::{Path, PathBuf};

use k8s_cri::v1::{LinuxContainerSecurityContext, SupplementalGroupsPolicy};
use serde::{Deserialize, Serialize};

use super::{Invalid, Result};
use crate::in_root;

/// The identity of a container's processes.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct User {
    pub uid: u32,
    pub gid: u32,
    pub additional_gids: Vec<u32>,
    pub home: String,
}

/// `/etc/passwd` and `/etc/group` of an image.
#[derive(Debug, Default)]
pub struct Accounts {
    passwd: String,
    group: String,
}

struct Account {
    name: String,
    uid: u32,
    gid: u32,
    home: String,
}

// === impl Accounts ===

impl Accounts {
    /// Reads them from an image's layers, topmost first, without mounting it.
    pub fn of_layers(layers: &[PathBuf]) -> Self {
        Self {
            passwd: read(layers, Path::new("etc/passwd")),
            group: read(layers, Path::new("etc/group")),
        }
    }

    fn find(&self, matches: impl Fn(&Account) -> bool) -> Option<Account> {
        self.passwd
            .lines()
            .filter_map(|line| {
                let mut fields = line.split(':');
                Some(Account {
                    name: fields.next()?.to_owned(),
                    uid: fields.nth(1)?.parse().ok()?,
                    gid: fields.next()?.parse().ok()?,
                    home: fields.nth(1).unwrap_or("/").to_owned(),
                })
            })
            .find(matches)
    }

    fn groups(&self) -> impl Iterator<Item = (&str, u32, &str)> {
        self.group.lines().filter_map(|line| {
            let mut fields = line.split(':');
            let name = fields.next()?;
            let gid = fields.nth(1)?.parse().ok()?;
            Some((name, gid, fields.next().unwrap_or_default()))
        })
    }

    /// The user that `security` asks for, or else the image's, `user[:group]` by name or number.
    pub fn resolve(
        &self,
        security: &LinuxContainerSecurityContext,
        image_user: &str,
    ) -> Result<User> {
        let (image_user, image_group) = match image_user.split_once(':') {
            Some((user, group)) => (user, Some(group)),
            None => (image_user, None),
        };
        let (account, uid) = match (&security.run_as_user, security.run_as_username.as_str()) {
            (Some(uid), _) => self.by_id(id(uid.value)?),
            (None, "") if image_user.is_empty() => self.by_id(0),
            (None, "") => self.by_name_or_id(image_user)?,
            (None, name) => self.by_name_or_id(name)?,
        };
        let of_image = security.run_as_user.is_none() && security.run_as_username.is_empty();
        let gid = match (&security.run_as_group, image_group) {
            (Some(gid), _) => id(gid.value)?,
            (None, Some(group)) if of_image && !group.is_empty() => self.group_id(group)?,
            _ => account.as_ref().map_or(0, |account| account.gid),
        };
        let mut additional_gids: Vec<u32> = security
            .supplemental_groups
            .iter()
            .map(|gid| id(*gid))
            .collect::<Result<_>>()?;
        let merge = security.supplemental_groups_policy() == SupplementalGroupsPolicy::Merge;
        if let Some(account) = &account
            && merge
        {
            additional_gids.extend(
                self.groups()
                    .filter(|(_, _, members)| {
                        members.split(',').any(|member| member == account.name)
                    })
                    .map(|(_, gid, _)| gid),
            );
        }
        additional_gids.push(gid);
        additional_gids.sort_unstable();
        additional_gids.dedup();
        Ok(User {
            uid,
            gid,
            additional_gids,
            home: account
                .map(|account| account.home)
                .filter(|home| !home.is_empty())
                .unwrap_or_else(|| if uid == 0 { "/root" } else { "/" }.to_owned()),
        })
    }

    fn by_id(&self, uid: u32) -> (Option<Account>, u32) {
        (self.find(|account| account.uid == uid), uid)
    }

    fn by_name_or_id(&self, name: &str) -> Result<(Option<Account>, u32)> {
        if let Some(account) = self.find(|account| account.name == name) {
            let uid = account.uid;
            return Ok((Some(account), uid));
        }
        match name.parse() {
            Ok(uid) => Ok(self.by_id(uid)),
            Err(_) => Err(Invalid(format!(
                "unable to find user {name}: no matching entries in passwd file"
            ))),
        }
    }

    fn group_id(&self, name: &str) -> Result<u32> {
        if let Some((_, gid, _)) = self.groups().find(|(group, _, _)| *group == name) {
            return Ok(gid);
        }
        name.parse().map_err(|_| {
            Invalid(format!(
                "unable to find group {name}: no matching entries in group file"
            ))
        })
    }
}

fn id(value: i64) -> Result<u32> {
    u32::try_from(value).map_err(|_| Invalid(format!("{value} is not a user or group id")))
}

fn read(layers: &[PathBuf], path: &Path) -> String {
    for layer in layers {
        let Ok(root) = in_root::open(layer) else {
            continue;
        };
        let mut text = String::new();
        if let Ok(file) = in_root::open_file(&root, path)
            && file.take(1 << 20).read_to_string(&mut text).is_ok()
        {
            return text;
        }
    }
    String::new()
}

#[cfg(test)]
mod tests {
    use k8s_cri::v1::Int64Value;

    use super::*;

    fn accounts() -> Accounts {
        Accounts {
            passwd: "root:x:0:0:root:/root:/bin/sh\napp:x:1000:1001:App:/home/app:/bin/sh\n".into(),
            group: "root:x:0:\napp:x:1001:\nextra:x:2000:other,app\n".into(),
        }
    }

    #[test]
    fn names_of_the_image_are_resolved() {
        let user = accounts()
            .resolve(&LinuxContainerSecurityContext::default(), "app")
            .unwrap();
        assert_eq!((user.uid, user.gid), (1000, 1001));
        assert_eq!(user.additional_gids, [1001, 2000]);
        assert_eq!(user.home, "/home/app");
        let user = accounts()
            .resolve(&LinuxContainerSecurityContext::default(), "app:extra")
            .unwrap();
        assert_eq!(user.gid, 2000);
    }

    #[test]
    fn the_request_wins_over_the_image() {
        let security = LinuxContainerSecurityContext {
            run_as_user: Some(Int64Value { value: 1234 }),
            supplemental_groups: vec![7],
            ..LinuxContainerSecurityContext::default()
        };
        let user = accounts().resolve(&security, "app:extra").unwrap();
        assert_eq!((user.uid, user.gid), (1234, 0));
        assert_eq!(user.additional_gids, [0, 7]);
    }

    #[test]
    fn strict_groups_ignore_the_image_s() {
        let security = LinuxContainerSecurityContext {
            supplemental_groups_policy: SupplementalGroupsPolicy::Strict.into(),
            ..LinuxContainerSecurityContext::default()
        };
        let user = accounts().resolve(&security, "app").unwrap();
        assert_eq!(user.additional_gids, [1001]);
    }

    #[test]
    fn an_unknown_name_is_an_error() {
        assert!(
            accounts()
                .resolve(&LinuxContainerSecurityContext::default(), "nosuch")
                .is_err()
        );
    }
}
