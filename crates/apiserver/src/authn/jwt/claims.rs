//! Claims as users: which claim is what, directly or by an expression.

use std::collections::BTreeMap;
use std::sync::LazyLock;

use fluyt_api::validation::Errors;
use fluyt_cel::{Activation, Environment, PER_CALL_LIMIT, Program, Type, Value as CelValue};
use serde::Deserialize;
use serde_json::{Map, Value};

use super::config::JwtAuthenticator;
use crate::cel_types::user_info;
use crate::user::{self, CREDENTIAL_ID, User};

/// Where a part of a user comes from.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Mapping {
    #[serde(default)]
    pub claim: String,
    pub prefix: Option<String>,
    #[serde(default)]
    pub expression: String,
}

/// The rules of one issuer, compiled.
pub struct Mapper {
    rules: JwtAuthenticator,
    username: Option<Program>,
    groups: Option<Program>,
    uid: Option<Program>,
    extra: Vec<Program>,
    claim_rules: Vec<(Program, String, String)>,
    user_rules: Vec<(Program, String, String)>,
}

static CLAIMS: LazyLock<Environment> = LazyLock::new(|| {
    let mut environment = Environment::default();
    environment.declare("claims", Type::map(Type::String, Type::Dyn));
    environment
});

static USER: LazyLock<Environment> = LazyLock::new(|| {
    let mut environment = Environment::default();
    environment.declare("user", user_info());
    environment
});

/// Compiles an expression over the claims.
///
/// # Errors
/// What is wrong with it.
pub fn compile_claims(expression: &str, boolean: bool) -> Result<Program, String> {
    compile(&CLAIMS, expression, boolean)
}

/// Compiles a rule about the user.
///
/// # Errors
/// What is wrong with it.
pub fn compile_user(expression: &str) -> Result<Program, String> {
    compile(&USER, expression, true)
}

fn compile(environment: &Environment, expression: &str, boolean: bool) -> Result<Program, String> {
    let program = environment
        .compile(expression)
        .map_err(|e| format!("compilation failed: {e}"))?;
    if boolean && program.result != Type::Bool {
        return Err("must evaluate to bool".into());
    }
    Ok(program)
}

// === impl Mapping ===

impl Mapping {
    pub(super) fn validate(&self, at: &str, required: bool, prefixed: bool, errors: &mut Errors) {
        match (self.claim.as_str(), self.expression.as_str()) {
            ("", "") if required => errors.required(at, "claim or expression is required"),
            ("", "") => {}
            ("", expression) => {
                if let Some(prefix) = &self.prefix {
                    errors.invalid(
                        format!("{at}.prefix"),
                        &prefix.as_str().into(),
                        "may not be specified when expression is set",
                    );
                }
                if let Err(why) = compile_claims(expression, false) {
                    errors.invalid(format!("{at}.expression"), &expression.into(), &why);
                }
            }
            (_, "") if prefixed && self.prefix.is_none() => errors.required(
                format!("{at}.prefix"),
                "prefix is required when claim is set. It can be set to an empty string to disable prefixing",
            ),
            (_, "") => {}
            _ => errors.invalid(at, &"".into(), "claim and expression can't both be set"),
        }
    }

    fn program(&self) -> Result<Option<Program>, String> {
        if self.expression.is_empty() {
            return Ok(None);
        }
        compile_claims(&self.expression, false).map(Some)
    }
}

// === impl Mapper ===

impl Mapper {
    /// # Errors
    /// When an expression does not compile.
    pub fn new(rules: &JwtAuthenticator) -> Result<Self, String> {
        let mappings = &rules.claim_mappings;
        let extra = mappings.extra.iter();
        let extra = extra.map(|e| compile_claims(&e.value_expression, false));
        let claim_rules = rules.claim_validation_rules.iter();
        let claim_rules = claim_rules.filter(|r| !r.expression.is_empty()).map(|r| {
            let program = compile_claims(&r.expression, true)?;
            Ok((program, r.expression.clone(), r.message.clone()))
        });
        let user_rules = rules.user_validation_rules.iter().map(|r| {
            let program = compile_user(&r.expression)?;
            Ok((program, r.expression.clone(), r.message.clone()))
        });
        Ok(Self {
            username: mappings.username.program()?,
            groups: mappings.groups.program()?,
            uid: mappings.uid.program()?,
            extra: extra.collect::<Result<_, String>>()?,
            claim_rules: claim_rules.collect::<Result<_, String>>()?,
            user_rules: user_rules.collect::<Result<_, String>>()?,
            rules: rules.clone(),
        })
    }

    /// The user that verified claims stand for.
    ///
    /// # Errors
    /// What a claim lacks, or which rule does not hold.
    pub fn user(&self, claims: &Map<String, Value>) -> Result<User, String> {
        let object = CelValue::from_json(&Value::Object(claims.clone()));
        let activation = Activation::default().with("claims", object);
        let user = User {
            name: self.username(claims, &activation)?,
            groups: self.groups(claims, &activation)?,
            uid: self.uid(claims, &activation)?,
            extra: self.extra(claims, &activation)?,
        };
        for rule in &self.rules.claim_validation_rules {
            if !rule.claim.is_empty() {
                required_claim(claims, &rule.claim, &rule.required_value)?;
            }
        }
        hold(&self.claim_rules, &activation)
            .map_err(|why| format!("oidc: error evaluating claim validation expression: {why}"))?;
        if !self.user_rules.is_empty() {
            let info = CelValue::typed(&filled(&user), &user_info());
            let activation = Activation::default().with("user", info);
            hold(&self.user_rules, &activation).map_err(|why| {
                format!("oidc: error evaluating user info validation rule: {why}")
            })?;
        }
        Ok(user)
    }

    fn username(
        &self,
        claims: &Map<String, Value>,
        activation: &Activation,
    ) -> Result<String, String> {
        if let Some(program) = &self.username {
            let failed =
                |why: &str| format!("oidc: error evaluating username claim expression: {why}");
            let value = run(program, activation).map_err(|why| failed(&why))?;
            return match value {
                CelValue::String(name) if name.is_empty() => {
                    Err("oidc: empty username via CEL expression is not allowed".into())
                }
                CelValue::String(name) => Ok(name.to_string()),
                _ => Err(failed("username claim expression must return a string")),
            };
        }
        let mapping = &self.rules.claim_mappings.username;
        let claim = mapping.claim.as_str();
        let name = string_claim(claims, claim)
            .map_err(|why| format!("oidc: parse username claims {claim:?}: {why}"))?;
        if claim == "email" {
            match claims.get("email_verified") {
                None | Some(Value::Bool(true)) => {}
                Some(Value::Bool(false)) => return Err("oidc: email not verified".into()),
                Some(_) => return Err("oidc: parse 'email_verified' claim: no boolean".into()),
            }
        }
        Ok(format!("{}{name}", prefix(mapping)))
    }

    fn groups(
        &self,
        claims: &Map<String, Value>,
        activation: &Activation,
    ) -> Result<Vec<String>, String> {
        let mapping = &self.rules.claim_mappings.groups;
        if let Some(value) = claims.get(&mapping.claim) {
            let groups = match value {
                Value::String(one) => vec![one.clone()],
                Value::Array(list) => list
                    .iter()
                    .map(|item| item.as_str().map(str::to_owned))
                    .collect::<Option<_>>()
                    .ok_or_else(|| wrong_groups(&mapping.claim))?,
                _ => return Err(wrong_groups(&mapping.claim)),
            };
            let prefix = prefix(mapping);
            return Ok(groups.iter().map(|g| format!("{prefix}{g}")).collect());
        }
        let Some(program) = &self.groups else {
            return Ok(Vec::new());
        };
        run(program, activation)
            .and_then(|value| strings(&value))
            .map_err(|why| format!("oidc: error evaluating group claim expression: {why}"))
    }

    fn uid(&self, claims: &Map<String, Value>, activation: &Activation) -> Result<String, String> {
        let claim = &self.rules.claim_mappings.uid.claim;
        if !claim.is_empty() {
            return string_claim(claims, claim)
                .map_err(|why| format!("oidc: parse uid claim {claim:?}: {why}"));
        }
        let Some(program) = &self.uid else {
            return Ok(String::new());
        };
        let failed = |why: &str| format!("oidc: error evaluating uid claim expression: {why}");
        match run(program, activation).map_err(|why| failed(&why))? {
            CelValue::String(uid) => Ok(uid.to_string()),
            _ => Err(failed("uid claim expression must return a string")),
        }
    }

    fn extra(
        &self,
        claims: &Map<String, Value>,
        activation: &Activation,
    ) -> Result<BTreeMap<String, Vec<String>>, String> {
        let mut extra = BTreeMap::new();
        if let Some(id) = claims.get("jti").and_then(Value::as_str)
            && !id.is_empty()
        {
            extra.insert(CREDENTIAL_ID.to_owned(), vec![format!("JTI={id}")]);
        }
        for (mapping, program) in self.rules.claim_mappings.extra.iter().zip(&self.extra) {
            let values = run(program, activation)
                .and_then(|value| strings(&value))
                .map_err(|why| format!("oidc: error evaluating extra claim expression: {why}"))?;
            if !values.is_empty() {
                extra.insert(mapping.key.clone(), values);
            }
        }
        Ok(extra)
    }
}

fn prefix(mapping: &Mapping) -> &str {
    mapping.prefix.as_deref().unwrap_or_default()
}

fn wrong_groups(claim: &str) -> String {
    format!("oidc: parse groups claim {claim:?}: neither a string nor a list of strings")
}

fn string_claim(claims: &Map<String, Value>, name: &str) -> Result<String, String> {
    match claims.get(name) {
        None => Err("claim not present".into()),
        Some(Value::String(text)) => Ok(text.clone()),
        Some(_) => Err("claim is not a string".into()),
    }
}

fn required_claim(claims: &Map<String, Value>, name: &str, wanted: &str) -> Result<(), String> {
    if !claims.contains_key(name) {
        return Err(format!(
            "oidc: required claim {name} not present in ID token"
        ));
    }
    let found =
        string_claim(claims, name).map_err(|why| format!("oidc: parse claim {name}: {why}"))?;
    if found != wanted {
        return Err(format!(
            "oidc: required claim {name} value does not match. Got = {found}, want = {wanted}"
        ));
    }
    Ok(())
}

fn run(program: &Program, activation: &Activation) -> Result<CelValue, String> {
    let (result, _) = program.run(activation, PER_CALL_LIMIT);
    result.map_err(|e| e.to_string())
}

/// A string, a list of strings, or nothing; empty ones do not count.
fn strings(value: &CelValue) -> Result<Vec<String>, String> {
    let one = |value: &CelValue| match value {
        CelValue::String(text) => Ok(text.to_string()),
        other => Err(format!("expected a string, got {}", other.type_name())),
    };
    let all = match value {
        CelValue::Null => Vec::new(),
        CelValue::List(items) => items.iter().map(one).collect::<Result<_, _>>()?,
        single => vec![one(single)?],
    };
    Ok(all
        .into_iter()
        .filter(|text: &String| !text.is_empty())
        .collect())
}

fn hold(rules: &[(Program, String, String)], activation: &Activation) -> Result<(), String> {
    for (program, expression, message) in rules {
        match run(program, activation)? {
            CelValue::Bool(true) => {}
            _ if message.is_empty() => {
                return Err(format!("validation expression '{expression}' failed"));
            }
            _ => {
                return Err(format!(
                    "validation expression '{expression}' failed: {message}"
                ));
            }
        }
    }
    Ok(())
}

/// The user with all fields, as rules may look at any.
fn filled(user: &User) -> Value {
    let mut info = user::user_info(user);
    for (field, empty) in [
        ("username", Value::from("")),
        ("uid", "".into()),
        ("groups", Value::Array(Vec::new())),
        ("extra", Value::Object(Map::new())),
    ] {
        if info[field].is_null() {
            info[field] = empty;
        }
    }
    info
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::authn::jwt::config::{
        ClaimMappings, ClaimValidationRule, ExtraMapping, UserValidationRule,
    };
    use serde_json::json;

    fn claims() -> Map<String, Value> {
        let claims = json!({"sub": "u1", "email": "a@b", "email_verified": true, "roles": ["x", "y"], "one": "z",
            "tier": "gold", "n": 3, "jti": "t1"});
        claims.as_object().unwrap().clone()
    }

    fn claim(name: &str, prefix: &str) -> Mapping {
        Mapping {
            claim: name.into(),
            prefix: Some(prefix.into()),
            ..Mapping::default()
        }
    }

    fn expression(text: &str) -> Mapping {
        Mapping {
            expression: text.into(),
            ..Mapping::default()
        }
    }

    fn map(mappings: ClaimMappings) -> Result<User, String> {
        let rules = JwtAuthenticator {
            claim_mappings: mappings,
            ..JwtAuthenticator::default()
        };
        Mapper::new(&rules)?.user(&claims())
    }

    #[test]
    fn claims_and_expressions() {
        let user = map(ClaimMappings {
            username: claim("sub", "p:"),
            groups: claim("roles", "g:"),
            uid: claim("sub", ""),
            extra: vec![ExtraMapping {
                key: "acme.io/tier".into(),
                value_expression: "claims.tier".into(),
            }],
        })
        .unwrap();
        assert_eq!((user.name.as_str(), user.uid.as_str()), ("p:u1", "u1"));
        assert_eq!(user.groups, ["g:x", "g:y"]);
        assert_eq!(user.extra["acme.io/tier"], ["gold"]);
        assert_eq!(user.extra[CREDENTIAL_ID], ["JTI=t1"]);
        let user = map(ClaimMappings {
            username: expression("claims.email_verified ? 'e:' + claims.email : ''"),
            groups: expression("claims.roles.map(r, 'k:' + r)"),
            ..ClaimMappings::default()
        })
        .unwrap();
        assert_eq!(user.name, "e:a@b");
        assert_eq!(user.groups, ["k:x", "k:y"]);
    }

    #[test]
    fn what_does_not_fit_is_refused() {
        for (mapping, part) in [
            (claim("none", ""), "claim not present"),
            (claim("n", ""), "not a string"),
            (expression("claims.n"), "must return a string"),
            (expression("''"), "empty username"),
        ] {
            let mappings = ClaimMappings {
                username: mapping,
                ..ClaimMappings::default()
            };
            let error = map(mappings).unwrap_err();
            assert!(error.contains(part), "{error}");
        }
    }

    #[test]
    fn rules_have_to_hold() {
        let with = |claim_rule: ClaimValidationRule, user_rule: &str| {
            let rules = JwtAuthenticator {
                claim_mappings: ClaimMappings {
                    username: claim("sub", ""),
                    ..ClaimMappings::default()
                },
                claim_validation_rules: vec![claim_rule],
                user_validation_rules: vec![UserValidationRule {
                    expression: user_rule.into(),
                    message: "no".into(),
                }],
                ..JwtAuthenticator::default()
            };
            Mapper::new(&rules).unwrap().user(&claims())
        };
        let tier = |value: &str| ClaimValidationRule {
            claim: "tier".into(),
            required_value: value.into(),
            ..ClaimValidationRule::default()
        };
        assert!(with(tier("gold"), "user.username == 'u1'").is_ok());
        assert!(
            with(tier("lead"), "true")
                .unwrap_err()
                .contains("value does not match")
        );
        assert!(
            with(tier("gold"), "user.groups.size() > 0")
                .unwrap_err()
                .contains("failed: no")
        );
    }
}
