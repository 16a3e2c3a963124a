//! `kvasir-bench`: what `make bench-convergence` and `make bench-scale` run.
//! Prints its tables, and writes them into `docs/benchmarks.md` with `--write`.

mod chart;
mod convergence;
mod load;
mod memory;
mod node;
mod report;
mod scale;
mod throughput;

use std::path::PathBuf;

use clap::{Parser, Subcommand};

/// As in the node: musl's own allocator would make the load the bottleneck.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Measures Kvasir.
#[derive(Debug, Parser)]
struct Cli {
    /// Also write the tables into this folder's `benchmarks.md`, and the charts beside it
    #[arg(long, value_name = "FOLDER", global = true)]
    write: Option<PathBuf>,
    #[command(subcommand)]
    what: What,
}

#[derive(Debug, Subcommand)]
enum What {
    /// A write to all replicas, and its bytes, for 3 to 100 replicas in a simulated network
    Convergence,
    /// Three node processes with a million keys: idle, join, repair, put to get at all. Needs a network namespace of
    /// its own: scripts/bench-scale makes one
    Scale(scale::Options),
    /// Operations a second on one node process, by unary calls and through pipes
    Throughput(throughput::Options),
    /// A million entries of several shapes: what a node process says that it holds, and what it takes
    Memory(memory::Options),
}

fn main() -> anyhow::Result<()> {
    let cli = Cli::parse();
    let report = match cli.what {
        What::Convergence => convergence::run(cli.write.as_deref())?,
        What::Scale(options) => on_runtime(scale::run(&options))?,
        What::Throughput(options) => on_runtime(throughput::run(&options))?,
        What::Memory(options) => on_runtime(memory::run(&options))?,
    };
    println!("\n{}", report.text);
    if let Some(folder) = &cli.write {
        report.write(&folder.join("benchmarks.md"))?;
    }
    Ok(())
}

fn on_runtime<T>(work: impl Future<Output = anyhow::Result<T>>) -> anyhow::Result<T> {
    tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?.block_on(work)
}
