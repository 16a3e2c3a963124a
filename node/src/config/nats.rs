//! Finding peers over NATS: what is needed for it, and from settings to that.

use std::{ops::RangeInclusive, path::PathBuf, time::Duration};

use async_nats::ServerAddr;

use super::{
    ConfigError, NatsSettings, Secret,
    validate::{invalid, within},
};

const DEFAULT_TIMEOUT: Duration = Duration::from_secs(5);
const DEFAULT_MAX_JOIN_ATTEMPTS: u32 = 5;
const DEFAULT_RECONNECT_WAIT: Duration = Duration::from_secs(2);

const TIMEOUT: RangeInclusive<Duration> = Duration::from_millis(10)..=Duration::from_mins(1);
const RECONNECT_WAIT: RangeInclusive<Duration> = Duration::from_millis(10)..=Duration::from_mins(5);
const MAX_SERVERS: usize = 16;
const MAX_SUBJECT_BYTES: usize = 256;

/// Finding peers on a NATS subject.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NatsConfig {
    /// URLs of the servers; at least one.
    pub server: Vec<String>,
    /// Where the cluster's nodes meet.
    pub subject: String,
    /// How long to wait for a server's answer.
    pub timeout: Duration,
    /// How many attempts to connect come at the pace of `reconnect_wait`.
    pub max_join_attempts: u32,
    /// How long to wait between two attempts to connect.
    pub reconnect_wait: Duration,
    /// The port to announce; `None`: the peer port.
    pub discovery_port: Option<u16>,
    /// The name or address to announce; `None`: the advertised one.
    pub host: Option<String>,
    /// How to log in.
    pub login: Option<NatsLogin>,
    /// Authorities of the servers' certificates; `None`: the system's.
    pub ca_file: Option<PathBuf>,
}

/// How to log in at a NATS server.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum NatsLogin {
    /// With a name and a password.
    User {
        /// The name.
        user: String,
        /// The password.
        password: SecretSource,
    },
    /// With a token.
    Token(SecretSource),
    /// With a credentials file.
    Credentials(PathBuf),
}

/// Where a secret is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SecretSource {
    /// Here.
    Text(Secret),
    /// In a file, which is read each time that the secret is needed.
    File(PathBuf),
}

impl NatsSettings {
    pub(super) fn validate(self, cluster: &str) -> Result<NatsConfig, ConfigError> {
        let Self {
            server,
            subject,
            timeout,
            max_join_attempts,
            reconnect_wait,
            discovery_port,
            host,
            user,
            password,
            password_file,
            token,
            token_file,
            credentials_file,
            ca_file,
        } = self;
        let server = server.map(|servers| servers.0).unwrap_or_default();
        if server.is_empty() || server.len() > MAX_SERVERS {
            return Err(invalid(
                "discovery.nats.server",
                format!("give at least one server, such as nats://10.0.0.1:4222, and at most {MAX_SERVERS}"),
            ));
        }
        for url in &server {
            check_server(url)?;
        }
        if discovery_port == Some(0) {
            return Err(invalid("discovery.nats.discoveryPort", "0 is no port: leave it out for the peer port"));
        }
        let password = one_of("discovery.nats.passwordFile", password, password_file)?;
        let token = one_of("discovery.nats.tokenFile", token, token_file)?;
        let login = match (user, password, token, credentials_file) {
            (None, None, None, None) => None,
            (Some(user), Some(password), None, None) => Some(NatsLogin::User { user, password }),
            (None, None, Some(token), None) => Some(NatsLogin::Token(token)),
            (None, None, None, Some(file)) => Some(NatsLogin::Credentials(file)),
            (Some(_), None, None, None) => {
                return Err(invalid("discovery.nats.password", "give it, or passwordFile: there is a user"));
            }
            (None, Some(_), None, None) => {
                return Err(invalid("discovery.nats.user", "give it: there is a password"));
            }
            _ => {
                return Err(invalid(
                    "discovery.nats",
                    "give one way to log in: user and password, or a token, or a credentialsFile",
                ));
            }
        };
        Ok(NatsConfig {
            server,
            subject: checked_subject(subject, cluster)?,
            timeout: within("discovery.nats.timeout", timeout, DEFAULT_TIMEOUT, &TIMEOUT)?,
            max_join_attempts: max_join_attempts.unwrap_or(DEFAULT_MAX_JOIN_ATTEMPTS),
            reconnect_wait: within(
                "discovery.nats.reconnectWait",
                reconnect_wait,
                DEFAULT_RECONNECT_WAIT,
                &RECONNECT_WAIT,
            )?,
            discovery_port,
            host: host.filter(|host| !host.is_empty()),
            login,
            ca_file,
        })
    }
}

/// A password in a URL would be shown wherever the URL is.
fn check_server(url: &str) -> Result<(), ConfigError> {
    let field = "discovery.nats.server";
    let form = "write nats://HOST:4222 or tls://HOST:4222";
    // The messages have no place for the URL itself.
    let server: ServerAddr =
        url.parse().map_err(|error| invalid(field, format!("one of them is no server's address ({error}): {form}")))?;
    if server.has_user_pass() || server.password().is_some() {
        return Err(invalid(field, "a URL must hold no user or password: set user, and password or passwordFile"));
    }
    if !matches!(server.scheme(), "nats" | "tls") || server.host().is_empty() {
        return Err(invalid(field, format!("one of them is no NATS server's address: {form}")));
    }
    Ok(())
}

fn checked_subject(given: Option<String>, cluster: &str) -> Result<String, ConfigError> {
    let field = "discovery.nats.subject";
    let subject = given.unwrap_or_else(|| format!("kvasir.{cluster}"));
    if subject.len() > MAX_SUBJECT_BYTES {
        return Err(invalid(field, format!("has {} bytes: give at most {MAX_SUBJECT_BYTES}", subject.len())));
    }
    let word = |word: &str| {
        !word.is_empty() && word.chars().all(|c| !c.is_whitespace() && !c.is_control() && !matches!(c, '*' | '>'))
    };
    if !subject.split('.').all(word) {
        return Err(invalid(
            field,
            format!(
                "{subject:?} is no subject: give words with dots between them, without * and >, such as kvasir.demo"
            ),
        ));
    }
    Ok(subject)
}

fn one_of(
    file_field: &'static str,
    text: Option<Secret>,
    file: Option<PathBuf>,
) -> Result<Option<SecretSource>, ConfigError> {
    match (text, file) {
        (Some(_), Some(_)) => Err(invalid(file_field, "the secret itself is given too: leave out one of the two")),
        (Some(secret), None) => Ok(Some(SecretSource::Text(secret))),
        (None, Some(file)) => Ok(Some(SecretSource::File(file))),
        (None, None) => Ok(None),
    }
}
