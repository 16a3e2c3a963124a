//! From a `KvCluster` as the API server stores it to one that can be built.
//!
//! The API server checks most of this before it stores an object, but an object may be older than a rule.

use std::{ops::RangeInclusive, time::Duration};

use k8s_openapi::{api::core::v1::ResourceRequirements, apimachinery::pkg::apis::meta::v1::OwnerReference};
use kube::{Resource, ResourceExt};
use kvasir_crds::{
    Access, Discovery, EMPTY_NODE_BYTES, KubernetesDiscovery, KvCluster, KvClusterSpec, LEAST_MEMORY_LIMIT, MAX_NAME,
    MAX_REPLICAS, Resources,
};
use kvasir_formats::{duration, quantity};

use super::{access, encryption::KeyFile, tls::NodeTls};
use crate::obstacle::Failure;

const SYNC_INTERVAL: RangeInclusive<Duration> = Duration::from_millis(100)..=Duration::from_mins(1);
const EVICT_AFTER: RangeInclusive<Duration> = Duration::from_secs(10)..=Duration::from_hours(24);
const LEAST_MEMORY: u64 = 1 << 20;
/// Less than the time that the kubelet gives a member to become ready.
const LONGEST_JOIN: Duration = Duration::from_secs(90);
const MAX_MEMORY_POLICIES: [&str; 2] = ["noeviction", "ttl-first"];

/// A cluster with everything that building needs.
#[derive(Clone, Debug, PartialEq)]
pub struct ValidatedCluster {
    /// Name of the `KvCluster` and of most of its objects.
    pub name: String,
    /// Namespace of the `KvCluster` and of all its objects.
    pub namespace: String,
    /// The owner reference of all objects.
    pub owner: OwnerReference,
    /// How many members there should be.
    pub replicas: i32,
    /// Image of members and sidecars.
    pub image: String,
    /// Resources of members and sidecars; `None`: each has its own default.
    pub resources: Option<ResourceRequirements>,
    /// How often nodes compare digests.
    pub sync_interval: Period,
    /// Bytes for the entries of a node; `None`: a node derives the figure from the memory limit of its container.
    pub max_memory: Option<u64>,
    /// What a full node does with a write; `None`: the default.
    pub max_memory_policy: Option<&'static str>,
    /// How long a node may be unreachable before it is evicted; `None`: the default.
    pub evict_after: Option<Period>,
    /// How members find each other: at least one provider.
    pub discovery: Discovery,
    /// How long a starting member waits for others; `None`: the node's default.
    pub join_timeout: Option<Duration>,
    /// Whether a member that found no other serves alone; `None`: the node's default.
    pub serve_alone: Option<bool>,
    /// The keys that nodes encrypt with.
    pub encryption: Option<KeyFile>,
    /// The nodes' certificate.
    pub tls: Option<NodeTls>,
    /// How clients authenticate and what they may do; `None`: no authentication.
    pub access: Option<Access>,
}

/// A duration of the spec. Sidecars get its text; members get its length in one form, so that another way of writing the same
/// duration restarts no member.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Period {
    /// The duration as the spec has it.
    pub text: String,
    /// Its length.
    pub length: Duration,
}

/// A field of a `KvCluster` has a value from which nothing can be built.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{field}: {message}")]
pub struct Invalid {
    field: &'static str,
    message: String,
}

impl Failure for Invalid {
    fn reason(&self) -> &'static str {
        "InvalidSpec"
    }

    fn is_passing(&self) -> bool {
        false
    }
}

fn invalid(field: &'static str, message: impl Into<String>) -> Invalid {
    Invalid { field, message: message.into() }
}

/// Checks a cluster and fills in what the spec leaves out.
pub fn validate(cluster: &KvCluster, default_image: &str) -> Result<ValidatedCluster, Invalid> {
    let spec = &cluster.spec;
    let name = name(cluster)?;
    let namespace =
        cluster.namespace().ok_or_else(|| invalid("metadata.namespace", "a KvCluster must be in a namespace"))?;
    let owner = cluster
        .controller_owner_ref(&())
        .ok_or_else(|| invalid("metadata.uid", "apply the KvCluster to an API server, which assigns it"))?;
    if !(1..=MAX_REPLICAS).contains(&spec.replicas) {
        return Err(invalid("spec.replicas", format!("set a number from 1 to {MAX_REPLICAS}")));
    }
    let resources = spec.resources.as_ref().map(resources).transpose()?;
    let (encryption, tls) = secrets(&name, spec)?;
    access::check(spec).map_err(|(field, message)| invalid(field, message))?;
    Ok(ValidatedCluster {
        replicas: spec.replicas,
        image: image(spec, default_image)?,
        sync_interval: period("spec.syncInterval", &spec.sync_interval, &SYNC_INTERVAL, "100ms", "60s")?,
        max_memory: max_memory(spec, resources.as_ref())?,
        max_memory_policy: spec.max_memory_policy.as_deref().map(max_memory_policy).transpose()?,
        evict_after: spec
            .evict_after
            .as_deref()
            .map(|text| period("spec.evictAfter", text, &EVICT_AFTER, "10s", "24h"))
            .transpose()?,
        discovery: discovery(spec)?,
        join_timeout: spec.join_timeout.as_deref().map(join_timeout).transpose()?,
        serve_alone: spec.serve_alone,
        access: spec.access.clone(),
        name,
        namespace,
        owner,
        resources,
        encryption,
        tls,
    })
}

fn name(cluster: &KvCluster) -> Result<String, Invalid> {
    let name = cluster.name_any();
    let letters = name.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-');
    if name.len() > MAX_NAME || !letters || !name.starts_with(|c: char| c.is_ascii_lowercase()) || name.ends_with('-') {
        return Err(invalid(
            "metadata.name",
            format!("choose at most {MAX_NAME} lower-case letters, digits and dashes, the first a letter"),
        ));
    }
    Ok(name)
}

fn image(spec: &KvClusterSpec, default_image: &str) -> Result<String, Invalid> {
    let image = spec.image.clone().unwrap_or_else(|| default_image.to_owned());
    if image.is_empty() || image.contains(char::is_whitespace) {
        return Err(invalid("spec.image", "set a reference such as registry.example/kvasir:0.1.0, or leave it out"));
    }
    Ok(image)
}

fn period(
    field: &'static str,
    text: &str,
    range: &RangeInclusive<Duration>,
    least: &str,
    most: &str,
) -> Result<Period, Invalid> {
    let length = duration::parse(text).map_err(|error| invalid(field, error.to_string()))?;
    if !range.contains(&length) {
        return Err(invalid(field, format!("set at least {least} and at most {most}")));
    }
    Ok(Period { text: text.to_owned(), length })
}

fn join_timeout(text: &str) -> Result<Duration, Invalid> {
    let within = duration::parse(text).ok().filter(|timeout| *timeout <= LONGEST_JOIN);
    within.ok_or_else(|| invalid("spec.joinTimeout", "set at most 90s, such as 500ms or 10s"))
}

fn max_memory(spec: &KvClusterSpec, resources: Option<&ResourceRequirements>) -> Result<Option<u64>, Invalid> {
    let read = |text: &str| {
        quantity::units(text)
            .filter(|bytes| *bytes >= LEAST_MEMORY)
            .ok_or_else(|| invalid("spec.maxMemory", "set a quantity of at least 1Mi, such as 256Mi, or leave it out"))
    };
    let max_memory = spec.max_memory.as_deref().map(read).transpose()?;
    let limit = resources.and_then(|resources| resources.limits.as_ref()).and_then(|limits| limits.get("memory"));
    match (max_memory, limit.and_then(|limit| quantity::units(&limit.0))) {
        (Some(max_memory), Some(limit)) if max_memory.saturating_add(EMPTY_NODE_BYTES) > limit => Err(invalid(
            "spec.maxMemory",
            "set it at least 24Mi below spec.resources.limits.memory, or leave it out to use what fits",
        )),
        (None, Some(limit)) if limit < LEAST_MEMORY_LIMIT => Err(invalid(
            "spec.resources.limits.memory",
            "set at least 50Mi: with less a node has no room for entries and does not start",
        )),
        _ => Ok(max_memory),
    }
}

fn max_memory_policy(given: &str) -> Result<&'static str, Invalid> {
    MAX_MEMORY_POLICIES
        .into_iter()
        .find(|known| *known == given)
        .ok_or_else(|| invalid("spec.maxMemoryPolicy", "set noeviction or ttl-first, or leave it out"))
}

fn discovery(spec: &KvClusterSpec) -> Result<Discovery, Invalid> {
    let by_default = || Discovery { kubernetes: Some(KubernetesDiscovery::default()), ..Discovery::default() };
    let discovery = spec.discovery.clone().unwrap_or_else(by_default);
    if discovery == Discovery::default() {
        return Err(invalid(
            "spec.discovery",
            "give at least one of kubernetes, nats, dns and static, or leave it out",
        ));
    }
    Ok(discovery)
}

fn secrets(name: &str, spec: &KvClusterSpec) -> Result<(Option<KeyFile>, Option<NodeTls>), Invalid> {
    let encryption = spec.encryption.as_ref().map(|given| {
        KeyFile::of(name, given)
            .ok_or_else(|| invalid("spec.encryption", "give exactly one of secretRef and generate: true"))
    });
    let tls = spec.tls.as_ref().map(|given| {
        let ways = "give exactly one of operator: {}, secretRef and issuerRef, and leave client or peers on";
        NodeTls::of(name, given).ok_or_else(|| invalid("spec.tls", ways))
    });
    let (encryption, tls) = (encryption.transpose()?, tls.transpose()?);
    if encryption.is_some() && tls.as_ref().is_some_and(|tls| tls.peers) {
        return Err(invalid("spec.tls.peers", "give either encryption or peers: true, not both"));
    }
    Ok((encryption, tls))
}

fn resources(given: &Resources) -> Result<ResourceRequirements, Invalid> {
    let Resources { requests, limits } = given;
    for (field, amounts) in [("spec.resources.requests", requests), ("spec.resources.limits", limits)] {
        for (name, amount) in amounts.iter().flatten() {
            if quantity::milli(&amount.0).is_none_or(|milli| milli < 0) {
                return Err(invalid(
                    field,
                    format!("write {name} as a quantity such as 100m or 64Mi, not {:?}", amount.0),
                ));
            }
        }
    }
    Ok(ResourceRequirements { requests: requests.clone(), limits: limits.clone(), ..ResourceRequirements::default() })
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    pub(crate) const IMAGE: &str = "kvasir.dev/kvasir:test";

    /// A `KvCluster` named demo as the API server returns it, with this spec in YAML.
    pub(crate) fn cluster(spec: &str) -> KvCluster {
        let mut cluster = KvCluster::new("demo", serde_yaml::from_str(spec).unwrap());
        cluster.metadata.namespace = Some("shop".to_owned());
        cluster.metadata.uid = Some("u-1".to_owned());
        cluster.metadata.generation = Some(4);
        cluster
    }

    /// The same, through validation.
    pub(crate) fn valid(spec: &str) -> ValidatedCluster {
        validate(&cluster(spec), IMAGE).unwrap()
    }

    fn refused(spec: &str) -> String {
        validate(&cluster(spec), IMAGE).unwrap_err().to_string()
    }

    #[test]
    fn validate_fills_in_defaults() {
        let valid = valid("{}");
        assert_eq!((valid.replicas, valid.max_memory, valid.sync_interval.length), (3, None, Duration::from_secs(1)));
        assert_eq!((valid.max_memory_policy, valid.evict_after, valid.resources), (None, None, None));
        assert_eq!(valid.image, IMAGE);
        assert_eq!((valid.owner.uid.as_str(), valid.owner.controller), ("u-1", Some(true)));
    }

    #[test]
    fn validate_keeps_what_is_given() {
        let valid = valid(
            "{replicas: 5, image: 'a/b:1', syncInterval: 500ms, maxMemory: 64Mi, resources: {limits: {memory: 128Mi}}, discovery: {kubernetes: {}}}",
        );
        assert_eq!((valid.replicas, valid.image.as_str(), valid.max_memory), (5, "a/b:1", Some(64 << 20)));
        let half = Period { text: "500ms".to_owned(), length: Duration::from_millis(500) };
        assert_eq!(valid.sync_interval, half);
        assert_eq!(valid.resources.unwrap().requests, None);
    }

    #[test]
    fn validate_accepts_memory_that_fits() {
        let max_memory = |spec| valid(spec).max_memory;
        assert_eq!(max_memory("{maxMemory: 40Mi, resources: {limits: {memory: 64Mi}}}"), Some(40 << 20));
        assert_eq!(max_memory("{resources: {limits: {memory: 50Mi}}}"), None);
    }

    #[test]
    fn validate_combines_discovery_providers() {
        let given = |spec| valid(spec).discovery;
        let all = given("{discovery: {kubernetes: {}, nats: {server: [a]}, dns: {}, static: {hosts: ['a:1']}}}");
        assert!(all.kubernetes.is_some() && all.nats.is_some() && all.dns.is_some() && all.fixed.is_some());
        let one = given("{discovery: {dns: {}}}");
        assert!(one.kubernetes.is_none() && one.dns.is_some());
        assert_eq!(given("{}"), given("{discovery: {kubernetes: {}}}"));
    }

    #[test]
    fn validate_names_the_invalid_field() {
        for (spec, field) in [
            ("{replicas: 0}", "spec.replicas"),
            ("{replicas: 65}", "spec.replicas"),
            ("{syncInterval: soon}", "spec.syncInterval"),
            ("{syncInterval: 99ms}", "spec.syncInterval"),
            ("{syncInterval: 1m1s}", "spec.syncInterval"),
            ("{maxMemory: lots}", "spec.maxMemory"),
            ("{maxMemory: 1k}", "spec.maxMemory"),
            ("{maxMemoryPolicy: lru}", "spec.maxMemoryPolicy"),
            ("{evictAfter: soon}", "spec.evictAfter"),
            ("{evictAfter: 9s}", "spec.evictAfter"),
            ("{evictAfter: 25h}", "spec.evictAfter"),
            ("{maxMemory: 64Mi, resources: {limits: {memory: 64Mi}}}", "spec.maxMemory"),
            ("{maxMemory: 41Mi, resources: {limits: {memory: 64Mi}}}", "spec.maxMemory"),
            ("{resources: {limits: {memory: 49Mi}}}", "spec.resources.limits.memory"),
            ("{image: 'a b'}", "spec.image"),
            ("{discovery: {}}", "spec.discovery"),
            ("{joinTimeout: soon}", "spec.joinTimeout"),
            ("{joinTimeout: 91s}", "spec.joinTimeout"),
            ("{resources: {requests: {cpu: much}}}", "spec.resources.requests"),
            ("{encryption: {}}", "spec.encryption"),
            ("{tls: {}}", "spec.tls"),
            ("{access: {}}", "spec.access"),
            ("{tls: {operator: {}, client: false}}", "spec.tls"),
            ("{encryption: {generate: true}, tls: {operator: {}, peers: true}}", "spec.tls.peers"),
            ("{encryption: {generate: true, secretRef: {name: s}}}", "spec.encryption"),
        ] {
            let message = refused(spec);
            assert!(message.starts_with(&format!("{field}: ")), "{spec}: {message}");
        }
    }

    #[test]
    fn validate_accepts_the_security_examples() {
        let valid = |example: &str| {
            let mut cluster: KvCluster = serde_yaml::from_str(example).unwrap();
            cluster.metadata.namespace = Some("shop".to_owned());
            cluster.metadata.uid = Some("u-1".to_owned());
            validate(&cluster, IMAGE).unwrap()
        };
        assert!(valid(include_str!("../../../examples/security/encryption.yaml")).encryption.unwrap().generate);
        let both = valid(include_str!("../../../examples/security/tls.yaml"));
        assert!(both.encryption.is_some() && both.tls.is_some_and(|tls| tls.client && !tls.peers));
        let access = valid(include_str!("../../../examples/security/access.yaml")).access.unwrap();
        assert!(access.service_accounts.is_some() && access.rules.is_some_and(|rules| rules.len() == 2));
        let tls = valid(include_str!("../../../examples/security/cert-manager.yaml")).tls.unwrap();
        assert!(tls.client && tls.peers);
    }

    #[test]
    fn validate_refuses_unusable_names() {
        for name in ["1x", "a.b", "x-", &"x".repeat(MAX_NAME + 1)] {
            let mut cluster = cluster("{}");
            cluster.metadata.name = Some(name.to_owned());
            assert!(validate(&cluster, IMAGE).unwrap_err().to_string().starts_with("metadata.name"), "{name}");
        }
    }
}
