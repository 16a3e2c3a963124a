//! The command line. Knows nothing of what the verbs do.

use crate::duration;
use clap::{Parser, Subcommand, ValueEnum};
use kvasir_client::{AckLevel, Credentials, DEFAULT_ADDRESS, Error};
use std::ffi::OsString;
use std::path::PathBuf;
use std::time::Duration;

const AFTER_HELP: &str = "\
Exit codes:
  0  done
  1  the call failed for another reason than those below
  2  the command line is wrong
  3  the key is not there (get, exists, touch)
  4  the node cannot be reached, or is not ready, within --timeout
  5  the node refused the input: a limit is broken, or the node is full
  6  the write was made, but is not known to be held by as many as --ack asked for

Examples:
  kvctl put greeting hello --ttl 30s
  kvctl get greeting
  kvctl put blob - < file
  kvctl -o json list config/ | jq -r .key";

/// Talk to a node of a Kvasir cluster.
#[derive(Debug, Parser)]
#[command(name = "kvctl", version, after_help = AFTER_HELP, max_term_width = 100)]
pub(crate) struct Args {
    /// The node, or the Service before it, as host:port, with https:// before it for TLS
    #[arg(long, short, global = true, env = "KVASIR_ADDRESS", default_value = DEFAULT_ADDRESS, value_name = "ADDRESS")]
    pub(crate) address: String,

    /// How to print: text for people, json for scripts (one object; for list one on each line)
    #[arg(long, short, global = true, value_enum, default_value_t = Format::Text)]
    pub(crate) output: Format,

    /// How long to try, all attempts together; units ms, s, m, h
    #[arg(long, global = true, default_value = "10s", value_parser = positive, allow_hyphen_values = true, value_name = "DURATION")]
    pub(crate) timeout: Duration,

    #[command(flatten)]
    pub(crate) credentials: CredentialArgs,

    #[command(subcommand)]
    pub(crate) verb: Verb,
}

/// What to show, and whom to trust.
#[derive(Debug, clap::Args)]
pub(crate) struct CredentialArgs {
    /// The authorities that the node's certificate may come from (PEM) [default: the system's]
    #[arg(long, global = true, env = "KVASIR_CA_FILE", value_name = "FILE")]
    pub(crate) ca_file: Option<PathBuf>,

    /// The client's certificate (PEM), with --key-file
    #[arg(long, global = true, env = "KVASIR_CERT_FILE", value_name = "FILE")]
    pub(crate) cert_file: Option<PathBuf>,

    /// The key of the client's certificate (PEM)
    #[arg(long, global = true, env = "KVASIR_KEY_FILE", value_name = "FILE")]
    pub(crate) key_file: Option<PathBuf>,

    /// The name in the node's certificate [default: the address's]
    #[arg(long, global = true, env = "KVASIR_SERVER_NAME", value_name = "NAME")]
    pub(crate) server_name: Option<String>,

    /// A file with the token that the node knows the client by
    #[arg(long, global = true, env = "KVASIR_TOKEN_FILE", value_name = "FILE")]
    pub(crate) token_file: Option<PathBuf>,
}

impl CredentialArgs {
    /// As the SDK takes them.
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

/// How to print.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Format {
    /// For people.
    Text,
    /// For scripts.
    Json,
}

/// What to do.
#[derive(Debug, Subcommand)]
pub(crate) enum Verb {
    /// Store a value under a key
    Put {
        key: String,
        /// The value; - reads it from standard input (use -- before one that begins with a dash)
        #[arg(allow_negative_numbers = true)]
        value: OsString,
        /// The time until the key ends, as in 500ms, 3s, 1m30s [default: it does not end]
        #[arg(long, value_parser = duration::parse, allow_hyphen_values = true, value_name = "DURATION")]
        ttl: Option<Duration>,
        /// Who shall hold the write first: a number of other nodes, majority, or all [default: nobody else]
        #[arg(long, value_parser = ack, value_name = "WHO")]
        ack: Option<AckLevel>,
    },
    /// Print a value, byte for byte (a newline follows only on a terminal)
    Get { key: String },
    /// Tell whether a key is there: true, or false and exit code 3
    Exists { key: String },
    /// Delete a key; tells whether it was there (either way exit code 0)
    Delete {
        key: String,
        /// Who shall hold the delete first: a number of other nodes, majority, or all [default: nobody else]
        #[arg(long, value_parser = ack, value_name = "WHO")]
        ack: Option<AckLevel>,
    },
    /// Give a key another end and leave its value; exit code 3 if it is not there
    Touch {
        key: String,
        /// The time until the key ends [default: it does not end]
        #[arg(long, value_parser = duration::parse, allow_hyphen_values = true, value_name = "DURATION")]
        ttl: Option<Duration>,
        /// Who shall hold the new end first: a number of other nodes, majority, or all [default: nobody else]
        #[arg(long, value_parser = ack, value_name = "WHO")]
        ack: Option<AckLevel>,
    },
    /// Tell what happens to keys, one line each, until interrupted
    Watch {
        /// Only keys that begin with this
        #[arg(default_value = "", hide_default_value = true)]
        prefix: String,
        /// Tell first what is there
        #[arg(long)]
        content: bool,
    },
    /// List keys in order
    List {
        /// Only keys that begin with this
        #[arg(default_value = "", hide_default_value = true)]
        prefix: String,
        /// At most this many
        #[arg(long, value_parser = clap::value_parser!(u64).range(1..), value_name = "N")]
        limit: Option<u64>,
        /// Keys alone, one on each line
        #[arg(long)]
        keys_only: bool,
    },
    /// List the nodes of the cluster, eldest first
    Members,
    /// Tell what happens to the nodes of the cluster, one line each, until interrupted
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

fn positive(text: &str) -> Result<Duration, String> {
    match duration::parse(text)? {
        Duration::ZERO => Err("must be above zero".to_owned()),
        duration => Ok(duration),
    }
}

#[cfg(test)]
mod tests {
    use super::{Args, Format, Verb};
    use clap::{CommandFactory as _, Parser as _};
    use std::time::Duration;

    #[test]
    fn the_command_line_is_sound() {
        Args::command().debug_assert();
    }

    #[test]
    fn options_may_stand_anywhere() {
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
    fn a_certificate_needs_its_key_and_the_key_its_certificate() {
        let credentials = |words: &[&str]| {
            let args = Args::try_parse_from([&["kvctl", "status"], words].concat()).unwrap();
            args.credentials.credentials().map_err(|error| error.to_string())
        };
        assert!(credentials(&["--ca-file", "a", "--cert-file", "c", "--key-file", "k", "--token-file", "t"]).is_ok());
        assert!(credentials(&["--cert-file", "c"]).unwrap_err().contains("--key-file"));
        assert!(credentials(&["--key-file", "k"]).unwrap_err().contains("--cert-file"));
    }

    #[test]
    fn wrong_ones_are_usage_errors() {
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
    fn a_negative_duration_is_told_for_what_it_is() {
        for (wrong, option) in [
            (&["kvctl", "put", "k", "v", "--ttl", "-3s"][..], "--ttl"),
            (&["kvctl", "touch", "k", "--ttl", "-3s"], "--ttl"),
            (&["kvctl", "get", "k", "--timeout", "-1s"], "--timeout"),
        ] {
            let told = Args::try_parse_from(wrong).expect_err(&wrong.join(" ")).to_string();
            assert!(told.contains(option) && told.contains("write a whole number and a unit"), "{told}");
        }
    }
}
