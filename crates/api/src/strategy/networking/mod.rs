//! Kinds of `networking.k8s.io`, and endpoints.

mod addresses;
mod endpoints;
mod ingress;
mod policy;

pub(super) use addresses::{IpAddress, ServiceCidr};
pub(super) use endpoints::{EndpointSlice, Endpoints};
pub(super) use ingress::{Ingress, IngressClass};
pub(super) use policy::NetworkPolicy;
