//! From a `KvCluster` as the API server stores it to one that can be built.
//!
//! The API server checks most of this before it stores an object, but an object may be older than a rule. Knows nothing of the objects built from a [`ValidatedCluster`].

use std::{collections::BTreeMap, time::Duration};

use k8s_openapi::{
    api::core::v1::ResourceRequirements,
    apimachinery::pkg::{api::resource::Quantity, apis::meta::v1::OwnerReference},
};
use kube::{Resource, ResourceExt};
use kvasir_crds::{
    Access, Discovery, EMPTY_NODE_BYTES, KubernetesDiscovery, KvCluster, LEAST_MEMORY_LIMIT, MAX_NAME, MAX_REPLICAS,
    Resources,
};
use kvasir_formats::{defaults, duration, quantity};

use crate::{access, encryption::KeyFile, tls::NodeTls};

const SYNC_INTERVAL: std::ops::RangeInclusive<Duration> = Duration::from_millis(100)..=Duration::from_mins(1);
const LEAST_MEMORY: u64 = 1 << 20;
/// Less than the kubelet gives a member to become ready.
const LONGEST_JOIN: Duration = Duration::from_secs(90);

/// What a node without room may do; the first is what it does unless told otherwise.
const MAX_MEMORY_POLICIES: [&str; 2] = ["noeviction", "ttl-first"];
const EVICT_AFTER: std::ops::RangeInclusive<Duration> = Duration::from_secs(10)..=Duration::from_hours(24);

/// A cluster of which everything is known that building needs.
#[derive(Clone, Debug, PartialEq)]
pub struct ValidatedCluster {
    /// Name of the `KvCluster` and of most of its objects.
    pub name: String,
    /// Namespace of the `KvCluster` and of all of its objects.
    pub namespace: String,
    /// What makes an object the `KvCluster`'s own.
    pub owner: OwnerReference,
    /// How many members there should be.
    pub replicas: i32,
    /// Image of the members.
    pub image: String,
    /// Resources of the members.
    pub resources: ResourceRequirements,
    /// How often members compare what they hold.
    pub sync_interval: Duration,
    /// Bytes that the entries of a node may take; without, a node derives that from the memory limit of its container.
    pub max_memory: Option<u64>,
    /// What a node without room does with a write.
    pub max_memory_policy: &'static str,
    /// After how long out of reach a node is given up on.
    pub evict_after: Duration,
    /// How members find each other: at least one way is there.
    pub discovery: Discovery,
    /// How long a starting member waits for others, unless for as long as the node itself sees fit.
    pub join_timeout: Option<Duration>,
    /// Whether a member that found no other serves, unless as the node itself sees fit.
    pub serve_alone: Option<bool>,
    /// Where the keys are that nodes encrypt with, if they do.
    pub encryption: Option<KeyFile>,
    /// The nodes' certificate, if they have one.
    pub tls: Option<NodeTls>,
    /// Who clients of members are and what they may do, if that is asked.
    pub access: Option<Access>,
}

/// Why a `KvCluster` cannot be built.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Invalid {
    /// A field has a value that it must not have.
    #[error("{field}: {message}")]
    Field {
        /// Path of the field.
        field: &'static str,
        /// What to do.
        message: String,
    },
}

impl Invalid {
    /// One word for conditions and events.
    pub fn reason(&self) -> &'static str {
        match self {
            Self::Field { .. } => "InvalidSpec",
        }
    }
}

fn invalid(field: &'static str, message: impl Into<String>) -> Invalid {
    Invalid::Field { field, message: message.into() }
}

/// Checks a cluster, and fills in what it leaves out.
pub fn validate(cluster: &KvCluster, default_image: &str) -> Result<ValidatedCluster, Invalid> {
    let spec = &cluster.spec;
    let name = cluster.name_any();
    let letters = name.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-');
    if name.len() > MAX_NAME || !letters || !name.starts_with(|c: char| c.is_ascii_lowercase()) || name.ends_with('-') {
        return Err(invalid(
            "metadata.name",
            format!("choose at most {MAX_NAME} lower-case letters, digits and dashes, the first a letter"),
        ));
    }
    let namespace =
        cluster.namespace().ok_or_else(|| invalid("metadata.namespace", "a KvCluster lives in a namespace"))?;
    let owner = cluster
        .controller_owner_ref(&())
        .ok_or_else(|| invalid("metadata.uid", "apply the KvCluster to an API server, which gives it one"))?;
    if !(1..=MAX_REPLICAS).contains(&spec.replicas) {
        return Err(invalid("spec.replicas", format!("set a number from 1 to {MAX_REPLICAS}")));
    }
    let discovery = discovery(cluster)?;
    let join_timeout = spec.join_timeout.as_deref().map(|text| {
        let within = duration::parse(text).ok().filter(|timeout| *timeout <= LONGEST_JOIN);
        within.ok_or_else(|| invalid("spec.joinTimeout", "set at most 90s, such as 500ms or 10s"))
    });
    let sync_interval =
        duration::parse(&spec.sync_interval).map_err(|error| invalid("spec.syncInterval", error.to_string()))?;
    if !SYNC_INTERVAL.contains(&sync_interval) {
        return Err(invalid("spec.syncInterval", "set at least 100ms and at most 60s"));
    }
    let resources = resources(spec.resources.as_ref())?;
    let max_memory = spec.max_memory.as_deref().map(|text| {
        quantity::units(text)
            .filter(|bytes| *bytes >= LEAST_MEMORY)
            .ok_or_else(|| invalid("spec.maxMemory", "set a quantity of at least 1Mi, such as 256Mi, or leave it out"))
    });
    let max_memory = max_memory.transpose()?;
    let limit = resources.limits.as_ref().and_then(|limits| limits.get("memory"));
    match (max_memory, limit.and_then(|limit| quantity::units(&limit.0))) {
        (Some(max_memory), Some(limit)) if max_memory.saturating_add(EMPTY_NODE_BYTES) > limit => {
            return Err(invalid(
                "spec.maxMemory",
                "set it at least 24Mi lower than spec.resources.limits.memory, or leave it out for what fits",
            ));
        }
        (None, Some(limit)) if limit < LEAST_MEMORY_LIMIT => {
            return Err(invalid(
                "spec.resources.limits.memory",
                "set at least 50Mi: in less a node can hold nothing, and does not start",
            ));
        }
        _ => {}
    }
    let max_memory_policy = match spec.max_memory_policy.as_deref() {
        None => MAX_MEMORY_POLICIES[0],
        Some(given) => MAX_MEMORY_POLICIES
            .into_iter()
            .find(|known| *known == given)
            .ok_or_else(|| invalid("spec.maxMemoryPolicy", "set noeviction or ttl-first, or leave it out"))?,
    };
    let evict_after = match &spec.evict_after {
        None => defaults::EVICT_AFTER,
        Some(text) => duration::parse(text).map_err(|error| invalid("spec.evictAfter", error.to_string()))?,
    };
    if !EVICT_AFTER.contains(&evict_after) {
        return Err(invalid("spec.evictAfter", "set at least 10s and at most 24h"));
    }
    let image = spec.image.clone().unwrap_or_else(|| default_image.to_owned());
    if image.is_empty() || image.contains(char::is_whitespace) {
        return Err(invalid("spec.image", "set a reference such as registry.example/kvasir:0.1.0, or leave it out"));
    }
    let encryption = spec.encryption.as_ref().map(|given| {
        KeyFile::of(&name, given)
            .ok_or_else(|| invalid("spec.encryption", "give exactly one of secretRef and generate: true"))
    });
    let tls = spec.tls.as_ref().map(|given| {
        let ways = "give exactly one of operator: {}, secretRef and issuerRef, and leave client or peers on";
        NodeTls::of(&name, given).ok_or_else(|| invalid("spec.tls", ways))
    });
    let tls = tls.transpose()?;
    if spec.encryption.is_some() && tls.as_ref().is_some_and(|tls| tls.peers) {
        return Err(invalid("spec.tls.peers", "give one of encryption and peers: true, not both"));
    }
    access::check(spec).map_err(|(field, message)| invalid(field, message))?;
    Ok(ValidatedCluster {
        access: spec.access.clone(),
        encryption: encryption.transpose()?,
        tls,
        name,
        namespace,
        owner,
        replicas: spec.replicas,
        image,
        resources,
        sync_interval,
        max_memory,
        max_memory_policy,
        evict_after,
        discovery,
        join_timeout: join_timeout.transpose()?,
        serve_alone: spec.serve_alone,
    })
}

fn discovery(cluster: &KvCluster) -> Result<Discovery, Invalid> {
    let by_default = || Discovery { kubernetes: Some(KubernetesDiscovery::default()), ..Discovery::default() };
    let discovery = cluster.spec.discovery.clone().unwrap_or_else(by_default);
    if discovery == Discovery::default() {
        return Err(invalid(
            "spec.discovery",
            "give at least one of kubernetes, nats, dns and static, or leave it out",
        ));
    }
    Ok(discovery)
}

fn resources(given: Option<&Resources>) -> Result<ResourceRequirements, Invalid> {
    let Some(Resources { requests, limits }) = given else {
        let requests = BTreeMap::from(
            [("cpu", "50m"), ("memory", "64Mi")].map(|(name, amount)| (name.to_owned(), Quantity(amount.to_owned()))),
        );
        return Ok(ResourceRequirements { requests: Some(requests), ..ResourceRequirements::default() });
    };
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

    /// A `KvCluster` named demo as the API server would hand it out, with this spec in YAML.
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
    fn an_empty_spec_is_three_modest_members() {
        let valid = valid("{}");
        assert_eq!((valid.replicas, valid.max_memory, valid.sync_interval), (3, None, Duration::from_secs(1)));
        assert_eq!((valid.max_memory_policy, valid.evict_after), ("noeviction", Duration::from_mins(5)));
        assert_eq!(valid.image, IMAGE);
        assert_eq!(valid.resources.requests.unwrap()["memory"].0, "64Mi");
        assert_eq!((valid.owner.uid.as_str(), valid.owner.controller), ("u-1", Some(true)));
    }

    #[test]
    fn what_is_given_counts() {
        let valid = valid(
            "{replicas: 5, image: 'a/b:1', syncInterval: 500ms, maxMemory: 64Mi, resources: {limits: {memory: 128Mi}}, discovery: {kubernetes: {}}}",
        );
        assert_eq!((valid.replicas, valid.image.as_str(), valid.max_memory), (5, "a/b:1", Some(64 << 20)));
        assert_eq!(valid.sync_interval, Duration::from_millis(500));
        assert_eq!(valid.resources.requests, None);
    }

    #[test]
    fn memory_that_may_fit_is_taken() {
        let max_memory = |spec| valid(spec).max_memory;
        assert_eq!(max_memory("{maxMemory: 40Mi, resources: {limits: {memory: 64Mi}}}"), Some(40 << 20));
        assert_eq!(max_memory("{resources: {limits: {memory: 50Mi}}}"), None);
    }

    #[test]
    fn several_ways_of_discovery_go_together_and_one_is_the_default() {
        let given = |spec| valid(spec).discovery;
        let all = given("{discovery: {kubernetes: {}, nats: {server: [a]}, dns: {}, static: {hosts: ['a:1']}}}");
        assert!(all.kubernetes.is_some() && all.nats.is_some() && all.dns.is_some() && all.fixed.is_some());
        let one = given("{discovery: {dns: {}}}");
        assert!(one.kubernetes.is_none() && one.dns.is_some());
        assert_eq!(given("{}"), given("{discovery: {kubernetes: {}}}"));
    }

    #[test]
    fn what_slips_past_the_schema_is_refused_by_field() {
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
    fn the_examples_of_security_are_valid() {
        let valid = |example: &str| {
            let mut cluster: KvCluster = serde_yaml::from_str(example).unwrap();
            cluster.metadata.namespace = Some("shop".to_owned());
            cluster.metadata.uid = Some("u-1".to_owned());
            validate(&cluster, IMAGE).unwrap()
        };
        assert!(valid(include_str!("../../examples/security/encryption.yaml")).encryption.unwrap().generate);
        let both = valid(include_str!("../../examples/security/tls.yaml"));
        assert!(both.encryption.is_some() && both.tls.is_some_and(|tls| tls.client && !tls.peers));
        let access = valid(include_str!("../../examples/security/access.yaml")).access.unwrap();
        assert!(access.service_accounts.is_some() && access.rules.is_some_and(|rules| rules.len() == 2));
        let tls = valid(include_str!("../../examples/security/cert-manager.yaml")).tls.unwrap();
        assert!(tls.client && tls.peers);
    }

    #[test]
    fn a_name_must_do_for_services_and_labels() {
        for name in ["1x", "a.b", "x-", &"x".repeat(MAX_NAME + 1)] {
            let mut cluster = cluster("{}");
            cluster.metadata.name = Some(name.to_owned());
            assert!(validate(&cluster, IMAGE).unwrap_err().to_string().starts_with("metadata.name"), "{name}");
        }
    }
}
