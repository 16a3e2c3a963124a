//! How clients of members authenticate and what they may do: checks that part of a spec, and lists the Secrets that it names.

use kvasir_crds::{Access, AccessRule, KvClusterSpec, SecretKey, ServiceAccounts};
use kvasir_formats::{
    access::{Verb, is_subject},
    defaults::REVIEW_TTL,
    duration,
};

use crate::names;

/// Checks `spec.access`; an error names the field and what to do.
pub fn check(spec: &KvClusterSpec) -> Result<(), (&'static str, &'static str)> {
    let Some(Access { tokens_secret, client_ca_secret, service_accounts, rules }) = &spec.access else { return Ok(()) };
    if tokens_secret.is_none() && client_ca_secret.is_none() && service_accounts.is_none() {
        return Err(("spec.access", "give at least one of tokensSecret, clientCaSecret and serviceAccounts"));
    }
    let serves_tls = spec.tls.as_ref().is_some_and(|tls| tls.client.unwrap_or(true));
    if client_ca_secret.is_some() && !serves_tls {
        return Err(("spec.access.clientCaSecret", "set tls too: certificates are shown over TLS"));
    }
    if let Some(ServiceAccounts { audiences, review_ttl }) = service_accounts {
        if audiences.iter().flatten().any(String::is_empty) || audiences.as_ref().is_some_and(|all| all.len() > 16) {
            return Err(("spec.access.serviceAccounts.audiences", "give up to 16, none of them empty"));
        }
        let ttl = review_ttl.as_deref().map(duration::parse);
        if ttl.is_some_and(|ttl| !ttl.is_ok_and(|ttl| REVIEW_TTL.contains(&ttl))) {
            return Err(("spec.access.serviceAccounts.reviewTtl", "set at least 1s and at most 10m"));
        }
    }
    for AccessRule { subjects, prefix: _, verbs } in rules.iter().flatten() {
        if subjects.is_empty() || !subjects.iter().all(|subject| is_subject(subject)) {
            let forms = "give subjects as token:NAME, cert:NAME, serviceaccount:NAMESPACE/NAME, group:NAME or *";
            return Err(("spec.access.rules", forms));
        }
        if verbs.is_empty() || verbs.iter().any(|verb| verb.parse::<Verb>().is_err()) {
            return Err(("spec.access.rules", "give verbs of read, write, delete, watch and admin"));
        }
    }
    Ok(())
}

/// The Secrets that the spec names, each with the path of its file in a member's container.
pub fn secrets(access: &Access) -> impl Iterator<Item = (&SecretKey, &'static str)> {
    let Access { tokens_secret, client_ca_secret, .. } = access;
    let files = [(tokens_secret, names::TOKENS_FILE), (client_ca_secret, names::CLIENT_CA_FILE)];
    files.into_iter().filter_map(|(secret, file)| Some((secret.as_ref()?, file)))
}

#[cfg(test)]
mod tests {
    use super::*;

    const ALL: &str = "{tls: {operator: {}}, access: {tokensSecret: {name: s, key: t}, clientCaSecret: {name: s, key: ca},
        serviceAccounts: {audiences: [kvasir], reviewTtl: 30s},
        rules: [{subjects: ['token:app', '*'], prefix: app/, verbs: [read, write]}, {subjects: ['cert:ops'], verbs: [admin]}]}}";

    #[test]
    fn access_check_repeats_the_schema_rules() {
        for (spec, field) in [
            ("{access: {}}", "spec.access"),
            ("{access: {clientCaSecret: {name: s, key: k}}}", "spec.access.clientCaSecret"),
            (
                "{tls: {operator: {}, client: false, peers: true}, access: {clientCaSecret: {name: s, key: k}}}",
                "spec.access.clientCaSecret",
            ),
            ("{access: {serviceAccounts: {audiences: ['']}}}", "spec.access.serviceAccounts.audiences"),
            ("{access: {serviceAccounts: {reviewTtl: 11m}}}", "spec.access.serviceAccounts.reviewTtl"),
            ("{access: {serviceAccounts: {reviewTtl: soon}}}", "spec.access.serviceAccounts.reviewTtl"),
            ("{access: {serviceAccounts: {}, rules: [{subjects: [], verbs: [read]}]}}", "spec.access.rules"),
            ("{access: {serviceAccounts: {}, rules: [{subjects: ['user:a'], verbs: [read]}]}}", "spec.access.rules"),
            ("{access: {serviceAccounts: {}, rules: [{subjects: ['token:'], verbs: [read]}]}}", "spec.access.rules"),
            ("{access: {serviceAccounts: {}, rules: [{subjects: ['*'], verbs: []}]}}", "spec.access.rules"),
            ("{access: {serviceAccounts: {}, rules: [{subjects: ['*'], verbs: [own]}]}}", "spec.access.rules"),
        ] {
            let spec_of: KvClusterSpec = serde_yaml::from_str(spec).unwrap();
            assert_eq!(check(&spec_of).unwrap_err().0, field, "{spec}");
        }
        check(&serde_yaml::from_str(ALL).unwrap()).unwrap();
    }
}
