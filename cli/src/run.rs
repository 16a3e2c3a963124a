//! Carries out a verb, and turns its outcome into an exit code.

use crate::args::{Args, Format, Verb};
use crate::output::{self, Out};
use futures::TryStreamExt as _;
use futures::stream::TryReadyChunksError;
use kvasir_client::{Client, Error, ListOptions, PutOptions, RetryPolicy, WatchOptions};
use std::ffi::OsString;
use std::io::{self, Read as _};
use std::process::ExitCode;
use std::time::Duration;

/// Limit on one attempt, so that a node which does not answer leaves time to try another.
const ATTEMPT: Duration = Duration::from_secs(5);

/// How a verb ended, if it did not fail.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Outcome {
    Done,
    Missing,
}

impl From<Outcome> for ExitCode {
    fn from(outcome: Outcome) -> Self {
        Self::from(match outcome {
            Outcome::Done => 0,
            Outcome::Missing => 3,
        })
    }
}

/// Why a verb failed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Failure {
    #[error("{0}")]
    Call(#[from] Error),
    #[error("key '{0}' does not exist")]
    Missing(String),
    #[error("cannot read standard input: {0}")]
    Input(io::Error),
    #[error("cannot write standard output: {0}")]
    Output(#[from] io::Error),
}

impl Failure {
    pub(crate) fn exit_code(&self) -> ExitCode {
        match self {
            Self::Missing(_) => Outcome::Missing.into(),
            // The reader of our output has closed it, as in `kvctl list | head`.
            Self::Output(error) if error.kind() == io::ErrorKind::BrokenPipe => ExitCode::SUCCESS,
            Self::Input(_) | Self::Output(_) => ExitCode::from(1),
            Self::Call(error) => ExitCode::from(match error {
                Error::Address { .. } | Error::Credentials(_) => 2,
                Error::Unavailable { .. } => 4,
                Error::Refused(_) | Error::Full(_) => 5,
                Error::NotHeld { .. } => 6,
                _ => 1,
            }),
        }
    }

    /// Whether to print no message: the reader of our output has closed it, which is not an error.
    pub(crate) fn is_silent(&self) -> bool {
        matches!(self, Self::Output(error) if error.kind() == io::ErrorKind::BrokenPipe)
    }
}

pub(crate) async fn run(args: Args) -> Result<Outcome, Failure> {
    let client = Client::builder(&args.address)
        .credentials(args.credentials.credentials()?)
        .request_timeout(ATTEMPT.min(args.timeout))
        .retry(RetryPolicy { budget: args.timeout, ..RetryPolicy::default() })
        .build()?;
    let mut out = Out::new(args.output);
    match args.verb {
        Verb::Put { key, value, ttl, ack } => {
            let value = input(value)?;
            let version = client.put(&key, value, PutOptions { ttl, ack: ack.map(Into::into) }).await?;
            out.put(&key, version)?;
        }
        Verb::Get { key } => {
            let Some(found) = client.get(&key).await? else { return missing(args.output, &key, &mut out) };
            out.get(&key, &found)?;
        }
        Verb::Exists { key } => {
            let exists = client.exists(&key).await?;
            out.exists(&key, exists)?;
            if !exists {
                return Ok(Outcome::Missing);
            }
        }
        Verb::Delete { key, ack } => {
            let existed = match ack {
                Some(ack) => client.delete_with(&key, ack).await?,
                None => client.delete(&key).await?,
            };
            out.delete(&key, existed)?;
        }
        Verb::Touch { key, ttl, ack } => {
            let existed = match ack {
                Some(ack) => client.touch_with(&key, ttl, ack).await?,
                None => client.touch(&key, ttl).await?,
            };
            if !existed {
                return missing(args.output, &key, &mut out);
            }
            out.touch(&key)?;
        }
        Verb::Watch { prefix, content } => {
            let mut events = client.watch(prefix, WatchOptions { content_first: content, keys_only: false });
            while let Some(event) = events.try_next().await? {
                out.event(&event)?;
            }
        }
        Verb::List { prefix, limit, keys_only } => {
            list(&client, prefix, ListOptions { limit, keys_only }, &mut out).await?;
        }
        Verb::Events => {
            let mut events = client.events();
            while let Some(event) = events.try_next().await? {
                out.cluster_event(&event)?;
            }
        }
        Verb::Members => out.members(&client.members().await?)?,
        Verb::Status => out.status(&client.status().await?)?,
        Verb::Whoami => out.who_am_i(&client.who_am_i().await?)?,
        Verb::Leader => out.leader(&client.leader().await?)?,
    }
    Ok(Outcome::Done)
}

/// Prints rows as they come. The rows before a failure are printed first, then the failure.
async fn list(client: &Client, prefix: String, options: ListOptions, out: &mut Out) -> Result<(), Failure> {
    let mut entries = client.list(prefix, options).try_ready_chunks(output::ROWS_AT_A_TIME);
    let mut listing = out.listing(options.keys_only);
    loop {
        match entries.try_next().await {
            Ok(Some(rows)) => listing.rows(&rows)?,
            Ok(None) => return Ok(()),
            Err(TryReadyChunksError(rows, error)) => {
                // A header without a row would look like an answer.
                if !rows.is_empty() {
                    listing.rows(&rows)?;
                }
                return Err(error.into());
            }
        }
    }
}

/// In JSON a missing key is an answer on standard output, with exit code 3.
fn missing(format: Format, key: &str, out: &mut Out) -> Result<Outcome, Failure> {
    match format {
        Format::Text => Err(Failure::Missing(key.to_owned())),
        Format::Json => {
            out.not_found(key)?;
            Ok(Outcome::Missing)
        }
    }
}

fn input(value: OsString) -> Result<Vec<u8>, Failure> {
    if value == "-" {
        let mut bytes = Vec::new();
        io::stdin().lock().read_to_end(&mut bytes).map_err(Failure::Input)?;
        return Ok(bytes);
    }
    Ok(value.into_encoded_bytes())
}
