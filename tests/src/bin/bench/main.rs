//! `bin/bench`: what things cost, as one JSON object.

mod ceremony;
mod cpu;
mod jit;
mod payments;
mod sales;
mod signing;
mod town;
mod worker;

use anyhow::Result;
use clap::{Parser, Subcommand};

/// Measures what building a factory costs, paying in it, buying room in it, and being paid without.
#[derive(Debug, Parser)]
#[command(name = "bin/bench")]
struct Arguments {
    #[command(subcommand)]
    what: What,
}

#[derive(Debug, Subcommand)]
enum What {
    /// A whole construction: a coordinator and wallets as processes, gRPC over TLS, databases on disk.
    Ceremony(Size),
    /// The arithmetic alone, in one process on one core.
    Signing(Size),
    /// Payments through a coordinator process: latency one at a time, and how many a second.
    Payments {
        /// Clients of the factory.
        #[arg(long, default_value_t = 8, value_parser = clap::value_parser!(u32).range(2..=256))]
        clients: u32,
        /// Payments of each measurement.
        #[arg(long, default_value_t = 300, value_parser = clap::value_parser!(u32).range(10..=100_000))]
        payments: u32,
        /// One JSON object instead of a table.
        #[arg(long)]
        json: bool,
    },
    /// Sales from stocks through a coordinator process: latency one at a time, and how many a second.
    Sales {
        /// Clients of the factory.
        #[arg(long, default_value_t = 200, value_parser = clap::value_parser!(u32).range(2..=1024))]
        clients: u32,
        /// One JSON object instead of a table.
        #[arg(long)]
        json: bool,
    },
    /// Channels just in time, each for a payment from outside to a wallet with nothing: latency one at a time, and how many a second.
    Jit {
        /// Payments of each measurement, each to another wallet.
        #[arg(long, default_value_t = 30, value_parser = clap::value_parser!(u32).range(1..=45))]
        payments: u32,
        /// To wallets of a factory, from their stocks, everybody awake; instead of from the chain, to wallets with nothing.
        #[arg(long)]
        from_stock: bool,
        /// One JSON object instead of a table.
        #[arg(long)]
        json: bool,
    },
    /// Wallets of a `ceremony`, in a process of theirs.
    #[command(hide = true)]
    Worker(worker::Orders),
}

#[derive(Debug, clap::Args)]
struct Size {
    /// Clients of the factory.
    #[arg(long, default_value_t = 128, value_parser = clap::value_parser!(u32).range(2..=4096))]
    clients: u32,
    /// One JSON object instead of a table.
    #[arg(long)]
    json: bool,
}

fn main() -> Result<()> {
    match Arguments::parse().what {
        What::Ceremony(size) => {
            let cost = ceremony::run(size.clients)?;
            if size.json {
                println!("{}", serde_json::to_string(&cost)?);
                return Ok(());
            }
            cost.show()
        }
        What::Signing(size) => {
            let cost = signing::run(size.clients)?;
            if size.json {
                println!("{}", serde_json::to_string(&cost)?);
            } else {
                println!("{} clients, one core, no network, no disk", cost.clients);
                println!("  coordinator  {:8.3} s", cost.coordinator_cpu_s);
                println!("  one client   {:8.3} s", cost.one_client_cpu_s);
            }
            Ok(())
        }
        What::Payments {
            clients,
            payments,
            json,
        } => {
            let cost = payments::run(clients, payments)?;
            if json {
                println!("{}", serde_json::to_string(&cost)?);
            } else {
                cost.show();
            }
            Ok(())
        }
        What::Sales { clients, json } => {
            let cost = sales::run(clients)?;
            if json {
                println!("{}", serde_json::to_string(&cost)?);
            } else {
                cost.show();
            }
            Ok(())
        }
        What::Jit {
            payments,
            from_stock,
            json,
        } => {
            let cost = jit::run(payments, from_stock)?;
            if json {
                println!("{}", serde_json::to_string(&cost)?);
            } else {
                cost.show();
            }
            Ok(())
        }
        What::Worker(orders) => worker::run(&orders),
    }
}
