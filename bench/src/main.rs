//! `kvasir-bench`, which `make bench-convergence` and `make bench-scale` run.
//!
//! It prints tables, and with `--write` puts them into `docs/benchmarks.md`.

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

/// As in the node. With musl's own allocator the load would be the bottleneck.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Measures Kvasir.
#[derive(Debug, Parser)]
struct Cli {
    /// Also write the tables into this folder's `benchmarks.md`, and the charts next to it
    #[arg(long, value_name = "FOLDER", global = true)]
    write: Option<PathBuf>,
    #[command(subcommand)]
    what: What,
}

#[derive(Debug, Subcommand)]
enum What {
    /// How long a write takes to reach all of 3 to 100 replicas in a simulated network, and how many bytes it costs
    Convergence,
    /// Three node processes with a million keys: idle, join, repair, and load. Needs a network namespace of its own:
    /// scripts/bench-scale makes one
    Scale(scale::Options),
    /// Operations per second on one node process, by unary calls and through pipes
    Throughput(throughput::Options),
    /// A million entries of several shapes: the memory that a node process accounts for, and the memory that it takes
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
