//! From a [`Config`] back to settings and to a configuration file. Secrets are left out.

use super::{
    AuthConfig, AuthSettings, ClientPortConfig, ClientPortSettings, Config, DiscoveryConfig, DiscoverySettings,
    DnsConfig, DnsSettings, DurationText, EncryptionConfig, EncryptionSettings, KubernetesConfig, KubernetesSettings,
    Labels, Limits, LogConfig, MaxMemoryFrom, MaxMemoryPolicy, NatsConfig, NatsLogin, NatsSettings, PeerPortConfig,
    PeerPortSettings, PeerTlsConfig, PeerTlsSettings, Quantity, SecretSource, Servers, Settings, StaticConfig,
    StaticSettings, SwimConfig, SwimSettings, TlsConfig, TlsSettings,
};

impl Config {
    /// The settings as a configuration file.
    pub fn to_yaml(&self) -> String {
        let text = serde_yaml::to_string(&Settings::from(self)).expect("settings are maps, lists, numbers and strings");
        let left_out = |name: &str| format!("# {name} is set, but not shown");
        let memory = self.max_memory_remark().map(|remark| format!("# {remark}"));
        self.secrets().into_iter().map(left_out).chain(memory).chain([text]).collect::<Vec<_>>().join("\n")
    }

    /// The paths of the secrets that are given as settings and not in files.
    fn secrets(&self) -> Vec<&'static str> {
        let mut secrets = match self.discovery.nats.as_ref().and_then(|nats| nats.login.as_ref()) {
            Some(NatsLogin::User { password: SecretSource::Text(_), .. }) => vec!["discovery.nats.password"],
            Some(NatsLogin::Token(SecretSource::Text(_))) => vec!["discovery.nats.token"],
            _ => Vec::new(),
        };
        if let Some(EncryptionConfig::Given(_)) = self.encryption {
            secrets.extend(["encryption.cookie", "encryption.keys"]);
        }
        secrets
    }
}

// Every struct is destructured without `..`, so that no setting is forgotten.
impl From<&Config> for Settings {
    fn from(config: &Config) -> Self {
        let Config {
            name,
            role,
            cluster,
            cluster_uid,
            advertise,
            client_address,
            peer_address,
            admin_address,
            sync_interval,
            join_timeout,
            serve_alone,
            drain_timeout,
            max_memory,
            max_memory_from,
            memory_limit: _, // not a setting
            evict_ending,
            voters,
            voters_file: _, // not a setting
            evict_after,
            limits: Limits { max_key_bytes, max_value_bytes, max_ttl },
            max_clock_skew,
            swim,
            discovery,
            encryption,
            tls,
            peer_tls,
            auth,
            access,
            access_file: _, // not a setting
            client_port,
            peer_port,
            log: LogConfig { level, format },
        } = config;
        Self {
            name: Some(name.clone()),
            role: Some(*role),
            cluster: Some(cluster.clone()),
            cluster_uid: (!cluster_uid.is_empty()).then(|| cluster_uid.clone()),
            advertise_address: Some(*advertise),
            client_address: Some(*client_address),
            peer_address: Some(*peer_address),
            admin_address: Some(*admin_address),
            sync_interval: Some(DurationText(*sync_interval)),
            join_timeout: Some(DurationText(*join_timeout)),
            serve_alone: Some(*serve_alone),
            drain_timeout: Some(DurationText(*drain_timeout)),
            max_memory: (*max_memory_from != MaxMemoryFrom::Nothing).then(|| Quantity(max_memory.unwrap_or(0))),
            max_memory_policy: Some(if *evict_ending {
                MaxMemoryPolicy::TtlFirst
            } else {
                MaxMemoryPolicy::NoEviction
            }),
            voters: Some(*voters),
            evict_after: Some(DurationText(*evict_after)),
            max_key_bytes: Some(*max_key_bytes),
            max_value_bytes: Some(*max_value_bytes),
            max_ttl: Some(DurationText(*max_ttl)),
            max_clock_skew: Some(DurationText(*max_clock_skew)),
            log_level: Some(level.clone()),
            log_format: Some(*format),
            encryption: match encryption {
                Some(EncryptionConfig::File(file)) => {
                    Some(EncryptionSettings { file: Some(file.clone()), ..EncryptionSettings::default() })
                }
                Some(EncryptionConfig::Given(_)) | None => None,
            },
            tls: tls.as_ref().map(|TlsConfig { cert_file, key_file, client_ca_file }| TlsSettings {
                cert_file: Some(cert_file.clone()),
                key_file: Some(key_file.clone()),
                client_ca_file: client_ca_file.clone(),
            }),
            peer_tls: peer_tls.as_ref().map(|PeerTlsConfig { cert_file, key_file, ca_file, server_name }| {
                PeerTlsSettings {
                    cert_file: Some(cert_file.clone()),
                    key_file: Some(key_file.clone()),
                    ca_file: Some(ca_file.clone()),
                    server_name: Some(server_name.clone()),
                }
            }),
            auth: auth.as_ref().map(AuthSettings::from),
            access: access.clone(),
            client_port: ClientPortSettings::from(client_port),
            peer_port: PeerPortSettings::from(peer_port),
            swim: SwimSettings::from(swim),
            discovery: DiscoverySettings::from(discovery),
        }
    }
}

impl From<&AuthConfig> for AuthSettings {
    fn from(config: &AuthConfig) -> Self {
        let AuthConfig { tokens_file, client_certificates, token_review } = config;
        let review = token_review.as_ref();
        Self {
            tokens_file: tokens_file.clone(),
            client_certificates: Some(*client_certificates),
            token_review: Some(review.is_some()),
            token_review_audiences: review
                .map(|review| review.audiences.clone())
                .filter(|audiences| !audiences.is_empty())
                .map(Servers),
            token_review_ttl: review.map(|review| DurationText(review.ttl)),
        }
    }
}

impl From<&ClientPortConfig> for ClientPortSettings {
    fn from(config: &ClientPortConfig) -> Self {
        let ClientPortConfig {
            max_connections,
            max_connections_per_address,
            max_streams,
            max_header_bytes,
            handshake_timeout,
            idle_timeout,
            keepalive_interval,
            keepalive_timeout,
        } = *config;
        Self {
            max_connections: Some(max_connections),
            max_connections_per_address: Some(max_connections_per_address),
            max_streams: Some(max_streams),
            max_header_bytes: Some(max_header_bytes),
            handshake_timeout: Some(DurationText(handshake_timeout)),
            idle_timeout: Some(DurationText(idle_timeout.unwrap_or_default())),
            keepalive_interval: Some(DurationText(keepalive_interval)),
            keepalive_timeout: Some(DurationText(keepalive_timeout)),
        }
    }
}

impl From<&PeerPortConfig> for PeerPortSettings {
    fn from(config: &PeerPortConfig) -> Self {
        let PeerPortConfig { max_connections, max_connections_per_address, max_handshakes, handshake_timeout } =
            *config;
        Self {
            max_connections: Some(max_connections),
            max_connections_per_address: Some(max_connections_per_address),
            max_handshakes: Some(max_handshakes),
            handshake_timeout: Some(DurationText(handshake_timeout)),
        }
    }
}

impl From<&SwimConfig> for SwimSettings {
    fn from(config: &SwimConfig) -> Self {
        let SwimConfig {
            probe_period,
            probe_timeout,
            suspicion,
            gossip_period,
            exchange_period,
            retry_period,
            announce_period,
            forget_after,
            indirect_probes,
            gossip_fanout,
            transmissions,
        } = *config;
        Self {
            probe_period: Some(DurationText(probe_period)),
            probe_timeout: Some(DurationText(probe_timeout)),
            suspicion: Some(DurationText(suspicion)),
            gossip_period: Some(DurationText(gossip_period)),
            exchange_period: Some(DurationText(exchange_period)),
            retry_period: Some(DurationText(retry_period)),
            announce_period: Some(DurationText(announce_period)),
            forget_after: Some(DurationText(forget_after)),
            indirect_probes: Some(indirect_probes.get()),
            gossip_fanout: Some(gossip_fanout.get()),
            transmissions: Some(usize::from(transmissions.get())),
        }
    }
}

impl From<&DiscoveryConfig> for DiscoverySettings {
    fn from(config: &DiscoveryConfig) -> Self {
        let DiscoveryConfig { kubernetes, nats, dns, static_hosts } = config;
        Self {
            kubernetes: kubernetes.as_ref().map(KubernetesSettings::from),
            nats: nats.as_ref().map(NatsSettings::from),
            dns: dns.as_ref().map(DnsSettings::from),
            static_hosts: static_hosts
                .as_ref()
                .map(|StaticConfig { hosts }| StaticSettings { hosts: Some(hosts.clone()) }),
        }
    }
}

impl From<&KubernetesConfig> for KubernetesSettings {
    fn from(config: &KubernetesConfig) -> Self {
        let KubernetesConfig { namespace, discovery_port_name, port_name, pod_labels } = config;
        Self {
            namespace: namespace.clone(),
            discovery_port_name: Some(discovery_port_name.clone()),
            port_name: Some(port_name.clone()),
            pod_labels: Some(Labels(pod_labels.clone())),
        }
    }
}

impl From<&NatsConfig> for NatsSettings {
    fn from(config: &NatsConfig) -> Self {
        let NatsConfig {
            server,
            subject,
            timeout,
            max_join_attempts,
            reconnect_wait,
            discovery_port,
            host,
            login,
            ca_file,
        } = config;
        let file = |source: &SecretSource| match source {
            SecretSource::Text(_) => None,
            SecretSource::File(path) => Some(path.clone()),
        };
        let (user, password_file, token_file, credentials_file) = match login {
            None => (None, None, None, None),
            Some(NatsLogin::User { user, password }) => (Some(user.clone()), file(password), None, None),
            Some(NatsLogin::Token(token)) => (None, None, file(token), None),
            Some(NatsLogin::Credentials(path)) => (None, None, None, Some(path.clone())),
        };
        Self {
            server: Some(Servers(server.clone())),
            subject: Some(subject.clone()),
            timeout: Some(DurationText(*timeout)),
            max_join_attempts: Some(*max_join_attempts),
            reconnect_wait: Some(DurationText(*reconnect_wait)),
            discovery_port: *discovery_port,
            host: host.clone(),
            user,
            password: None,
            password_file,
            token: None,
            token_file,
            credentials_file,
            ca_file: ca_file.clone(),
        }
    }
}

impl From<&DnsConfig> for DnsSettings {
    fn from(config: &DnsConfig) -> Self {
        let DnsConfig { domain_name, ipv6, port, server } = config;
        Self {
            domain_name: Some(domain_name.clone()),
            ipv6: Some(*ipv6),
            port: *port,
            server: (!server.is_empty()).then(|| server.clone()),
        }
    }
}
