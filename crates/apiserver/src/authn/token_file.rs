//! `--token-auth-file`: lines of `token,user,uid,"group1,group2"`.

use std::collections::HashMap;

use anyhow::bail;
use sha2::{Digest as _, Sha256};

use crate::user::User;

/// The tokens of a file, by their digests.
#[derive(Clone, Debug, Default)]
pub struct TokenFile(HashMap<[u8; 32], User>);

impl TokenFile {
    /// Parses the file's content.
    ///
    /// # Errors
    /// Names the line that lacks a column.
    pub fn parse(text: &str) -> anyhow::Result<Self> {
        let mut tokens = HashMap::new();
        for (number, line) in text.lines().enumerate() {
            if line.trim().is_empty() || line.starts_with('#') {
                continue;
            }
            let columns = columns(line);
            let [token, name, uid, rest @ ..] = columns.as_slice() else {
                bail!(
                    "token file must have at least 3 columns (token, user name, user uid), found {} in line {}",
                    columns.len(),
                    number + 1
                );
            };
            if token.is_empty() {
                continue;
            }
            let groups = rest.first().map(String::as_str).unwrap_or_default();
            let user = User {
                name: name.clone(),
                uid: uid.clone(),
                groups: groups
                    .split(',')
                    .filter(|g| !g.is_empty())
                    .map(str::to_owned)
                    .collect(),
                ..User::default()
            };
            tokens.insert(Sha256::digest(token).into(), user);
        }
        Ok(Self(tokens))
    }

    /// The user of a token. Digests are compared, so that nothing is learnt from how long it takes.
    pub(super) fn user(&self, token: &str) -> Option<&User> {
        let digest: [u8; 32] = Sha256::digest(token).into();
        self.0.get(&digest)
    }
}

/// The columns of a line, of which quoted ones may hold commas.
fn columns(line: &str) -> Vec<String> {
    let (mut columns, mut column, mut quoted) = (Vec::new(), String::new(), false);
    let mut chars = line.trim_end().chars().peekable();
    while let Some(c) = chars.next() {
        match c {
            '"' if quoted && chars.peek() == Some(&'"') => {
                chars.next();
                column.push('"');
            }
            '"' => quoted = !quoted,
            ',' if !quoted => columns.push(std::mem::take(&mut column).trim().to_owned()),
            c => column.push(c),
        }
    }
    columns.push(column.trim().to_owned());
    columns
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_users() {
        let file =
            TokenFile::parse("# none\nt1,alice,1\nt2,bob,2,\"dev,ops\"\n\n,nobody,3\n").unwrap();
        assert_eq!(file.user("t1").unwrap().name, "alice");
        assert_eq!(file.user("t2").unwrap().groups, ["dev", "ops"]);
        assert!(file.user("").is_none() && file.user("t3").is_none());
        assert!(TokenFile::parse("t,u").is_err());
    }
}
