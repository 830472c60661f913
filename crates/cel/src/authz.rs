//! The `authorizer` variable: authorization checks inside of expressions, asked through a trait.

use std::fmt;
use std::sync::Arc;

/// Answers authorization questions for the user of a request.
pub trait Authorize: Send + Sync {
    /// Whether it is allowed, and why (not). With an account the question is about that service account.
    fn check(&self, account: Option<(&str, &str)>, query: &Query) -> (bool, String);
}

/// Who answers.
pub type Authorizer = Arc<dyn Authorize>;

/// What is asked.
#[derive(Clone, Debug, Default)]
pub struct Query {
    pub verb: String,
    pub path: String,
    pub group: String,
    pub resource: String,
    pub subresource: String,
    pub namespace: String,
    pub name: String,
    /// What the objects asked about are limited to.
    pub field_selector: String,
    pub label_selector: String,
}

/// A step on the way to a decision.
#[derive(Clone)]
pub enum Authz {
    Authorizer(Authorizer, Option<(String, String)>),
    Path(Authorizer, Option<(String, String)>, Query),
    Group(Authorizer, Option<(String, String)>, Query),
    Resource(Authorizer, Option<(String, String)>, Query),
    Decision(bool, String),
}

impl Authz {
    pub fn type_name(&self) -> &'static str {
        match self {
            Self::Authorizer(..) => "kubernetes.authorization.Authorizer",
            Self::Path(..) => "kubernetes.authorization.PathCheck",
            Self::Group(..) => "kubernetes.authorization.GroupCheck",
            Self::Resource(..) => "kubernetes.authorization.ResourceCheck",
            Self::Decision(..) => "kubernetes.authorization.Decision",
        }
    }

    /// The step that a function without a decision leads to.
    pub fn step(&self, function: &str, args: &[&str]) -> Option<Self> {
        let first = || args.first().map(|a| (*a).to_owned());
        Some(match (self, function) {
            (Self::Authorizer(to, who), "path") => {
                let path = first()?;
                Self::Path(
                    to.clone(),
                    who.clone(),
                    Query {
                        path,
                        ..Query::default()
                    },
                )
            }
            (Self::Authorizer(to, who), "group") => {
                let group = first()?;
                Self::Group(
                    to.clone(),
                    who.clone(),
                    Query {
                        group,
                        ..Query::default()
                    },
                )
            }
            (Self::Authorizer(to, _), "serviceAccount") => {
                Self::Authorizer(to.clone(), Some((first()?, (*args.get(1)?).to_owned())))
            }
            (Self::Group(to, who, query), "resource") => {
                let resource = first()?;
                Self::Resource(
                    to.clone(),
                    who.clone(),
                    Query {
                        resource,
                        ..query.clone()
                    },
                )
            }
            (Self::Resource(to, who, query), _) => {
                let (mut query, value) = (query.clone(), first()?);
                match function {
                    "subresource" => query.subresource = value,
                    "namespace" => query.namespace = value,
                    "name" => query.name = value,
                    "fieldSelector" => query.field_selector = value,
                    "labelSelector" => query.label_selector = value,
                    _ => return None,
                }
                Self::Resource(to.clone(), who.clone(), query)
            }
            _ => return None,
        })
    }

    /// The decision about a verb.
    pub fn check(&self, verb: &str) -> Option<Self> {
        let (Self::Path(to, who, query) | Self::Resource(to, who, query)) = self else {
            return None;
        };
        let query = Query {
            verb: verb.to_owned(),
            ..query.clone()
        };
        let who = who.as_ref().map(|(ns, name)| (ns.as_str(), name.as_str()));
        let (allowed, reason) = to.check(who, &query);
        Some(Self::Decision(allowed, reason))
    }
}

impl fmt::Debug for Authz {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.type_name())
    }
}
