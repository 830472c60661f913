//! What a certificate signing request asks for.

use std::net::IpAddr;

use x509_parser::{
    certification_request::X509CertificationRequest,
    extensions::{GeneralName, ParsedExtension},
    prelude::FromDer,
};

/// The parsed content of `spec.request`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Requested {
    pub common_name: String,
    pub organizations: Vec<String>,
    pub dns_names: Vec<String>,
    pub ip_addresses: Vec<IpAddr>,
    /// Subject alternative names of other types (URIs, mail addresses).
    pub other_names: usize,
}

/// Parse a PEM-encoded PKCS #10 request.
pub fn parse(pem: &[u8]) -> Result<Requested, String> {
    let (_, block) =
        x509_parser::pem::parse_x509_pem(pem).map_err(|_| "spec.request is not PEM".to_owned())?;
    if block.label != "CERTIFICATE REQUEST" && block.label != "NEW CERTIFICATE REQUEST" {
        return Err(format!(
            "PEM block type must be CERTIFICATE REQUEST, not {}",
            block.label
        ));
    }
    let (_, request) = X509CertificationRequest::from_der(&block.contents)
        .map_err(|error| format!("spec.request is not a certificate request: {error}"))?;
    let subject = &request.certification_request_info.subject;
    let texts =
        |attributes: &mut dyn Iterator<Item = &x509_parser::x509::AttributeTypeAndValue<'_>>| {
            attributes
                .filter_map(|attribute| attribute.as_str().ok().map(str::to_owned))
                .collect::<Vec<_>>()
        };
    let mut requested = Requested {
        common_name: texts(&mut subject.iter_common_name())
            .pop()
            .unwrap_or_default(),
        organizations: texts(&mut subject.iter_organization()),
        ..Requested::default()
    };
    for extension in request.requested_extensions().into_iter().flatten() {
        let ParsedExtension::SubjectAlternativeName(names) = extension else {
            continue;
        };
        for name in &names.general_names {
            match name {
                GeneralName::DNSName(name) => requested.dns_names.push((*name).to_owned()),
                GeneralName::IPAddress(bytes) => match to_ip(bytes) {
                    Some(address) => requested.ip_addresses.push(address),
                    None => requested.other_names += 1,
                },
                _ => requested.other_names += 1,
            }
        }
    }
    Ok(requested)
}

fn to_ip(bytes: &[u8]) -> Option<IpAddr> {
    if let Ok(bytes) = <[u8; 4]>::try_from(bytes) {
        return Some(IpAddr::from(bytes));
    }
    <[u8; 16]>::try_from(bytes).ok().map(IpAddr::from)
}

impl Requested {
    pub fn has_names(&self) -> bool {
        !self.dns_names.is_empty() || !self.ip_addresses.is_empty() || self.other_names > 0
    }
}

/// Why a kubelet's client certificate may not be issued as requested; the rules of the signer
/// `kubernetes.io/kube-apiserver-client-kubelet`.
pub fn check_kubelet_client(requested: &Requested, usages: &[String]) -> Result<(), &'static str> {
    check_kubelet_subject(requested)?;
    if requested.has_names() {
        return Err("subjectAltNames are not allowed");
    }
    check_usages(usages, "client auth")
}

/// Why a kubelet's serving certificate may not be issued as requested; the rules of the signer
/// `kubernetes.io/kubelet-serving`.
pub fn check_kubelet_serving(requested: &Requested, usages: &[String]) -> Result<(), &'static str> {
    check_kubelet_subject(requested)?;
    if requested.other_names > 0 {
        return Err("only DNS and IP subjectAltNames are allowed");
    }
    if requested.dns_names.is_empty() && requested.ip_addresses.is_empty() {
        return Err("DNS or IP subjectAltName is required");
    }
    check_usages(usages, "server auth")
}

fn check_kubelet_subject(requested: &Requested) -> Result<(), &'static str> {
    if requested.organizations != ["system:nodes"] {
        return Err("subject organization is not system:nodes");
    }
    match requested.common_name.strip_prefix("system:node:") {
        Some(name) if !name.is_empty() => Ok(()),
        _ => Err("subject common name does not begin with \"system:node:\""),
    }
}

fn check_usages(usages: &[String], needed: &'static str) -> Result<(), &'static str> {
    let allowed = ["digital signature", "key encipherment", needed];
    let has = |usage: &str| usages.iter().any(|listed| listed == usage);
    if !usages.iter().all(|usage| allowed.contains(&usage.as_str())) {
        return Err("usages did not match the signer's");
    }
    if has(needed) && has("digital signature") {
        Ok(())
    } else {
        Err("usages did not match the signer's")
    }
}

#[cfg(test)]
mod tests {
    use rcgen::{CertificateParams, DnType, KeyPair};

    use super::*;

    #[test]
    fn parses_subject_and_names() {
        let mut params =
            CertificateParams::new(vec!["node-0".to_owned(), "10.224.0.4".to_owned()]).unwrap();
        params
            .distinguished_name
            .push(DnType::CommonName, "system:node:node-0");
        params
            .distinguished_name
            .push(DnType::OrganizationName, "system:nodes");
        let key = KeyPair::generate().unwrap();
        let pem = params.serialize_request(&key).unwrap().pem().unwrap();
        let requested = parse(pem.as_bytes()).unwrap();
        assert_eq!(requested.common_name, "system:node:node-0");
        assert_eq!(requested.organizations, ["system:nodes"]);
        assert_eq!(requested.dns_names, ["node-0"]);
        assert_eq!(
            requested.ip_addresses,
            ["10.224.0.4".parse::<IpAddr>().unwrap()]
        );
        assert!(parse(b"nonsense").is_err());
        let certificate = pem.replace("CERTIFICATE REQUEST", "CERTIFICATE");
        assert!(parse(certificate.as_bytes()).is_err());
    }

    #[test]
    fn kubelet_rules() {
        let client = Requested {
            common_name: "system:node:node-0".to_owned(),
            organizations: vec!["system:nodes".to_owned()],
            ..Requested::default()
        };
        let usages = |list: &[&str]| {
            list.iter()
                .map(|usage| (*usage).to_owned())
                .collect::<Vec<_>>()
        };
        let client_usages = usages(&["digital signature", "client auth"]);
        assert!(check_kubelet_client(&client, &client_usages).is_ok());
        let refused = [
            Requested {
                organizations: vec!["system:masters".to_owned()],
                ..client.clone()
            },
            Requested {
                common_name: "admin".to_owned(),
                ..client.clone()
            },
            Requested {
                dns_names: vec!["x".to_owned()],
                ..client.clone()
            },
        ];
        for requested in refused {
            assert!(
                check_kubelet_client(&requested, &client_usages).is_err(),
                "{requested:?}"
            );
        }
        for list in [
            &["client auth"][..],
            &["digital signature", "server auth"],
            &["digital signature", "client auth", "cert sign"],
        ] {
            assert!(
                check_kubelet_client(&client, &usages(list)).is_err(),
                "{list:?}"
            );
        }
        let serving_usages = usages(&["digital signature", "key encipherment", "server auth"]);
        assert!(
            check_kubelet_serving(&client, &serving_usages).is_err(),
            "no names"
        );
        let serving = Requested {
            dns_names: vec!["node-0".to_owned()],
            ..client
        };
        assert!(check_kubelet_serving(&serving, &serving_usages).is_ok());
        assert!(
            check_kubelet_serving(
                &Requested {
                    other_names: 1,
                    ..serving
                },
                &serving_usages
            )
            .is_err()
        );
    }
}
