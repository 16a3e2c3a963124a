//! TLS and authentication: the validated settings. Does not read the files.

use std::{path::PathBuf, time::Duration};

use kvasir_formats::defaults::REVIEW_TTL;

use super::{AuthSettings, ConfigError, PeerTlsSettings, TlsSettings, checks::within, error::invalid};

const DEFAULT_SERVER_NAME: &str = "kvasir-peer";
const DEFAULT_REVIEW_TTL: Duration = Duration::from_mins(1);
const MAX_AUDIENCES: usize = 16;

/// TLS on the client port.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TlsConfig {
    /// The certificate chain, PEM.
    pub cert_file: PathBuf,
    /// The certificate's key, PEM.
    pub key_file: PathBuf,
    /// The CA certificates for clients' certificates.
    pub client_ca_file: Option<PathBuf>,
}

/// Mutual TLS between peers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PeerTlsConfig {
    /// The certificate chain, PEM.
    pub cert_file: PathBuf,
    /// The certificate's key, PEM.
    pub key_file: PathBuf,
    /// The CA certificates for peers' certificates.
    pub ca_file: PathBuf,
    /// The name that every peer's certificate has.
    pub server_name: String,
}

/// How clients authenticate; at least one method is on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AuthConfig {
    /// By the bearer tokens of this file.
    pub tokens_file: Option<PathBuf>,
    /// By certificates.
    pub client_certificates: bool,
    /// By tokens of Kubernetes service accounts.
    pub token_review: Option<TokenReviewConfig>,
}

/// Token reviews by Kubernetes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TokenReviewConfig {
    /// Audiences of which a token must have one; if empty, the API server.
    pub audiences: Vec<String>,
    /// How long an answer is cached.
    pub ttl: Duration,
}

impl TlsSettings {
    pub(super) fn validate(self) -> Result<TlsConfig, ConfigError> {
        let Self { cert_file, key_file, client_ca_file } = self;
        let cert_file = cert_file.ok_or_else(|| invalid("tls.certFile", "give this file: tls has other settings"))?;
        let key_file = key_file.ok_or_else(|| invalid("tls.keyFile", "give this file: tls has other settings"))?;
        Ok(TlsConfig { cert_file, key_file, client_ca_file })
    }
}

impl PeerTlsSettings {
    pub(super) fn validate(self) -> Result<PeerTlsConfig, ConfigError> {
        let Self { cert_file, key_file, ca_file, server_name } = self;
        let missing = |field| move || invalid(field, "give this file: peerTls has other settings");
        let server_name = server_name.unwrap_or_else(|| DEFAULT_SERVER_NAME.to_owned());
        if rustls::pki_types::DnsName::try_from(server_name.as_str()).is_err() {
            return Err(invalid(
                "peerTls.serverName",
                format!("{server_name:?} is not a DNS name: give the name that every peer's certificate has"),
            ));
        }
        Ok(PeerTlsConfig {
            cert_file: cert_file.ok_or_else(missing("peerTls.certFile"))?,
            key_file: key_file.ok_or_else(missing("peerTls.keyFile"))?,
            ca_file: ca_file.ok_or_else(missing("peerTls.caFile"))?,
            server_name,
        })
    }
}

impl AuthSettings {
    pub(super) fn validate(self, tls: Option<&TlsConfig>) -> Result<Option<AuthConfig>, ConfigError> {
        let Self { tokens_file, client_certificates, token_review, token_review_audiences, token_review_ttl } = self;
        let client_certificates = client_certificates.unwrap_or(false);
        if client_certificates && tls.is_none_or(|tls| tls.client_ca_file.is_none()) {
            return Err(invalid("auth.clientCertificates", "needs tls with a clientCaFile"));
        }
        let audiences = token_review_audiences.map(|names| names.0).unwrap_or_default();
        if audiences.len() > MAX_AUDIENCES || audiences.iter().any(String::is_empty) {
            return Err(invalid(
                "auth.tokenReviewAudiences",
                format!("give at most {MAX_AUDIENCES}, none of them empty"),
            ));
        }
        let ttl = within("auth.tokenReviewTtl", token_review_ttl, DEFAULT_REVIEW_TTL, &REVIEW_TTL)?;
        let token_review = token_review.unwrap_or(false).then_some(TokenReviewConfig { audiences, ttl });
        let any = tokens_file.is_some() || client_certificates || token_review.is_some();
        Ok(any.then_some(AuthConfig { tokens_file, client_certificates, token_review }))
    }
}
