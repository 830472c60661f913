//! The node ports of services, and the port under which a load balancer asks nodes for their health.

use std::collections::HashMap;

use fluyt_api::strategy::service::needs_health_check;
use fluyt_api::validation::Errors;
use fluyt_api::{Error, Reason, meta};
use serde_json::Value;

use super::allocation::Allocation;
use super::ports::View;

const HEALTH: &str = "healthCheckNodePort";

fn has_node_ports(service: &Value) -> bool {
    matches!(
        service["spec"]["type"].as_str(),
        Some("NodePort" | "LoadBalancer")
    )
}

/// Whether every port gets one that the service does not name.
fn wants_node_ports(service: &Value) -> bool {
    let spec = &service["spec"];
    has_node_ports(service)
        && (spec["type"] == "NodePort" || spec["allocateLoadBalancerNodePorts"] != false)
}

/// Whether a write of a service can have to do with ports.
pub(super) fn concern(service: &Value, old: Option<&Value>) -> bool {
    has_node_ports(service) || old.is_some_and(has_node_ports)
}

fn number(port: &Value, field: &str) -> i64 {
    port[field].as_i64().unwrap_or_default()
}

fn ports(service: &Value) -> impl Iterator<Item = &Value> {
    service["spec"]["ports"].as_array().into_iter().flatten()
}

fn node_ports(service: &Value) -> Vec<i64> {
    let all = ports(service).map(|port| number(port, "nodePort"));
    all.filter(|port| *port != 0).collect()
}

fn health_check_port(service: &Value) -> Option<i64> {
    let port = number(&service["spec"], HEALTH);
    (needs_health_check(&service["spec"]) && port != 0).then_some(port)
}

/// All ports that a service has, each once.
pub(super) fn all(service: &Value) -> Vec<i64> {
    let mut all = node_ports(service);
    all.extend(health_check_port(service));
    all.sort_unstable();
    all.dedup();
    all
}

/// The ports that a service must have of its own. A number counts twice where the service cannot have it twice.
pub(crate) fn claimed(service: &Value) -> Vec<i64> {
    let mut seen: Vec<(i64, &str)> = Vec::new();
    let mut claimed = Vec::new();
    let health = number(&service["spec"], HEALTH);
    let named = ports(service).map(|port| {
        let protocol = port["protocol"].as_str().unwrap_or("TCP");
        (number(port, "nodePort"), protocol)
    });
    for (port, protocol) in named
        .chain([(health, "TCP")])
        .filter(|(port, _)| *port != 0)
    {
        let of_this: Vec<&str> = seen
            .iter()
            .filter(|(other, _)| *other == port)
            .map(|(_, protocol)| *protocol)
            .collect();
        if of_this.is_empty() || of_this.contains(&protocol) {
            claimed.push(port);
        }
        seen.push((port, protocol));
    }
    claimed
}

/// Gives a service the ports that it needs and has not got, and notes which ones it had and does not need.
pub(super) fn assign(
    view: &View<'_>,
    service: &mut Value,
    old: Option<&Value>,
    allocation: &mut Allocation,
) -> Result<(), Error> {
    match old {
        None if has_node_ports(service) => init(view, service, allocation)?,
        None => {}
        Some(old) => update(view, service, old, allocation)?,
    }
    let (had, needs) = (
        old.is_some_and(|old| needs_health_check(&old["spec"])),
        needs_health_check(&service["spec"]),
    );
    if needs && !had {
        take_health_check_port(view, service, allocation)?;
    } else if had && !needs {
        allocation
            .ports
            .released
            .extend(old.and_then(health_check_port));
    }
    Ok(())
}

fn refused(service: &Value, i: usize, port: i64, why: &str) -> Error {
    let mut errors = Errors::default();
    let place = format!("spec.ports[{i}].nodePort");
    errors.invalid(place, &port.into(), why);
    Error::invalid("", "Service", meta::name(service), errors.0)
}

fn take_any(view: &View<'_>, allocation: &mut Allocation) -> Result<i64, Error> {
    let port = allocation.take_any_port(view);
    port.map_err(|why| Error::internal(format!("failed to allocate a nodePort: {why}")))
}

/// Ports of the same number but of different protocols share a node port where the service does not say otherwise.
fn init(view: &View<'_>, service: &mut Value, allocation: &mut Allocation) -> Result<(), Error> {
    let mut by_port: HashMap<i64, i64> = HashMap::new();
    let wants = wants_node_ports(service);
    for i in 0..ports(service).count() {
        let port = &service["spec"]["ports"][i];
        let (own, asked) = (number(port, "port"), number(port, "nodePort"));
        if asked == 0 && !wants {
            continue;
        }
        let chosen = match by_port.get(&own).copied() {
            Some(shared) if asked == 0 => shared,
            Some(shared) if asked == shared => continue,
            Some(_) => {
                let taken = allocation.take_port(view, asked);
                taken.map_err(|why| refused(service, i, asked, &why))?;
                continue;
            }
            None => {
                let mut same = ports(service).filter(|p| number(p, "port") == own);
                let named = same.find_map(|p| Some(number(p, "nodePort")).filter(|n| *n != 0));
                let chosen = match named {
                    Some(named) => {
                        let taken = allocation.take_port(view, named);
                        taken.map_err(|why| refused(service, i, named, &why))?;
                        named
                    }
                    None => take_any(view, allocation)?,
                };
                by_port.insert(own, chosen);
                chosen
            }
        };
        service["spec"]["ports"][i]["nodePort"] = chosen.into();
    }
    Ok(())
}

fn update(
    view: &View<'_>,
    service: &mut Value,
    old: &Value,
    allocation: &mut Allocation,
) -> Result<(), Error> {
    let had = node_ports(old);
    if has_node_ports(service) {
        update_each(view, service, &had, allocation)?;
    }
    let has = if has_node_ports(service) {
        node_ports(service)
    } else {
        Vec::new()
    };
    if has_node_ports(old) {
        let gone = had.into_iter().filter(|port| !has.contains(port));
        allocation.ports.released.extend(gone);
    }
    Ok(())
}

fn update_each(
    view: &View<'_>,
    service: &mut Value,
    had: &[i64],
    allocation: &mut Allocation,
) -> Result<(), Error> {
    let wants = wants_node_ports(service);
    let mut seen: Vec<(String, i64)> = Vec::new();
    let mut named: Vec<i64> = Vec::new();
    for i in 0..ports(service).count() {
        let port = &service["spec"]["ports"][i];
        let protocol = port["protocol"].as_str().unwrap_or("TCP").to_owned();
        let mut chosen = number(port, "nodePort");
        if chosen == 0 && !wants {
            continue;
        }
        if chosen == 0 {
            chosen = take_any(view, allocation)?;
            service["spec"]["ports"][i]["nodePort"] = chosen.into();
        } else if !had.contains(&chosen) && !named.contains(&chosen) {
            let taken = allocation.take_port(view, chosen);
            taken.map_err(|why| refused(service, i, chosen, &why))?;
            named.push(chosen);
        }
        let of = (protocol, chosen);
        if seen.contains(&of) {
            let message = format!("duplicate nodePort: {{{} {}}}", of.0, of.1);
            return Err(Error::new(Reason::Unknown, message));
        }
        seen.push(of);
    }
    Ok(())
}

fn take_health_check_port(
    view: &View<'_>,
    service: &mut Value,
    allocation: &mut Allocation,
) -> Result<(), Error> {
    let asked = number(&service["spec"], HEALTH);
    if asked != 0 {
        return allocation.take_port(view, asked).map_err(|why| {
            Error::internal(format!(
                "failed to allocate requested HealthCheck NodePort {asked}: {why}"
            ))
        });
    }
    let port = allocation.take_any_port(view).map_err(|why| {
        Error::internal(format!(
            "failed to allocate a HealthCheck NodePort 0: {why}"
        ))
    })?;
    meta::child(service, "spec").insert(HEALTH.into(), port.into());
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_number_is_claimed_once_for_different_protocols() {
        let port = |number: i64, protocol: &str| json!({"nodePort": number, "protocol": protocol});
        let service = |ports: &[Value]| json!({"spec": {"type": "NodePort", "ports": ports}});
        let (tcp, udp) = (port(1, "TCP"), port(1, "UDP"));
        assert_eq!(claimed(&service(&[tcp.clone(), udp.clone()])), [1]);
        assert_eq!(claimed(&service(&[tcp.clone(), tcp])), [1, 1]);
        let mut balancer = service(&[udp]);
        balancer["spec"]["healthCheckNodePort"] = 2.into();
        assert_eq!(claimed(&balancer), [1, 2]);
        assert_eq!(all(&balancer), [1]);
        balancer["spec"]["type"] = "LoadBalancer".into();
        balancer["spec"]["externalTrafficPolicy"] = "Local".into();
        assert_eq!(all(&balancer), [1, 2]);
    }
}
