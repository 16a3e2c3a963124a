//! `kvctl`: a Kvasir cluster from the shell.
//!
//! What it takes is in `args`, what it does in `run`, what it prints in `output`; the calls themselves are the SDK's.

mod args;
mod duration;
mod output;
mod run;

use clap::Parser as _;
use std::process::ExitCode;

#[tokio::main(flavor = "current_thread")]
async fn main() -> ExitCode {
    // clap ends the process itself on a usage error, with code 2.
    let args = args::Args::parse();
    match run::run(args).await {
        Ok(outcome) => outcome.into(),
        Err(error) => {
            if !error.is_silent() {
                eprintln!("kvctl: {}", error.to_string().replace('\n', " "));
            }
            error.exit_code()
        }
    }
}
