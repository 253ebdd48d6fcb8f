//! Commands and flags.

use std::net::SocketAddr;
use std::path::PathBuf;

use bitcoin::Network;
use clap::{Args as ClapArgs, Parser, Subcommand};

use crate::config::{ChainOverrides, Expiry, Kdf, Overrides};

/// A SuperScalar coordinator: builds timeout-tree factories with its clients and funds them.
///
/// `init` once, then `run`; every other command talks to the running coordinator.
/// Exit codes: 0 done, 1 failed, 2 usage, 3 not running, 4 refused by policy or limits.
#[derive(Debug, Parser)]
#[command(name = "coordinator", version, arg_required_else_help = true)]
pub struct Args {
    /// Where seed, database and certificate are [default: ~/.superscalar/coordinator].
    #[arg(
        long,
        global = true,
        value_name = "DIR",
        env = "SUPERSCALAR_COORDINATOR_DATA_DIR"
    )]
    pub data_dir: Option<PathBuf>,
    /// The configuration file [default: <data dir>/coordinator.toml].
    #[arg(long, global = true, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// Print one JSON value instead of text.
    #[arg(long, global = true)]
    pub json: bool,
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// Commands.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Create seed, certificate and configuration; prints the seed's 24 words once.
    Init(InitArgs),
    /// Serve clients until SIGTERM or SIGINT.
    Run(RunArgs),
    /// Who the coordinator is, and how it is.
    Info,
    /// The on-chain wallet.
    #[command(subcommand)]
    Wallet(WalletCommand),
    /// Factories and their ceremonies.
    #[command(subcommand)]
    Factory(FactoryCommand),
    /// Clients.
    #[command(subcommand)]
    Client(ClientCommand),
}

/// Flags of `init`.
#[derive(Debug, ClapArgs)]
pub struct InitArgs {
    /// Do not print the seed's words (there is no other backup).
    #[arg(long)]
    pub no_words: bool,
    #[command(flatten)]
    pub config: ConfigArgs,
}

/// Flags of `run`.
#[derive(Debug, ClapArgs)]
pub struct RunArgs {
    /// Append every event as a line of JSON to this file (`-`: standard output).
    #[arg(long, value_name = "FILE")]
    pub events: Option<PathBuf>,
    #[command(flatten)]
    pub config: ConfigArgs,
}

/// Flags that win over the configuration; `init` writes them into it.
#[derive(Debug, ClapArgs)]
pub struct ConfigArgs {
    /// bitcoin, testnet, testnet4, signet or regtest.
    #[arg(long, value_name = "NETWORK")]
    network: Option<Network>,
    /// Where clients connect to.
    #[arg(long, value_name = "IP:PORT")]
    listen: Option<SocketAddr>,
    /// What clients are told to connect to, if not the same.
    #[arg(long, value_name = "HOST:PORT")]
    public_address: Option<String>,
    /// Serve without TLS, on a loopback address only.
    #[arg(long)]
    no_tls: bool,
    /// File (mode 600) with the seed's passphrase.
    #[arg(long, value_name = "FILE")]
    passphrase_file: Option<PathBuf>,
    /// Guard the new seed lightly: for tests, never for bitcoin.
    #[arg(long)]
    light_kdf: bool,
    /// RPC address of the Bitcoin node.
    #[arg(long, value_name = "URL")]
    rpc_url: Option<String>,
    /// The node's cookie file.
    #[arg(long, value_name = "FILE", conflicts_with_all = ["rpc_user", "rpc_password_file"])]
    rpc_cookie: Option<PathBuf>,
    /// RPC user.
    #[arg(long, value_name = "NAME", requires = "rpc_password_file")]
    rpc_user: Option<String>,
    /// File with the RPC password.
    #[arg(long, value_name = "FILE", requires = "rpc_user")]
    rpc_password_file: Option<PathBuf>,
    /// Milliseconds between looks for new blocks.
    #[arg(long, value_name = "MS")]
    poll_ms: Option<u64>,
}

impl ConfigArgs {
    /// As what wins over the file.
    pub fn overrides(&self) -> Overrides {
        Overrides {
            network: self.network,
            listen: self.listen,
            public_address: self.public_address.clone(),
            tls: self.no_tls.then_some(false),
            passphrase_file: self.passphrase_file.clone(),
            kdf: self.light_kdf.then_some(Kdf::Light),
            chain: ChainOverrides {
                rpc_url: self.rpc_url.clone(),
                rpc_cookie: self.rpc_cookie.clone(),
                rpc_user: self.rpc_user.clone(),
                rpc_password_file: self.rpc_password_file.clone(),
                poll_ms: self.poll_ms,
            },
        }
    }
}

/// Wallet commands.
#[derive(Debug, Subcommand)]
pub enum WalletCommand {
    /// A fresh address to send coins to.
    Address,
    /// What the wallet holds.
    Balance,
}

/// Factory commands.
#[derive(Debug, Subcommand)]
pub enum FactoryCommand {
    /// Begin a ceremony with the clients that are interested.
    Create(Box<CreateArgs>),
    /// Factories and ceremonies, newest first.
    List {
        /// Only those that are funded and not spent.
        #[arg(long)]
        live: bool,
    },
    /// One factory, with its clients and parameters.
    Show {
        /// Factory id (64 hex digits) or ceremony id (32).
        id: String,
    },
    /// One factory with all its transactions, as JSON.
    Export {
        /// Factory id (64 hex digits) or ceremony id (32).
        id: String,
    },
    /// Give up a ceremony whose funding was never signed, and free its pinned coins.
    Cancel {
        /// Ceremony id (32 hex digits) or factory id (64).
        id: String,
    },
}

/// Flags of `factory create`.
#[derive(Debug, ClapArgs)]
pub struct CreateArgs {
    /// lite, standard or deep [default: as configured].
    #[arg(long, value_parser = ["lite", "standard", "deep"])]
    pub profile: Option<String>,
    /// Who is favoured at expiry [default: as configured].
    #[arg(long, value_parser = parse_expiry, value_name = "client-refund|lsp-reclaim")]
    pub expiry: Option<Expiry>,
    /// Wait until so many clients are interested, and invite them [default: all that are interested now].
    #[arg(long, value_name = "N")]
    pub clients: Option<u32>,
    /// Give up when fewer clients than this are left [default: as configured].
    #[arg(long, value_name = "N")]
    pub min_clients: Option<u32>,
    /// The same capacity for every client [default: as each asked].
    #[arg(long, value_name = "SAT")]
    pub capacity: Option<u64>,
    /// Clients per liquidity stock.
    #[arg(long)]
    pub k: Option<u8>,
    /// Arities of the static levels from the root down, like 4,4.
    #[arg(long, value_name = "A,B,..")]
    pub static_arities: Option<String>,
    /// Feerate of the funding in sat/vB [default: the node's estimate].
    #[arg(long, value_name = "SAT_PER_VB")]
    pub feerate: Option<f64>,
    /// Set any parameter by its name, like active=144; may be given several times.
    #[arg(long = "set", value_name = "NAME=VALUE")]
    pub set: Vec<String>,
    /// Show progress, and end when the funding is broadcast or the ceremony has failed.
    #[arg(long)]
    pub wait: bool,
}

fn parse_expiry(text: &str) -> Result<Expiry, String> {
    match text.replace('_', "-").as_str() {
        "client-refund" => Ok(Expiry::ClientRefund),
        "lsp-reclaim" => Ok(Expiry::LspReclaim),
        _ => Err("use client-refund or lsp-reclaim".to_owned()),
    }
}

/// Client commands.
#[derive(Debug, Subcommand)]
pub enum ClientCommand {
    /// Clients, with their interest and reputation.
    List {
        /// Only those that are connected.
        #[arg(long)]
        connected: bool,
    },
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_command_line_is_consistent() {
        Args::command().debug_assert();
    }

    #[test]
    fn expiry_policies_are_written_either_way() {
        assert_eq!(parse_expiry("lsp_reclaim"), Ok(Expiry::LspReclaim));
        assert!(parse_expiry("never").is_err());
    }
}
