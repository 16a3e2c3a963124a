//! The command line. Knows nothing of what the verbs do.

use clap::{Parser, Subcommand, ValueEnum};
use kvasir_client::{AckLevel, Credentials, DEFAULT_ADDRESS, Error};
use kvasir_formats::duration;
use std::ffi::OsString;
use std::path::PathBuf;
use std::time::Duration;

const AFTER_HELP: &str = "\
Exit codes:
  0  success
  1  the call failed for a reason that is not listed here
  2  the command line is wrong
  3  the key does not exist (get, exists, touch)
  4  no node could be reached, or none was ready, within --timeout
  5  the node refused the input: it exceeds a limit, or the node is full
  6  the write was made, but fewer nodes than --ack asked for confirmed it in time

Examples:
  kvctl put greeting hello --ttl 30s
  kvctl get greeting
  kvctl put blob - < file
  kvctl -o json list config/ | jq -r .key";

/// Talk to a node of a Kvasir cluster.
#[derive(Debug, Parser)]
#[command(name = "kvctl", version, after_help = AFTER_HELP, max_term_width = 100)]
pub(crate) struct Args {
    /// The node or the Service, as host:port; with https:// in front for TLS
    #[arg(long, short, global = true, env = "KVASIR_ADDRESS", default_value = DEFAULT_ADDRESS, value_name = "ADDRESS")]
    pub(crate) address: String,

    /// Output format: text for people, json for scripts (one object; list, watch and events print one per line)
    #[arg(long, short, global = true, value_enum, default_value_t = Format::Text)]
    pub(crate) output: Format,

    /// How long to try, all attempts together; units ms, s, m, h
    #[arg(
        long,
        global = true,
        default_value = "10s",
        value_parser = positive,
        allow_hyphen_values = true,
        value_name = "DURATION"
    )]
    pub(crate) timeout: Duration,

    #[command(flatten)]
    pub(crate) credentials: CredentialArgs,

    #[command(subcommand)]
    pub(crate) verb: Verb,
}

/// The client's token and certificate, and the authorities that it trusts.
#[derive(Debug, clap::Args)]
pub(crate) struct CredentialArgs {
    /// File with the authorities that may issue the node's certificate (PEM) [default: the system's]
    #[arg(long, global = true, env = "KVASIR_CA_FILE", value_name = "FILE")]
    pub(crate) ca_file: Option<PathBuf>,

    /// File with the client's certificate (PEM); needs --key-file
    #[arg(long, global = true, env = "KVASIR_CERT_FILE", value_name = "FILE")]
    pub(crate) cert_file: Option<PathBuf>,

    /// File with the key of the client's certificate (PEM)
    #[arg(long, global = true, env = "KVASIR_KEY_FILE", value_name = "FILE")]
    pub(crate) key_file: Option<PathBuf>,

    /// The name in the node's certificate [default: the host in the address]
    #[arg(long, global = true, env = "KVASIR_SERVER_NAME", value_name = "NAME")]
    pub(crate) server_name: Option<String>,

    /// File with the token that identifies the client
    #[arg(long, global = true, env = "KVASIR_TOKEN_FILE", value_name = "FILE")]
    pub(crate) token_file: Option<PathBuf>,
}

impl CredentialArgs {
    /// The same for the SDK.
    pub(crate) fn credentials(self) -> Result<Credentials, Error> {
        let Self { ca_file, cert_file, key_file, server_name, token_file } = self;
        let mut credentials = Credentials::default();
        if let Some(path) = ca_file {
            credentials = credentials.ca_file(path);
        }
        credentials = match (cert_file, key_file) {
            (Some(cert), Some(key)) => credentials.certificate(cert, key),
            (None, None) => credentials,
            (Some(_), None) => return Err(Error::Credentials("--cert-file needs --key-file".to_owned())),
            (None, Some(_)) => return Err(Error::Credentials("--key-file needs --cert-file".to_owned())),
        };
        if let Some(name) = server_name {
            credentials = credentials.server_name(name);
        }
        if let Some(path) = token_file {
            credentials = credentials.token_file(path);
        }
        Ok(credentials)
    }
}

/// An output format.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Format {
    /// For people.
    Text,
    /// For scripts.
    Json,
}

/// A verb.
#[derive(Debug, Subcommand)]
pub(crate) enum Verb {
    /// Store a value under a key
    Put {
        key: String,
        /// The value; - reads it from standard input (write -- before a value that begins with a dash)
        #[arg(allow_negative_numbers = true)]
        value: OsString,
        /// The time until the key expires, such as 500ms, 3s or 1m30s [default: it does not expire]
        #[arg(long, value_parser = time, allow_hyphen_values = true, value_name = "DURATION")]
        ttl: Option<Duration>,
        /// Wait until other nodes hold the write: their number, majority, or all [default: do not wait]
        #[arg(long, value_parser = ack, value_name = "NODES")]
        ack: Option<AckLevel>,
    },
    /// Print a value, byte for byte (a newline follows only on a terminal)
    Get { key: String },
    /// Print whether a key exists: true, or false with exit code 3
    Exists { key: String },
    /// Delete a key; prints whether it existed (exit code 0 in both cases)
    Delete {
        key: String,
        /// Wait until other nodes hold the delete: their number, majority, or all [default: do not wait]
        #[arg(long, value_parser = ack, value_name = "NODES")]
        ack: Option<AckLevel>,
    },
    /// Set or remove the TTL of a key, without changing its value; exit code 3 if the key does not exist
    Touch {
        key: String,
        /// The time until the key expires [default: it does not expire]
        #[arg(long, value_parser = time, allow_hyphen_values = true, value_name = "DURATION")]
        ttl: Option<Duration>,
        /// Wait until other nodes hold the change: their number, majority, or all [default: do not wait]
        #[arg(long, value_parser = ack, value_name = "NODES")]
        ack: Option<AckLevel>,
    },
    /// Print changes of keys, one per line, until interrupted
    Watch {
        /// Only keys with this prefix
        #[arg(default_value = "", hide_default_value = true)]
        prefix: String,
        /// Print the existing keys first
        #[arg(long)]
        content: bool,
    },
    /// List keys in order
    List {
        /// Only keys with this prefix
        #[arg(default_value = "", hide_default_value = true)]
        prefix: String,
        /// At most this many
        #[arg(long, value_parser = clap::value_parser!(u64).range(1..), value_name = "N")]
        limit: Option<u64>,
        /// Print keys only, one per line
        #[arg(long)]
        keys_only: bool,
    },
    /// List the nodes of the cluster, eldest first
    Members,
    /// Print changes of the cluster's nodes, one per line, until interrupted
    Events,
    /// Show the health of the node
    Status,
    /// Show which node answers
    Whoami,
    /// Show the eldest member
    Leader,
}

fn ack(text: &str) -> Result<AckLevel, String> {
    match text {
        "majority" => Ok(AckLevel::Majority),
        "all" => Ok(AckLevel::All),
        number => number.parse().map(AckLevel::Count).map_err(|_| "give a number, majority or all".to_owned()),
    }
}

/// clap's message has the text already.
fn time(text: &str) -> Result<Duration, &'static str> {
    duration::parse(text).map_err(|_| duration::FORM)
}

fn positive(text: &str) -> Result<Duration, &'static str> {
    match time(text)? {
        Duration::ZERO => Err("must be above zero"),
        duration => Ok(duration),
    }
}

#[cfg(test)]
mod tests {
    use super::{Args, Format, Verb};
    use clap::{CommandFactory as _, Parser as _};
    use std::time::Duration;

    #[test]
    fn command_line_is_consistent() {
        Args::command().debug_assert();
    }

    #[test]
    fn options_are_taken_in_any_place() {
        let args = Args::try_parse_from(["kvctl", "put", "k", "--ttl", "3s", "-5", "-o", "json"]).unwrap();
        assert_eq!(args.output, Format::Json);
        match args.verb {
            Verb::Put { key, value, ttl, ack: None } => {
                assert_eq!((key.as_str(), value.to_str(), ttl), ("k", Some("-5"), Some(Duration::from_secs(3))));
            }
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn certificate_and_key_need_each_other() {
        let credentials = |words: &[&str]| {
            let args = Args::try_parse_from([&["kvctl", "status"], words].concat()).unwrap();
            args.credentials.credentials().map_err(|error| error.to_string())
        };
        assert!(credentials(&["--ca-file", "a", "--cert-file", "c", "--key-file", "k", "--token-file", "t"]).is_ok());
        assert!(credentials(&["--cert-file", "c"]).unwrap_err().contains("--key-file"));
        assert!(credentials(&["--key-file", "k"]).unwrap_err().contains("--cert-file"));
    }

    #[test]
    fn wrong_words_are_usage_errors() {
        for wrong in [
            &["kvctl"][..],
            &["kvctl", "put", "k"],
            &["kvctl", "put", "k", "v", "--ttl", "3"],
            &["kvctl", "put", "k", "v", "--ttl=-3s"],
            &["kvctl", "get", "k", "--timeout", "0s"],
            &["kvctl", "list", "--limit", "0"],
            &["kvctl", "put", "k", "v", "--ack", "some"],
            &["kvctl", "get", "k", "-o", "yaml"],
        ] {
            let error = Args::try_parse_from(wrong).expect_err(&wrong.join(" "));
            assert_eq!(error.exit_code(), 2, "{wrong:?}");
        }
    }

    #[test]
    fn negative_duration_names_its_option() {
        for (wrong, option) in [
            (&["kvctl", "put", "k", "v", "--ttl", "-3s"][..], "--ttl"),
            (&["kvctl", "touch", "k", "--ttl", "-3s"], "--ttl"),
            (&["kvctl", "get", "k", "--timeout", "-1s"], "--timeout"),
        ] {
            let message = Args::try_parse_from(wrong).expect_err(&wrong.join(" ")).to_string();
            assert!(message.contains(option) && message.contains("write a whole number and a unit"), "{message}");
        }
    }
}
