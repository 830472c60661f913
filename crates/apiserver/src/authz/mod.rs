//! Authorization: the authorizers of the configured chain, asked in order until one decides. Whom none of them knows is
//! refused.

mod abac;
mod config;
mod node;
mod question;
mod rbac;
mod webhook;

use std::sync::Arc;

use fluyt_api::Error;
use parking_lot::RwLock;

use crate::cache::Caches;
use crate::dial::ControlPlane;
use crate::user::{MASTERS, User};

pub use abac::Policies;
pub use config::{AuthorizationConfiguration, Mode, Settings};
pub use question::{Question, Requirement, Selectors};
pub use rbac::{Rule, rules_cover};
pub use webhook::WebhookSettings;

use node::NodeAuthorizer;
use rbac::Rbac;
use webhook::WebhookAuthorizer;

/// What an authorizer, or all of them, made of a question.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Decision {
    pub verdict: Verdict,
    /// Why, for the audit log and for whom it refuses.
    pub reason: String,
    /// What went wrong on the way.
    pub error: Option<String>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Verdict {
    Allow,
    /// Final: the following authorizers are not asked.
    Deny,
    #[default]
    NoOpinion,
}

/// The authorizers in order.
pub struct Authorizer {
    chain: RwLock<Arc<[Step]>>,
    node: Arc<NodeAuthorizer>,
    rbac: Arc<Rbac>,
    network: ControlPlane,
}

/// One authorizer of the chain.
#[derive(Clone)]
enum Step {
    Node(Arc<NodeAuthorizer>),
    Rbac(Arc<Rbac>),
    Webhook(Arc<WebhookAuthorizer>),
    Abac(Arc<Policies>),
    AlwaysAllow,
    AlwaysDeny,
}

/// All rules that apply to a user, as far as the authorizers can list them.
#[derive(Debug, Default)]
pub struct Rules {
    pub rules: Vec<Arc<Rule>>,
    pub incomplete: bool,
    /// Why it is incomplete.
    pub errors: Vec<String>,
}

// === impl Decision ===

impl Decision {
    fn of(verdict: Verdict, reason: impl Into<String>) -> Self {
        Self {
            verdict,
            reason: reason.into(),
            error: None,
        }
    }

    #[must_use]
    pub fn allows(&self) -> bool {
        self.verdict == Verdict::Allow
    }

    /// The reason why it is allowed.
    ///
    /// # Errors
    /// 403 with the reason why not.
    pub fn into_result(self, user: &User, question: &Question) -> Result<String, Error> {
        if self.allows() {
            return Ok(self.reason);
        }
        let reason = match (self.error, self.reason) {
            (Some(error), reason) if reason.is_empty() => error,
            (Some(error), reason) => format!("{error}: {reason}"),
            (None, reason) => reason,
        };
        Err(question.forbidden(user, &reason))
    }
}

// === impl Authorizer ===

impl Authorizer {
    /// # Errors
    /// When a webhook's kubeconfig cannot be used.
    pub fn new(
        caches: Arc<Caches>,
        settings: &Settings,
        network: &ControlPlane,
    ) -> anyhow::Result<Self> {
        let authorizer = Self {
            chain: RwLock::new(Arc::new([])),
            node: Arc::new(NodeAuthorizer::new(caches.clone())),
            rbac: Arc::new(Rbac::new(caches)),
            network: network.clone(),
        };
        authorizer.install(&settings.modes)?;
        Ok(authorizer)
    }

    /// Whether expressions that ask for a decision may have their thread wait for a webhook.
    #[must_use]
    pub fn may_block(&self) -> bool {
        let chain = self.chain.read();
        chain.iter().any(|step| matches!(step, Step::Webhook(_)))
    }

    /// Replaces the chain. Requests that are being authorized finish with the old one.
    ///
    /// # Errors
    /// When a webhook's kubeconfig cannot be used; then the old chain stays.
    pub fn install(&self, modes: &[Mode]) -> anyhow::Result<()> {
        let mut chain = Vec::new();
        for mode in modes {
            chain.push(match mode {
                Mode::Node => Step::Node(self.node.clone()),
                Mode::Rbac => Step::Rbac(self.rbac.clone()),
                Mode::Abac(policies) => Step::Abac(policies.clone()),
                Mode::AlwaysAllow => Step::AlwaysAllow,
                Mode::AlwaysDeny => Step::AlwaysDeny,
                Mode::Webhook(settings) => {
                    Step::Webhook(Arc::new(WebhookAuthorizer::new(settings, &self.network)?))
                }
            });
        }
        *self.chain.write() = chain.into();
        Ok(())
    }

    /// Asks the authorizers in order.
    pub async fn decide(&self, user: &User, question: &Question) -> Decision {
        if user.is_in(MASTERS) {
            return Decision::of(Verdict::Allow, "");
        }
        let chain = self.chain.read().clone();
        let mut undecided = Undecided::default();
        for step in &*chain {
            let decision = match step {
                Step::Webhook(webhook) => Box::pin(webhook.decide(user, question)).await,
                local => local.decide(user, question),
            };
            if decision.verdict != Verdict::NoOpinion {
                return decision;
            }
            undecided.note(decision);
        }
        undecided.decision()
    }

    /// Whether the user may do it, and why, for callers that cannot wait. Should a webhook have to be asked that has not
    /// been asked this lately, this thread waits for it.
    #[must_use]
    pub fn allows(&self, user: &User, question: &Question) -> Option<String> {
        let decision = self.decide_here(user, question);
        decision.allows().then_some(decision.reason)
    }

    fn decide_here(&self, user: &User, question: &Question) -> Decision {
        if user.is_in(MASTERS) {
            return Decision::of(Verdict::Allow, "");
        }
        let chain = self.chain.read().clone();
        let mut undecided = Undecided::default();
        for step in &*chain {
            let decision = match step {
                Step::Webhook(webhook) => webhook.decide_here(user, question),
                local => local.decide(user, question),
            };
            if decision.verdict != Verdict::NoOpinion {
                return decision;
            }
            undecided.note(decision);
        }
        undecided.decision()
    }

    /// Refuses what the user may not do.
    ///
    /// # Errors
    /// 403 with the authorizers' reason.
    pub async fn require(&self, user: &User, question: &Question) -> Result<String, Error> {
        self.decide(user, question)
            .await
            .into_result(user, question)
    }

    /// All rules that apply to a user in a namespace.
    #[must_use]
    pub fn rules(&self, user: &User, namespace: &str) -> Rules {
        let chain = self.chain.read().clone();
        let mut all = Rules::default();
        for step in &*chain {
            step.add_rules(user, namespace, &mut all);
        }
        all
    }

    /// What RBAC grants to a user in a namespace, which is what they may grant to others, and what is wrong with their
    /// bindings.
    #[must_use]
    pub fn granted(&self, user: &User, namespace: &str) -> (Vec<Arc<Rule>>, Vec<String>) {
        self.rbac.rules(user, namespace)
    }

    /// The rules of a role that a binding refers to.
    #[must_use]
    pub fn rules_of(&self, kind: &str, namespace: &str, name: &str) -> Option<Vec<Arc<Rule>>> {
        self.rbac.rules_of(kind, namespace, name)
    }
}

// === impl Step ===

impl Step {
    /// The decision of an authorizer that answers at once.
    fn decide(&self, user: &User, question: &Question) -> Decision {
        match self {
            Self::Node(node) => node.decide(user, question),
            Self::Rbac(rbac) => rbac.decide(user, question),
            Self::Abac(policies) => policies.decide(user, question),
            Self::AlwaysAllow => Decision::of(Verdict::Allow, ""),
            Self::AlwaysDeny => Decision::of(Verdict::NoOpinion, "Everything is forbidden."),
            Self::Webhook(_) => Decision::default(),
        }
    }

    fn add_rules(&self, user: &User, namespace: &str, all: &mut Rules) {
        let mut unlisted = |why: &str| {
            all.incomplete = true;
            all.errors.push(why.to_owned());
        };
        match self {
            Self::Node(_) if user.node_name().is_some() => {
                unlisted("node authorizer does not support user rule resolution");
            }
            Self::Webhook(_) => {
                unlisted("webhook authorizer does not support user rule resolution")
            }
            Self::Rbac(rbac) => {
                let (rules, errors) = rbac.rules(user, namespace);
                all.rules.extend(rules);
                all.errors.extend(errors);
            }
            Self::Abac(policies) => all.rules.extend(policies.rules(user, namespace)),
            Self::AlwaysAllow => all.rules.extend(Rule::everything()),
            Self::Node(_) | Self::AlwaysDeny => {}
        }
    }
}

/// What is said by authorizers that do not decide.
#[derive(Default)]
struct Undecided {
    reasons: Vec<String>,
    errors: Vec<String>,
}

impl Undecided {
    fn note(&mut self, decision: Decision) {
        if !decision.reason.is_empty() {
            self.reasons.push(decision.reason);
        }
        self.errors.extend(decision.error);
    }

    fn decision(self) -> Decision {
        Decision {
            verdict: Verdict::NoOpinion,
            reason: self.reasons.join("\n"),
            error: aggregate(self.errors),
        }
    }
}

/// Several errors as one, as upstream prints them.
#[must_use]
pub fn aggregate(mut errors: Vec<String>) -> Option<String> {
    let mut seen = std::collections::HashSet::new();
    errors.retain(|e| seen.insert(e.clone()));
    match errors.as_slice() {
        [] => None,
        [one] => Some(one.clone()),
        many => Some(format!("[{}]", many.join(", "))),
    }
}
