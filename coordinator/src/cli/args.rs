//! Commands and flags.

use std::net::SocketAddr;
use std::path::PathBuf;

use bitcoin::Network;
use clap::{Args as ClapArgs, Parser, Subcommand};

use crate::config::{ChainOverrides, Expiry, Kdf, Overrides};

/// Where help lists the flags that every command has: after its own.
const GLOBAL: &str = "Global options";

/// A SuperScalar coordinator: builds timeout-tree factories with its clients and funds them.
///
/// `init` once, then `run`; every other command talks to the running coordinator.
/// Exit codes: 0 done, 1 failed, 2 usage, 3 not running, 4 refused by policy or limits, or no such thing.
#[derive(Debug, Parser)]
#[command(name = "coordinator", version, arg_required_else_help = true)]
pub struct Args {
    /// Where seed, database and certificate are [default: ~/.superscalar/coordinator].
    #[arg(
        long,
        global = true,
        help_heading = GLOBAL,
        value_name = "DIR",
        env = "SUPERSCALAR_COORDINATOR_DATA_DIR"
    )]
    pub data_dir: Option<PathBuf>,
    /// The configuration file [default: <data dir>/coordinator.toml].
    #[arg(long, global = true, help_heading = GLOBAL, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// Print one JSON value instead of text.
    #[arg(long, global = true, help_heading = GLOBAL)]
    pub json: bool,
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

impl Args {
    /// How the next command begins, for hints: with the same data directory.
    pub fn program(&self) -> String {
        match &self.data_dir {
            Some(dir) => format!(
                "coordinator --data-dir {}",
                shell_word(&dir.to_string_lossy())
            ),
            None => "coordinator".to_owned(),
        }
    }
}

/// As a shell takes it for one word.
fn shell_word(text: &str) -> String {
    let plain = |c: char| c.is_alphanumeric() || "/._-+:,@%".contains(c);
    if !text.is_empty() && text.chars().all(plain) {
        text.to_owned()
    } else {
        format!("'{}'", text.replace('\'', r"'\''"))
    }
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
    /// The Lightning node: peers, channels, payments.
    #[command(subcommand)]
    Node(NodeCommand),
    /// The ladder: its factories, the next birth, the days to come.
    #[command(subcommand)]
    Ladder(LadderCommand),
    /// What is sold: channels from stocks, and just in time; prices, and what came in.
    #[command(subcommand)]
    Liquidity(LiquidityCommand),
    /// What a ladder of so many clients would take: capital, block space and fees. Needs nothing running.
    Plan(PlanArgs),
}

/// Flags of `init`.
#[derive(Debug, ClapArgs)]
pub struct InitArgs {
    /// bitcoin, testnet, testnet4, signet or regtest; required, unless the configuration names it.
    #[arg(long, value_parser = parse_network)]
    network: Option<Network>,
    /// Restore the seed from its 24 words, read from this file; without one from standard input.
    #[arg(long, value_name = "FILE", num_args = 0..=1, default_missing_value = "-")]
    pub restore: Option<PathBuf>,
    /// With --restore: the height from which on to look for the wallet's coins [default: 0].
    #[arg(long, value_name = "HEIGHT", requires = "restore")]
    scan_from: Option<u32>,
    /// Do not print the seed's words (there is no other backup).
    #[arg(long, conflicts_with = "restore")]
    pub no_words: bool,
    /// Guard the new seed lightly: for tests, never for bitcoin.
    #[arg(long)]
    light_kdf: bool,
    #[command(flatten)]
    config: ConfigArgs,
}

impl InitArgs {
    /// As what wins over the file, and is written into it.
    pub fn overrides(&self) -> Overrides {
        let mut overrides = self.config.overrides();
        overrides.network = self.network;
        overrides.kdf = self.light_kdf.then_some(Kdf::Light);
        overrides.chain.scan_from_height =
            self.restore.is_some().then(|| self.scan_from.unwrap_or(0));
        overrides
    }
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
    /// Where clients connect to.
    #[arg(long, value_name = "IP:PORT")]
    listen: Option<SocketAddr>,
    /// What clients are told to connect to, if not the same.
    #[arg(long, value_name = "HOST:PORT")]
    public_address: Option<String>,
    /// Where Lightning peers connect to.
    #[arg(long, value_name = "IP:PORT")]
    lightning_listen: Option<SocketAddr>,
    /// What Lightning peers are told to connect to, if not the same.
    #[arg(long, value_name = "HOST:PORT")]
    lightning_public_address: Option<String>,
    /// Serve without TLS, on a loopback address only.
    #[arg(long)]
    no_tls: bool,
    /// File (mode 600) with the seed's passphrase.
    #[arg(long, value_name = "FILE")]
    passphrase_file: Option<PathBuf>,
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
        // Absolute: what is written down must mean the same from another directory.
        let absolute = |path: &PathBuf| std::path::absolute(path).unwrap_or_else(|_| path.clone());
        Overrides {
            network: None,
            listen: self.listen,
            public_address: self.public_address.clone(),
            lightning_listen: self.lightning_listen,
            lightning_public_address: self.lightning_public_address.clone(),
            tls: self.no_tls.then_some(false),
            passphrase_file: self.passphrase_file.as_ref().map(absolute),
            kdf: None,
            chain: ChainOverrides {
                rpc_url: self.rpc_url.clone(),
                rpc_cookie: self.rpc_cookie.as_ref().map(absolute),
                rpc_user: self.rpc_user.clone(),
                rpc_password_file: self.rpc_password_file.as_ref().map(absolute),
                poll_ms: self.poll_ms,
                scan_from_height: None,
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

/// Ladder commands.
#[derive(Debug, Subcommand)]
pub enum LadderCommand {
    /// A row for every factory: where it is in its life, who has left it, what it locks.
    Show,
    /// Who would be invited into the next factory now, why, and what it takes.
    Preview,
    /// Births, reaps, capital and fees of the days to come, if everybody comes to its first invitation.
    Forecast {
        /// How many days (spacings of births).
        #[arg(long, value_name = "N", default_value_t = 60, value_parser = clap::value_parser!(u32).range(1..=3650))]
        days: u32,
    },
}

/// Commands for what is sold.
#[derive(Debug, Subcommand)]
pub enum LiquidityCommand {
    /// Channels sold just in time, newest first, with the fees taken and what they cost.
    Jit {
        /// At most so many.
        #[arg(long, value_name = "N", default_value_t = 100)]
        limit: u32,
    },
    /// Channels ordered in advance (LSPS1), newest first, with what was taken and what they cost.
    Orders {
        /// At most so many.
        #[arg(long, value_name = "N", default_value_t = 100)]
        limit: u32,
    },
    /// What every stock has left, and what keeps it from being sold from.
    Stock,
    /// Channels sold from stocks, newest first, with the fees taken.
    Sales {
        /// At most so many.
        #[arg(long, value_name = "N", default_value_t = 100)]
        limit: u32,
    },
    /// What channels cost: from stocks, ordered in advance (LSPS1), and just in time (LSPS2).
    #[command(subcommand)]
    Prices(PricesCommand),
    /// What was earned and spent, day by day (UTC).
    ///
    /// Earned: fees of channels from stocks, just in time and ordered in advance, and of payments that went through the coordinator (routing). Spent:
    /// the fundings of channels that were sold, on the day they were opened.
    ///
    /// In no day: what births cost, publishing sold leaves and chains, exits, closing channels, fees of the coordinator's own payments, and fees of
    /// balances that move from one factory to the next.
    Revenue {
        /// The last so many days.
        #[arg(long, value_name = "N", default_value_t = 30, value_parser = clap::value_parser!(u32).range(1..=3650))]
        days: u32,
        /// As comma-separated values.
        #[arg(long, conflicts_with = "json")]
        csv: bool,
    },
}

/// Commands for prices of channels. They hold at once, for new quotes; what was promised holds.
#[derive(Debug, Subcommand)]
pub enum PricesCommand {
    /// What is configured, what was set, and what that comes to.
    Show,
    /// Set prices of channels from stocks, ordered in advance (LSPS1) and just in time (LSPS2); what is not given stays as it is.
    ///
    /// Those that begin with jit are for channels just in time; the others for channels from stocks and for those ordered in advance.
    Set {
        /// For this client alone: its id, or 8 digits or more that it alone begins with [default: for all].
        #[arg(long, value_name = "ID")]
        client: Option<String>,
        /// Fixed price, in satoshi.
        #[arg(long, value_name = "SAT")]
        base_fee_sat: Option<u64>,
        /// Price in parts per million of the capacity.
        #[arg(long, value_name = "PPM")]
        fee_ppm: Option<u32>,
        /// The same for each day until the factory's dying days, or that an ordered channel is kept open.
        #[arg(long, value_name = "PPM")]
        fee_ppm_per_day: Option<u32>,
        /// From stocks alone: price in parts per million of what the sale would cost on the chain, as feerates are.
        #[arg(long, value_name = "PPM")]
        onchain_ppm: Option<u32>,
        /// Least price, in satoshi.
        #[arg(long, value_name = "SAT")]
        min_fee_sat: Option<u64>,
        /// Highest price, in satoshi, never less than the least; 0 for none. An ordered channel's funding comes on top.
        #[arg(long, value_name = "SAT")]
        max_fee_sat: Option<u64>,
        /// Not a price: what a client gets for signing with others who buy, a channel that holds so much; 0 for none.
        #[arg(long, value_name = "SAT")]
        bonus_sat: Option<u64>,
        /// Just in time: least fee, in thousandths of a satoshi; never less than what the funding costs.
        #[arg(long, value_name = "MSAT")]
        jit_min_fee_msat: Option<u64>,
        /// Just in time: fee in parts per million of the payment.
        #[arg(long, value_name = "PPM")]
        jit_fee_ppm: Option<u32>,
    },
    /// Take back all that was set, for channels from stocks, ordered in advance and just in time.
    Unset {
        /// For this client: its id, or 8 digits or more that it alone begins with [default: for all].
        #[arg(long, value_name = "ID")]
        client: Option<String>,
    },
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
        /// Factory or ceremony id, or an unambiguous beginning of it.
        id: String,
    },
    /// One factory with all its transactions, as JSON.
    Export {
        /// Factory or ceremony id, or an unambiguous beginning of it.
        id: String,
    },
    /// Give up a ceremony whose funding was never signed, and free its pinned coins.
    Cancel {
        /// Ceremony or factory id, or an unambiguous beginning of it.
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
    #[arg(long, value_name = "A,B,..", value_parser = parse_arities)]
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

/// Names of networks, for messages.
pub const NETWORKS: &str = "bitcoin, testnet, testnet4, signet or regtest";

fn parse_network(text: &str) -> Result<Network, String> {
    text.parse().map_err(|_| format!("use {NETWORKS}"))
}

fn parse_arities(text: &str) -> Result<String, String> {
    let is_number = |part: &str| part.trim().parse::<u8>().is_ok();
    if text.split(',').all(is_number) {
        Ok(text.to_owned())
    } else {
        Err("write it like 4,4".to_owned())
    }
}

fn parse_expiry(text: &str) -> Result<Expiry, String> {
    match text.replace('_', "-").as_str() {
        "client-refund" => Ok(Expiry::ClientRefund),
        "lsp-reclaim" => Ok(Expiry::LspReclaim),
        _ => Err("use client-refund or lsp-reclaim".to_owned()),
    }
}

/// Flags of `plan`.
#[derive(Debug, ClapArgs)]
pub struct PlanArgs {
    /// Clients in all.
    #[arg(long, value_name = "N", default_value_t = 1000)]
    pub clients: u32,
    /// Each one's account limit, in satoshi.
    #[arg(long, value_name = "SAT", default_value_t = 200_000)]
    pub capacity: u64,
    /// Share of clients that come to none of their invitations, like 0.05 or 5%.
    #[arg(long, value_name = "SHARE", default_value = "0.05")]
    pub no_show: String,
    /// The clients' own share of their channels' capacity.
    #[arg(long, value_name = "SHARE", default_value = "0.3")]
    pub balance: String,
    /// Feerate in sat/vB.
    #[arg(long, value_name = "SAT_PER_VB", default_value_t = 10)]
    pub feerate: u64,
    /// How it changes: 10,50@20,10@40 is 50 from day 20 to day 39; walk:5-80 a random path that begins at --feerate.
    #[arg(long, value_name = "PATH")]
    pub feerate_path: Option<String>,
    /// lite, standard or deep.
    #[arg(long, default_value = "lite", value_parser = ["lite", "standard", "deep"])]
    pub profile: String,
    /// Who is favoured at expiry.
    #[arg(long, value_parser = parse_expiry, value_name = "client-refund|lsp-reclaim", default_value = "client-refund")]
    pub expiry: Expiry,
    /// How many days; the ladder is full after about 40.
    #[arg(long, value_name = "N", default_value_t = 90)]
    pub days: u32,
    /// The most clients of one factory.
    #[arg(long, value_name = "N", default_value_t = 64)]
    pub factory_clients: u32,
    /// Fewer clients wait for the next birth, as long as they can.
    #[arg(long, value_name = "N", default_value_t = 8)]
    pub min_clients: u32,
    /// Stock at birth, per its clients' capacities, like 0.5 or 50%.
    #[arg(long, value_name = "SHARE", default_value = "0.5")]
    pub stock: String,
    /// What capital costs in a year, like 0.05 or 5%.
    #[arg(long, value_name = "SHARE", default_value = "0.05")]
    pub interest: String,
    /// Another number, other clients that stay away.
    #[arg(long, value_name = "N", default_value_t = 1)]
    pub seed: u64,
    /// Write a picture of it.
    #[arg(long, value_name = "FILE")]
    pub svg: Option<PathBuf>,
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

/// Commands of the Lightning node.
#[derive(Debug, Subcommand)]
pub enum NodeCommand {
    /// Its id and address, and what it could send and receive.
    Info,
    /// Connect to a peer, and stay connected.
    Connect {
        /// Node id and address.
        #[arg(value_name = "ID@HOST:PORT")]
        peer: String,
    },
    /// End a connection, and forget the peer's address.
    Disconnect {
        /// Node id.
        id: String,
    },
    /// Who is connected.
    Peers,
    /// All channels, those on leaves too.
    Channels,
    /// Open an ordinary channel, paid from the on-chain wallet.
    OpenChannel {
        /// The peer's node id; it must be connected.
        id: String,
        /// What the channel is to hold, in satoshi.
        #[arg(long, value_name = "SAT")]
        capacity: u64,
        /// Let the world know it.
        #[arg(long)]
        announce: bool,
    },
    /// Close a channel, together with its peer; one on a leaf that is not on the chain only with --force.
    CloseChannel {
        /// Its id, as `node channels` shows it.
        channel: String,
        /// Alone: our money waits some days for it. A channel on a leaf goes to the chain with its path.
        #[arg(long)]
        force: bool,
    },
    /// Pay a BOLT 11 invoice, and wait for the end of that.
    Pay {
        /// The invoice.
        invoice: String,
        /// How much, in satoshi, if the invoice leaves it open.
        #[arg(long, value_name = "SAT")]
        amount: Option<u64>,
        /// How long to wait, in seconds; the payment goes on.
        #[arg(long, value_name = "SECONDS", default_value_t = 60)]
        timeout: u32,
    },
    /// Make a BOLT 11 invoice.
    Invoice {
        /// How much, in satoshi [default: as the payer likes].
        #[arg(value_name = "AMOUNT_SAT")]
        amount: Option<u64>,
        /// The same in thousandths of a satoshi.
        #[arg(long, value_name = "MSAT", conflicts_with = "amount")]
        msat: Option<u64>,
        /// What for.
        #[arg(long, default_value = "")]
        description: String,
        /// How long it can be paid, in seconds.
        #[arg(long, value_name = "SECONDS", default_value_t = 3600)]
        expiry: u32,
    },
    /// Payments to and from the node, newest first; not those through it.
    Payments {
        /// At most so many.
        #[arg(long, value_name = "N", default_value_t = 100)]
        limit: u32,
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

    fn init(words: &[&str]) -> Result<Overrides, String> {
        let words = ["coordinator", "init"].iter().chain(words);
        let args = Args::try_parse_from(words).map_err(|error| error.to_string())?;
        match args.command {
            Command::Init(init) => Ok(init.overrides()),
            _ => Err("not init".to_owned()),
        }
    }

    #[test]
    fn paths_are_written_down_absolute() {
        let chosen = init(&["--passphrase-file", "pass", "--rpc-cookie", "a/.cookie"]).unwrap();
        let here = std::env::current_dir().unwrap();
        assert_eq!(chosen.passphrase_file, Some(here.join("pass")));
        assert_eq!(chosen.chain.rpc_cookie, Some(here.join("a/.cookie")));
    }

    #[test]
    fn a_restored_wallet_looks_from_the_beginning() {
        let from = |words: &[&str]| init(words).unwrap().chain.scan_from_height;
        assert_eq!(from(&[]), None);
        assert_eq!(from(&["--restore"]), Some(0));
        assert_eq!(from(&["--restore", "words", "--scan-from", "7"]), Some(7));
        assert!(init(&["--scan-from", "7"]).is_err());
    }

    #[test]
    fn wrong_values_are_told_what_there_is() {
        assert!(
            init(&["--network", "foo"])
                .unwrap_err()
                .contains("testnet4")
        );
        let words = ["coordinator", "factory", "create", "--static-arities", "x"];
        let error = Args::try_parse_from(words).unwrap_err().to_string();
        assert!(error.contains("write it like 4,4"), "{error}");
    }

    #[test]
    fn run_has_no_flags_of_init() {
        let help = |name: &str| {
            let mut all = Args::command();
            all.build();
            let found = all.find_subcommand_mut(name).unwrap();
            found.render_long_help().to_string()
        };
        assert!(help("init").contains("--light-kdf"));
        assert!(!help("run").contains("--light-kdf") && !help("run").contains("--network"));
        // The flags of every command come after its own.
        let run = help("run");
        assert!(
            run.find("--events") < run.find(GLOBAL) && run.find(GLOBAL) < run.find("--data-dir")
        );
    }

    #[test]
    fn hints_repeat_the_data_directory() {
        let program = |words: &[&str]| Args::try_parse_from(words).unwrap().program();
        let given = ["coordinator", "--data-dir", "my lsp", "info"];
        assert_eq!(program(&given), "coordinator --data-dir 'my lsp'");
    }

    #[test]
    fn expiry_policies_are_written_either_way() {
        assert_eq!(parse_expiry("lsp_reclaim"), Ok(Expiry::LspReclaim));
        assert!(parse_expiry("never").is_err());
    }
}
