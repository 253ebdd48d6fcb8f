//! Arguments, with their help.

use std::path::PathBuf;

use bitcoin::Network;
use clap::{Parser, Subcommand};
use factory_tree::ids::SaleId;

const AFTER_HELP: &str = "\
Exit codes: 0 done, 1 failed, 2 wrong usage, 3 node or coordinator not reachable, 4 refused, or no such thing.

A first session:
  signer-client init --coordinator 'superscalar://..' --network regtest \\
      --rpc-url http://127.0.0.1:18443 --rpc-cookie ~/.bitcoin/regtest/.cookie
  signer-client run &       stays connected, watches the chain, publishes timeouts in time
  signer-client join        asks to be in the next factory
  signer-client status      what is in flight";

/// A SuperScalar wallet: takes part in factories, keeps the way out of them, and goes it when asked.
#[derive(Debug, Parser)]
#[command(name = "signer-client", version, after_help = AFTER_HELP)]
pub(super) struct Args {
    /// Where the wallet lives: client.toml, seed.json, client.sqlite.
    #[arg(
        long,
        global = true,
        env = "SUPERSCALAR_CLIENT_DIR",
        value_name = "DIR"
    )]
    pub(super) data_dir: Option<PathBuf>,
    /// File (mode 600) with the passphrase of the seed as its only line.
    #[arg(long, global = true, value_name = "FILE")]
    pub(super) passphrase_file: Option<PathBuf>,
    /// Print one JSON object instead of text.
    #[arg(long, global = true)]
    pub(super) json: bool,
    #[command(subcommand)]
    pub(super) command: Command,
}

#[derive(Debug, Subcommand)]
pub(super) enum Command {
    /// Create a wallet: a seed, a database and client.toml.
    Init(Init),
    /// Run: stay connected, take part when joined, watch the chain, drive exits, publish timeouts.
    Run(Run),
    /// Ask to be in the next factory. Without a running `run`, do it all here and wait for it.
    Join(Join),
    /// Show what is in flight: connection, ceremony, factories, exits, next deadlines.
    Status,
    /// List the factories this wallet has a way out of.
    Factories,
    /// Leave a factory by oneself: publish the path, level by level, paid from this wallet's coins.
    Exit(Exit),
    /// Show what leaving would cost, how long it would take, and what staying away pays.
    QuoteExit(QuoteExit),
    /// Print a factory, as far as this wallet knows it, as JSON for other tools.
    Export {
        /// The factory's id, or an unambiguous beginning of it.
        factory: String,
    },
    /// Make an invoice, to be paid over the channels of this wallet, or over one that is opened for it.
    Invoice(Invoice),
    /// Pay an invoice, and wait for the end.
    Pay(Pay),
    /// Pay a node that has given no invoice, and wait for the end.
    Keysend(Keysend),
    /// List this wallet's channels: those on its leaves, and those outside of factories.
    Channels,
    /// Close a channel outside of factories, together with the coordinator; what is this wallet's comes into the on-chain wallet.
    Close(Close),
    /// List payments, newest first.
    Payments {
        /// At most so many.
        #[arg(long, default_value_t = 20, value_name = "N")]
        limit: u32,
    },
    /// Show what can be received, and buy more of it from the coordinator.
    #[command(subcommand)]
    Limit(Limit),
    /// Have this wallet woken while it is away: the coordinator posts to an https URL (LSPS5).
    #[command(subcommand)]
    Webhook(Webhook),
    /// Print a fresh address of the on-chain wallet, for fee coins.
    Address,
    /// Show what this wallet has, to the satoshi.
    Balance,
    /// Move all confirmed payouts into the on-chain wallet.
    Sweep {
        /// In sat/vB; left out: by the node's estimate.
        #[arg(long, value_name = "SAT_PER_VB", value_parser = clap::value_parser!(u64).range(1..=10_000))]
        feerate: Option<u64>,
    },
}

#[derive(Debug, clap::Subcommand)]
pub(super) enum Webhook {
    /// Set one, or move the one of this name; needs a factory that this wallet is in. A first notification is sent to it: look there whether it came.
    Set {
        /// A name for it, of at most 64 bytes.
        name: String,
        /// Where it is: https, of at most 1024 bytes.
        url: String,
    },
    /// List the names of those that are set.
    List,
    /// Remove one.
    Remove {
        /// Its name.
        name: String,
    },
}

#[derive(Debug, clap::Subcommand)]
pub(super) enum Limit {
    /// Show what can be received, over which channels, what of it is covered, what is left to be bought, and whether the wallet buys by itself.
    Show,
    /// Ask what a channel to receive over would cost. Nothing is bought.
    Quote(LimitAmount),
    /// Buy such a channel, paid over Lightning, and wait for it.
    Upgrade(Upgrade),
    /// List purchases, oldest first, and orders from a stock or else from the chain.
    Purchases,
    /// Take a purchase from a stock back, while that is possible. Orders of channels (--or-onchain, --next-factory) expire by themselves.
    Cancel {
        /// Its id; `limit purchases` lists them. An id with dashes is that of an order of a channel: it is not cancelled, and what was paid comes back
        /// when nothing comes of it.
        #[arg(value_parser = purchase)]
        sale: SaleId,
    },
}

fn purchase(text: &str) -> Result<SaleId, String> {
    text.parse::<SaleId>().map_err(|error| {
        if text.contains('-') {
            "orders of channels are not cancelled: they expire by themselves, and what was paid comes back when nothing comes of them".to_owned()
        } else {
            error.to_string()
        }
    })
}

#[derive(Debug, clap::Args)]
pub(super) struct LimitAmount {
    /// How much more to receive, in satoshi.
    #[arg(value_name = "SAT", value_parser = clap::value_parser!(u64).range(1..=MOST_SAT))]
    pub(super) amount: u64,
    /// In this factory: its id, or an unambiguous beginning of it; left out: the coordinator chooses.
    #[arg(long, value_name = "ID")]
    pub(super) factory: Option<String>,
}

#[derive(Debug, clap::Args)]
pub(super) struct Upgrade {
    #[command(flatten)]
    pub(super) wanted: LimitAmount,
    /// The most that it may cost.
    #[arg(long, value_name = "SAT", value_parser = clap::value_parser!(u64).range(1..=MOST_SAT))]
    pub(super) max_fee: Option<u64>,
    /// Have an ordinary channel, from the chain and for the same price, if those who share the stock do not come to sign; without this the payment comes
    /// back then. The price is that of such a channel.
    #[arg(long, conflicts_with = "factory")]
    pub(super) or_onchain: bool,
    /// Have it with the next factory, which is cheaper: the payment is held for the day or two until that is born, and comes back if this wallet is not there then.
    #[arg(long, conflicts_with_all = ["factory", "or_onchain", "accept_uncovered"])]
    pub(super) next_factory: bool,
    /// Accept to hold more than is covered if the coordinator breaks off.
    #[arg(long)]
    pub(super) accept_uncovered: bool,
    /// Do not ask.
    #[arg(long, short)]
    pub(super) yes: bool,
    /// Do not wait; `limit purchases` shows the end.
    #[arg(long)]
    pub(super) no_wait: bool,
}

#[derive(Debug, clap::Args)]
pub(super) struct Init {
    /// The coordinator's connection string.
    #[arg(long, value_name = "superscalar://..")]
    pub(super) coordinator: Option<String>,
    /// bitcoin, testnet, testnet4, signet or regtest.
    #[arg(long)]
    pub(super) network: Network,
    /// Address of the Bitcoin node's RPC server.
    #[arg(long, value_name = "URL")]
    pub(super) rpc_url: String,
    /// The node's cookie file.
    #[arg(
        long,
        value_name = "FILE",
        conflicts_with = "rpc_user",
        required_unless_present = "rpc_user"
    )]
    pub(super) rpc_cookie: Option<PathBuf>,
    /// RPC user, instead of a cookie.
    #[arg(long, value_name = "NAME", requires = "rpc_password_file")]
    pub(super) rpc_user: Option<String>,
    /// File with that user's password as its only line.
    #[arg(long, value_name = "FILE", requires = "rpc_user")]
    pub(super) rpc_password_file: Option<PathBuf>,
    /// Restore the seed from its 24 words, read from standard input. Kits are not in the words.
    #[arg(long)]
    pub(super) restore: bool,
    /// Do not print the words (they cannot be shown again).
    #[arg(long)]
    pub(super) no_words: bool,
    /// Accept a coordinator without TLS, on loopback.
    #[arg(long)]
    pub(super) allow_plain: bool,
    /// Make guessing the passphrase of a stolen seed file hard also on regtest, where it is quick by default.
    #[arg(long)]
    pub(super) slow_kdf: bool,
}

#[derive(Debug, clap::Args)]
pub(super) struct Run {
    /// Append every event as a line of JSON to this file; `-`: standard output.
    #[arg(long, value_name = "FILE")]
    pub(super) events: Option<PathBuf>,
}

#[derive(Debug, clap::Args)]
pub(super) struct Join {
    /// Capacity of the channel in satoshi; left out: the coordinator's default.
    #[arg(long, value_name = "SAT", value_parser = clap::value_parser!(u64).range(1..=2_100_000_000_000_000))]
    pub(super) capacity: Option<u64>,
    /// Wait until the factory is usable, also when `run` does the work.
    #[arg(long)]
    pub(super) wait: bool,
    /// Take the wish back.
    #[arg(long, conflicts_with_all = ["capacity", "wait"])]
    pub(super) cancel: bool,
}

#[derive(Debug, clap::Args)]
pub(super) struct Exit {
    /// The factory's id, or an unambiguous beginning of it.
    pub(super) factory: String,
    /// Start at this feerate, in sat/vB; left out: by the node's estimate.
    #[arg(long, value_name = "SAT_PER_VB", value_parser = clap::value_parser!(u64).range(1..=10_000))]
    pub(super) feerate: Option<u64>,
    /// The most that all fees together may come to.
    #[arg(long, value_name = "SAT", value_parser = clap::value_parser!(u64).range(1..=2_100_000_000_000_000))]
    pub(super) max_fee: Option<u64>,
    /// Do not ask.
    #[arg(long, short)]
    pub(super) yes: bool,
    /// Only record the wish; `run` does it.
    #[arg(long)]
    pub(super) background: bool,
    /// Wait until the last satoshi is paid, not only until the leaf is confirmed.
    #[arg(long, conflicts_with = "background")]
    pub(super) to_the_end: bool,
}

/// No amount of bitcoin is larger.
const MOST_SAT: u64 = 2_100_000_000_000_000;

#[derive(Debug, clap::Args)]
pub(super) struct Invoice {
    /// How much, in satoshi; left out: the payer says it.
    #[arg(value_name = "AMOUNT_SAT", value_parser = clap::value_parser!(u64).range(1..=MOST_SAT))]
    pub(super) amount: Option<u64>,
    /// How much, in thousandths of a satoshi.
    #[arg(long, value_name = "N", conflicts_with = "amount", value_parser = clap::value_parser!(u64).range(1..=MOST_SAT * 1000))]
    pub(super) msat: Option<u64>,
    /// What it is for.
    #[arg(long, value_name = "TEXT", default_value = "")]
    pub(super) description: String,
    /// Seconds in which it can be paid.
    #[arg(long, value_name = "SECONDS", default_value_t = 3600, value_parser = clap::value_parser!(u64).range(1..=31_536_000))]
    pub(super) expiry: u64,
    /// Have the coordinator open a channel for this payment (LSPS2): the wallet needs neither a channel nor a coin. Its fee is shown first, and kept of
    /// the payment.
    #[arg(long)]
    pub(super) jit: bool,
    /// The most that channel may cost, in satoshi; left out: jit.max_fee_sat of client.toml.
    #[arg(long, value_name = "SAT", requires = "jit", value_parser = clap::value_parser!(u64).range(0..=MOST_SAT))]
    pub(super) max_fee: Option<u64>,
    /// Take that channel from a factory's stock even if more could be held then than is covered should the coordinator break off; see `limit show`.
    /// Without this it comes from the chain then.
    #[arg(long, requires = "jit")]
    pub(super) accept_uncovered: bool,
    /// Do not ask.
    #[arg(long, short, requires = "jit")]
    pub(super) yes: bool,
}

#[derive(Debug, clap::Args)]
pub(super) struct Close {
    /// The channel's id, or an unambiguous beginning of it; `channels` lists them.
    pub(super) channel: String,
    /// Alone, for when the coordinator is away: a confirmed coin of this wallet pays for it.
    #[arg(long)]
    pub(super) force: bool,
    /// Do not ask.
    #[arg(long, short)]
    pub(super) yes: bool,
}

#[derive(Debug, clap::Args)]
pub(super) struct Pay {
    /// The invoice (BOLT 11).
    pub(super) invoice: String,
    /// How much, in satoshi, if the invoice leaves it open.
    #[arg(long, value_name = "SAT", value_parser = clap::value_parser!(u64).range(1..=MOST_SAT))]
    pub(super) amount: Option<u64>,
    #[command(flatten)]
    pub(super) wait: Wait,
}

#[derive(Debug, clap::Args)]
pub(super) struct Keysend {
    /// The node's id: the coordinator's, or one that the network knows.
    #[arg(value_name = "NODE_ID")]
    pub(super) to: bitcoin::secp256k1::PublicKey,
    /// How much, in satoshi.
    #[arg(value_name = "AMOUNT_SAT", value_parser = clap::value_parser!(u64).range(1..=MOST_SAT))]
    pub(super) amount: u64,
    #[command(flatten)]
    pub(super) wait: Wait,
}

#[derive(Clone, Copy, Debug, clap::Args)]
pub(super) struct Wait {
    /// Seconds to wait for the end; it goes on after that.
    #[arg(long, value_name = "SECONDS", default_value_t = 60)]
    pub(super) timeout: u64,
    /// Do not wait; `payments` shows the end.
    #[arg(long, conflicts_with = "timeout")]
    pub(super) background: bool,
}

#[derive(Debug, clap::Args)]
pub(super) struct QuoteExit {
    /// The factory's id, or an unambiguous beginning of it.
    pub(super) factory: String,
    /// At these feerates, in sat/vB; left out: 1, 10 and 50.
    #[arg(long, value_name = "SAT_PER_VB", num_args = 1.., value_parser = clap::value_parser!(u64).range(1..=10_000))]
    pub(super) feerate: Vec<u64>,
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_arguments_hold_together() {
        Args::command().debug_assert();
    }

    #[test]
    fn flags_may_follow_the_command() {
        let args = Args::try_parse_from(["signer-client", "balance", "--json"]).unwrap();
        assert!(args.json);
        let args = Args::try_parse_from(["signer-client", "--data-dir", "/x", "exit", "ab", "-y"]);
        assert!(matches!(args.unwrap().command, Command::Exit(exit) if exit.yes));
        assert!(Args::try_parse_from(["signer-client", "exit", "ab", "--feerate", "0"]).is_err());
        let args = Args::try_parse_from(["signer-client", "limit", "upgrade", "5", "-y"]);
        assert!(
            matches!(args.unwrap().command, Command::Limit(Limit::Upgrade(upgrade)) if upgrade.yes)
        );
        assert!(Args::try_parse_from(["signer-client", "limit", "cancel", "07"]).is_err());
        let order = "01234567-89ab-4cde-8f01-23456789abcd";
        let refused = Args::try_parse_from(["signer-client", "limit", "cancel", order]);
        let refused = refused.unwrap_err().to_string();
        assert!(refused.contains("expire by themselves"), "{refused}");
        for bad in [
            ["invoice", "5", "--msat", "5000"],
            ["invoice", "5", "--max-fee", "5"],
        ] {
            let bad = ["signer-client"].into_iter().chain(bad);
            assert!(Args::try_parse_from(bad).is_err());
        }
    }
}
