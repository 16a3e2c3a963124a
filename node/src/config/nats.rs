//! Discovery over NATS: the validated settings.

use std::{ops::RangeInclusive, path::PathBuf, time::Duration};

use async_nats::ServerAddr;

use super::{ConfigError, NatsSettings, Secret, checks::within, error::invalid};

const DEFAULT_TIMEOUT: Duration = Duration::from_secs(5);
const DEFAULT_MAX_JOIN_ATTEMPTS: u32 = 5;
const DEFAULT_RECONNECT_WAIT: Duration = Duration::from_secs(2);

const TIMEOUT: RangeInclusive<Duration> = Duration::from_millis(10)..=Duration::from_mins(1);
const RECONNECT_WAIT: RangeInclusive<Duration> = Duration::from_millis(10)..=Duration::from_mins(5);
const MAX_SERVERS: usize = 16;
const MAX_SUBJECT_BYTES: usize = 256;

/// Discovery on a NATS subject.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NatsConfig {
    /// The URLs of the servers; at least one.
    pub server: Vec<String>,
    /// The subject on which the cluster's nodes announce themselves.
    pub subject: String,
    /// How long to wait for a server's answer.
    pub timeout: Duration,
    /// The number of attempts after which the wait begins to double.
    pub max_join_attempts: u32,
    /// How long to wait between two attempts to connect.
    pub reconnect_wait: Duration,
    /// The port to announce; `None` means the peer port.
    pub discovery_port: Option<u16>,
    /// The name or address to announce; `None` means the advertised address.
    pub host: Option<String>,
    /// How to log in.
    pub login: Option<NatsLogin>,
    /// The CA certificates for the servers; `None` means the system's.
    pub ca_file: Option<PathBuf>,
}

/// How to log in to a NATS server.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum NatsLogin {
    /// With user and password.
    User {
        /// The user.
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
    /// Given as a setting.
    Text(Secret),
    /// The secret is in a file, which is read whenever the secret is needed.
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
            return Err(invalid(
                "discovery.nats.discoveryPort",
                "0 is not a port: leave it out to announce the peer port",
            ));
        }
        let password = one_of("discovery.nats.passwordFile", password, password_file)?;
        let token = one_of("discovery.nats.tokenFile", token, token_file)?;
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
            login: login(user, password, token, credentials_file)?,
            ca_file,
        })
    }
}

fn login(
    user: Option<String>,
    password: Option<SecretSource>,
    token: Option<SecretSource>,
    credentials_file: Option<PathBuf>,
) -> Result<Option<NatsLogin>, ConfigError> {
    match (user, password, token, credentials_file) {
        (None, None, None, None) => Ok(None),
        (Some(user), Some(password), None, None) => Ok(Some(NatsLogin::User { user, password })),
        (None, None, Some(token), None) => Ok(Some(NatsLogin::Token(token))),
        (None, None, None, Some(file)) => Ok(Some(NatsLogin::Credentials(file))),
        (Some(_), None, None, None) => {
            Err(invalid("discovery.nats.password", "a user is given: give the password or passwordFile as well"))
        }
        (None, Some(_), None, None) => {
            Err(invalid("discovery.nats.user", "a password is given: give the user as well"))
        }
        _ => Err(invalid(
            "discovery.nats",
            "give one way to log in: user and password, or a token, or a credentialsFile",
        )),
    }
}

/// URLs are shown in logs and status, so they must not contain a password.
fn check_server(url: &str) -> Result<(), ConfigError> {
    let field = "discovery.nats.server";
    let form = "write nats://HOST:4222 or tls://HOST:4222";
    // The messages do not quote the URL, which may contain a password.
    let server: ServerAddr = url
        .parse()
        .map_err(|error| invalid(field, format!("one of them is not a server's address ({error}): {form}")))?;
    if server.has_user_pass() || server.password().is_some() {
        return Err(invalid(
            field,
            "a URL must not contain a user or password: set user, and password or passwordFile",
        ));
    }
    if !matches!(server.scheme(), "nats" | "tls") || server.host().is_empty() {
        return Err(invalid(field, format!("one of them is not a NATS server's address: {form}")));
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
            format!("{subject:?} is not a subject: give words separated by dots, without * and >, such as kvasir.demo"),
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
