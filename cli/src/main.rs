//! `kvctl`: a Kvasir cluster from the shell.
//!
//! `args` holds the command line, `run` what each verb does, `output` what it prints. The calls are those of the SDK.

mod args;
mod output;
mod run;

use clap::Parser as _;
use std::process::ExitCode;

#[tokio::main(flavor = "current_thread")]
async fn main() -> ExitCode {
    // clap itself ends the process with code 2 on a usage error.
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
