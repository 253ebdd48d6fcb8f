//! `bin/bench`: what building a factory costs, as one JSON object.

mod cpu;
mod signing;

use anyhow::Result;
use clap::{Parser, Subcommand};

/// Measures what building a factory costs.
#[derive(Debug, Parser)]
#[command(name = "bin/bench")]
struct Arguments {
    #[command(subcommand)]
    what: What,
}

#[derive(Debug, Subcommand)]
enum What {
    /// The arithmetic alone, in one process on one core.
    Signing {
        /// Clients of the factory.
        #[arg(long, default_value_t = 128)]
        clients: u32,
        /// One JSON object instead of a table.
        #[arg(long)]
        json: bool,
    },
}

fn main() -> Result<()> {
    match Arguments::parse().what {
        What::Signing { clients, json } => {
            let cost = signing::run(clients)?;
            if json {
                println!("{}", serde_json::to_string(&cost)?);
            } else {
                println!("{} clients, one core, no network, no disk", cost.clients);
                println!("  coordinator  {:8.3} s", cost.coordinator_cpu_s);
                println!("  one client   {:8.3} s", cost.one_client_cpu_s);
            }
        }
    }
    Ok(())
}
