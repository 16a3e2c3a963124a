//! Settings of encryption, TLS and clients' identities.

use std::path::PathBuf;

use clap::ArgAction;

use super::layers::{by_field, settings};
use crate::config::{DurationText, Secret, Secrets, Servers};

by_field!(EncryptionSettings, TlsSettings, PeerTlsSettings, AuthSettings);

settings! {
    /// Encryption of links and datagrams between peers: a cookie and keys, the same on all nodes.
    EncryptionSettings {
        /// A text that binds encrypted messages to one group of nodes, in addition to the key, such as demo; a file is safer, see --encryption-file
        #[arg(long = "encryption-cookie", env = "KVASIR_ENCRYPTION_COOKIE", hide_env_values = true)]
        cookie: Secret,
        /// The keys, each base64 of 32 bytes, such as the output of `openssl rand -base64 32`; the first key encrypts, all of them decrypt; a file is safer, see --encryption-file
        #[arg(long = "encryption-keys", env = "KVASIR_ENCRYPTION_KEYS", hide_env_values = true, value_name = "KEY,...")]
        keys: Secrets,
        /// A YAML file with cookie and keys, such as /run/secrets/peers.yaml; reloaded when it changes
        #[arg(id = "encryption_file", long = "encryption-file", env = "KVASIR_ENCRYPTION_FILE", value_name = "FILE")]
        file: PathBuf,
    }
}

settings! {
    /// TLS on the client port.
    TlsSettings {
        /// The node's certificate chain (PEM), such as /run/secrets/tls/tls.crt; this and the other files are reloaded when they change
        #[arg(id = "tls_cert_file", long = "tls-cert-file", env = "KVASIR_TLS_CERT_FILE", value_name = "FILE")]
        cert_file: PathBuf,
        /// The certificate's key (PEM), such as /run/secrets/tls/tls.key
        #[arg(id = "tls_key_file", long = "tls-key-file", env = "KVASIR_TLS_KEY_FILE", value_name = "FILE")]
        key_file: PathBuf,
        /// The CA certificates for clients' certificates (PEM), such as /run/secrets/tls/ca.crt; without auth every client must present a certificate
        #[arg(long = "tls-client-ca-file", env = "KVASIR_TLS_CLIENT_CA_FILE", value_name = "FILE")]
        client_ca_file: PathBuf,
    }
}

settings! {
    /// Mutual TLS between peers, on links. The datagrams of membership (UDP) are not covered: only `encryption` protects
    /// them, and it cannot be combined with this.
    PeerTlsSettings {
        /// The node's certificate chain for peers (PEM), such as /run/secrets/peer/tls.crt; this and the other files are reloaded when they change
        #[arg(id = "peer_tls_cert_file", long = "peer-tls-cert-file", env = "KVASIR_PEER_TLS_CERT_FILE", value_name = "FILE")]
        cert_file: PathBuf,
        /// The certificate's key (PEM), such as /run/secrets/peer/tls.key
        #[arg(id = "peer_tls_key_file", long = "peer-tls-key-file", env = "KVASIR_PEER_TLS_KEY_FILE", value_name = "FILE")]
        key_file: PathBuf,
        /// The CA certificates for peers' certificates (PEM), such as /run/secrets/peer/ca.crt
        #[arg(id = "peer_tls_ca_file", long = "peer-tls-ca-file", env = "KVASIR_PEER_TLS_CA_FILE", value_name = "FILE")]
        ca_file: PathBuf,
        /// The DNS name that every peer's certificate must have as a subject alternative name [default: kvasir-peer]
        #[arg(long = "peer-tls-server-name", env = "KVASIR_PEER_TLS_SERVER_NAME", value_name = "NAME")]
        server_name: String,
    }
}

settings! {
    /// How clients authenticate; with none of these, they need not.
    AuthSettings {
        /// Accept the bearer tokens of this file, a YAML map of names to tokens, such as /run/secrets/tokens.yaml; reloaded when it changes
        #[arg(long = "auth-tokens-file", env = "KVASIR_AUTH_TOKENS_FILE", value_name = "FILE")]
        tokens_file: PathBuf,
        /// Accept certificates signed by a CA of --tls-client-ca-file [default: false]
        #[arg(long = "auth-client-certificates", env = "KVASIR_AUTH_CLIENT_CERTIFICATES", action = ArgAction::Set, num_args = 0..=1, default_missing_value = "true", value_name = "BOOL")]
        client_certificates: bool,
        /// Accept tokens of Kubernetes service accounts, which the API server reviews [default: false]
        #[arg(long = "auth-token-review", env = "KVASIR_AUTH_TOKEN_REVIEW", action = ArgAction::Set, num_args = 0..=1, default_missing_value = "true", value_name = "BOOL")]
        token_review: bool,
        /// Audiences of which such a token must have one [default: the API server]
        #[arg(long = "auth-token-review-audiences", env = "KVASIR_AUTH_TOKEN_REVIEW_AUDIENCES", value_name = "NAME,...")]
        token_review_audiences: Servers,
        /// How long the API server's answer is cached [default: 1m]
        #[arg(long = "auth-token-review-ttl", env = "KVASIR_AUTH_TOKEN_REVIEW_TTL", value_name = "DURATION")]
        token_review_ttl: DurationText,
    }
}
