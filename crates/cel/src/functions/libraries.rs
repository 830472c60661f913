//! Kubernetes' own libraries.

use std::cmp::Ordering;
use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;

use fluyt_api::quantity::Quantity;

use super::Outcome;
use crate::authz::Authz;
use crate::eval::EvalError;
use crate::library::{self, Cidr, Semver, Url};
use crate::value::{Key, Value};

pub(super) fn call(name: &str, member: bool, args: &[Value]) -> Outcome {
    match args.first() {
        Some(Value::Quantity(quantity)) => of_quantity(name, quantity, args),
        Some(Value::Url(url)) => of_url(name, url),
        Some(Value::Ip(address)) => of_ip(name, *address),
        Some(Value::Cidr(cidr)) => of_cidr(name, *cidr, args),
        Some(Value::Semver(version)) => of_semver(name, version, args),
        Some(Value::Authz(authz)) => of_authz(name, authz, args),
        Some(Value::Format(format)) => match (name, args) {
            ("validate", [_, Value::String(text)]) => {
                let problems: Vec<Value> = (format.check)(text)
                    .iter()
                    .map(|p| Value::from(p.as_str()))
                    .collect();
                let found = (!problems.is_empty()).then(|| Box::new(Value::list(problems)));
                Some(Ok(Value::Optional(found)))
            }
            _ => None,
        },
        Some(Value::String(text)) if !member => from_text(name, text, args),
        None => {
            let format = library::format(name.strip_prefix("format.")?)?;
            Some(Ok(Value::Format(format)))
        }
        _ => None,
    }
}

fn from_text(name: &str, text: &str, args: &[Value]) -> Outcome {
    let error = |why: String| Err(EvalError::other(why));
    let normalize = matches!(args.get(1), Some(Value::Bool(true)));
    Some(match name {
        "url" => Url::parse(text).map_or_else(error, |u| Ok(Value::Url(Arc::new(u)))),
        "isURL" => Ok(Value::Bool(Url::parse(text).is_ok())),
        "quantity" => text
            .parse::<Quantity>()
            .map(|q| Value::Quantity(Arc::new(q)))
            .map_err(|e| EvalError::other(e.to_string())),
        "isQuantity" => Ok(Value::Bool(text.parse::<Quantity>().is_ok())),
        "ip" => library::parse_ip(text).map_or_else(error, |a| Ok(Value::Ip(a))),
        "isIP" => Ok(Value::Bool(library::parse_ip(text).is_ok())),
        "ip.isCanonical" => {
            library::parse_ip(text).map_or_else(error, |a| Ok(Value::Bool(a.to_string() == text)))
        }
        "cidr" => Cidr::parse(text).map_or_else(error, |c| Ok(Value::Cidr(c))),
        "isCIDR" => Ok(Value::Bool(Cidr::parse(text).is_ok())),
        "semver" => {
            Semver::parse(text, normalize).map_or_else(error, |v| Ok(Value::Semver(Arc::new(v))))
        }
        "isSemver" => Ok(Value::Bool(Semver::parse(text, normalize).is_ok())),
        "format.named" => Ok(Value::Optional(
            library::format(text).map(|f| Box::new(Value::Format(f))),
        )),
        "jsonpatch.escapeKey" => Ok(Value::from(
            text.replace('~', "~0").replace('/', "~1").as_str(),
        )),
        _ => return None,
    })
}

fn of_quantity(name: &str, quantity: &Quantity, args: &[Value]) -> Outcome {
    const NANO: i128 = 1_000_000_000;
    let sign = match quantity.nanos() {
        0 => 0,
        n if n < 0 => -1,
        _ => 1,
    };
    let other = match args.get(1) {
        Some(Value::Quantity(other)) => Some(**other),
        Some(Value::Int(n)) => Some(Quantity::from_units(*n)),
        _ => None,
    };
    let integer = (quantity.nanos() % NANO == 0)
        .then(|| i64::try_from(quantity.nanos() / NANO).ok())
        .flatten();
    Some(match (name, other) {
        ("sign", None) => Ok(Value::Int(sign)),
        ("isInteger", None) => Ok(Value::Bool(integer.is_some())),
        ("asInteger", None) => integer
            .map(Value::Int)
            .ok_or_else(|| EvalError::other("cannot convert value to integer")),
        #[allow(clippy::cast_precision_loss)]
        ("asApproximateFloat", None) => Ok(Value::Double(quantity.nanos() as f64 / 1e9)),
        ("add", Some(other)) => Ok(Value::Quantity(Arc::new(quantity.plus(other)))),
        ("sub", Some(other)) => Ok(Value::Quantity(Arc::new(quantity.minus(other)))),
        ("isLessThan", Some(other)) => Ok(Value::Bool(*quantity < other)),
        ("isGreaterThan", Some(other)) => Ok(Value::Bool(*quantity > other)),
        ("compareTo", Some(other)) => Ok(order(quantity.cmp(&other))),
        _ => return None,
    })
}

fn order(ordering: Ordering) -> Value {
    Value::Int(match ordering {
        Ordering::Less => -1,
        Ordering::Equal => 0,
        Ordering::Greater => 1,
    })
}

fn of_url(name: &str, url: &Url) -> Outcome {
    Some(Ok(match name {
        "getScheme" => Value::from(url.scheme.as_str()),
        "getHost" => Value::from(url.host.as_str()),
        "getHostname" => Value::from(url.hostname()),
        "getPort" => Value::from(url.port()),
        "getEscapedPath" => Value::from(url.path.as_str()),
        "getQuery" => {
            let entries: BTreeMap<Key, Value> = url
                .parameters()
                .into_iter()
                .map(|(name, values)| {
                    let values = values.iter().map(|v| Value::from(v.as_str())).collect();
                    (Key::String(name.as_str().into()), Value::list(values))
                })
                .collect();
            Value::Map(Arc::new(entries))
        }
        _ => return None,
    }))
}

fn of_ip(name: &str, address: IpAddr) -> Outcome {
    let link_local = match address {
        IpAddr::V4(a) => a.is_link_local(),
        IpAddr::V6(a) => a.segments()[0] & 0xffc0 == 0xfe80,
    };
    let link_local_multicast = match address {
        IpAddr::V4(a) => a.octets()[..3] == [224, 0, 0],
        IpAddr::V6(a) => a.segments()[0] & 0xff0f == 0xff02,
    };
    let broadcast = matches!(address, IpAddr::V4(a) if a.is_broadcast());
    Some(Ok(match name {
        "family" => Value::Int(if address.is_ipv4() { 4 } else { 6 }),
        "isUnspecified" => Value::Bool(address.is_unspecified()),
        "isLoopback" => Value::Bool(address.is_loopback()),
        "isLinkLocalMulticast" => Value::Bool(link_local_multicast),
        "isLinkLocalUnicast" => Value::Bool(link_local),
        "isGlobalUnicast" => Value::Bool(
            !(address.is_unspecified()
                || address.is_loopback()
                || address.is_multicast()
                || link_local
                || broadcast),
        ),
        _ => return None,
    }))
}

fn of_cidr(name: &str, cidr: Cidr, args: &[Value]) -> Outcome {
    Some(match (name, args.get(1)) {
        ("ip", None) => Ok(Value::Ip(cidr.address)),
        ("masked", None) => Ok(Value::Cidr(cidr.masked())),
        ("prefixLength", None) => Ok(Value::Int(cidr.bits.into())),
        ("containsIP", Some(Value::Ip(address))) => Ok(Value::Bool(cidr.contains(*address))),
        ("containsIP", Some(Value::String(text))) => library::parse_ip(text)
            .map(|a| Value::Bool(cidr.contains(a)))
            .map_err(EvalError::other),
        ("containsCIDR", Some(Value::Cidr(other))) => Ok(Value::Bool(cidr.contains_cidr(*other))),
        ("containsCIDR", Some(Value::String(text))) => Cidr::parse(text)
            .map(|c| Value::Bool(cidr.contains_cidr(c)))
            .map_err(EvalError::other),
        _ => return None,
    })
}

fn of_semver(name: &str, version: &Semver, args: &[Value]) -> Outcome {
    let number = |i: usize| {
        Ok(Value::Int(
            i64::try_from(version.numbers[i]).unwrap_or(i64::MAX),
        ))
    };
    Some(match (name, args.get(1)) {
        ("major", None) => number(0),
        ("minor", None) => number(1),
        ("patch", None) => number(2),
        ("isLessThan", Some(Value::Semver(other))) => {
            Ok(Value::Bool(version.compare(other) == Ordering::Less))
        }
        ("isGreaterThan", Some(Value::Semver(other))) => {
            Ok(Value::Bool(version.compare(other) == Ordering::Greater))
        }
        ("compareTo", Some(Value::Semver(other))) => Ok(order(version.compare(other))),
        _ => return None,
    })
}

fn of_authz(name: &str, authz: &Arc<Authz>, args: &[Value]) -> Outcome {
    let texts: Option<Vec<&str>> = args[1..]
        .iter()
        .map(|a| match a {
            Value::String(s) => Some(&**s),
            _ => None,
        })
        .collect();
    let texts = texts?;
    Some(Ok(match (&**authz, name) {
        (Authz::Decision(allowed, _), "allowed") => Value::Bool(*allowed),
        (Authz::Decision(_, reason), "reason") => Value::from(reason.as_str()),
        (Authz::Decision(..), "errored") => Value::Bool(false),
        (Authz::Decision(..), "error") => Value::from(""),
        (authz, "check") => Value::Authz(Arc::new(authz.check(texts.first()?)?)),
        (authz, step) => Value::Authz(Arc::new(authz.step(step, &texts)?)),
    }))
}
