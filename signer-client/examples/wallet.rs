//! What a wallet app does with the library, from the first start to the exit: open, join, wait for the channel, be paid, pay, leave.
//!
//! ```text
//! wallet DIR COORDINATOR RPC_URL RPC_COOKIE [--pay INVOICE] [--invoice SAT] [--leave]
//! ```
//!
//! One line of text per step on standard output; ends when all that was asked for is done. The seed is made in DIR at the first start.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use bitcoin::{Amount, Network};
use chain::{BitcoindRpc, ChainSource};
use clap::Parser;
use factory_tree::ids::FactoryId;
use keystore::{KdfCost, Passphrase, Seed};
use signer_client::keys::ClientKeys;
use signer_client::store::{PaymentState, SqliteStore};
use signer_client::{
    ClientParts, Config, Event, InvoiceOptions, Msat, PaymentHash, Shutdown, SignerClient, Tasks,
};

type Result<T, E = Box<dyn std::error::Error + Send + Sync>> = std::result::Result<T, E>;

/// How long anything may take.
const PATIENCE: Duration = Duration::from_secs(600);

/// A small wallet on regtest.
#[derive(Parser)]
struct Args {
    /// Where the wallet lives.
    dir: PathBuf,
    /// The coordinator's connection string.
    coordinator: String,
    /// The Bitcoin node's RPC server.
    rpc_url: String,
    /// Its cookie file.
    rpc_cookie: PathBuf,
    /// Make an invoice over this much, and wait until it is paid.
    #[arg(long, value_name = "SAT")]
    invoice: Option<u64>,
    /// Pay this invoice.
    #[arg(long, value_name = "INVOICE")]
    pay: Option<String>,
    /// Leave the factory at the end, by oneself.
    #[arg(long)]
    leave: bool,
}

#[tokio::main]
async fn main() -> Result<()> {
    let args = Args::parse();
    let client = open(&args).await?;

    // The library runs beside the app, until the app says stop.
    let (stop, shutdown) = Shutdown::new();
    let running = tokio::spawn({
        let client = client.clone();
        async move { client.run(Tasks::ALL, shutdown).await }
    });
    let used = tokio::time::timeout(PATIENCE, use_it(&client, &args)).await;
    stop.send(true)?;
    running.await??;
    used?
}

/// A wallet is a configuration, keys, a store, a view of the chain, and a file for its channels.
async fn open(args: &Args) -> Result<SignerClient> {
    std::fs::create_dir_all(&args.dir)?;
    let mut config = Config::new(Network::Regtest);
    config.coordinator = Some(args.coordinator.clone());
    config.chain.rpc_url.clone_from(&args.rpc_url);
    config.chain.rpc_cookie = Some(args.rpc_cookie.clone());
    config.chain.poll_ms = 50;
    let chain: Arc<dyn ChainSource> = Arc::new(BitcoindRpc::new(config.bitcoind()?)?);
    let keys = keys(&args.dir)?;
    let store = SqliteStore::open(args.dir.join("client.sqlite")).await?;
    Ok(SignerClient::open(ClientParts {
        config,
        keys: Arc::new(keys),
        store: Arc::new(store),
        chain,
        channels: args.dir.join("channels.sqlite"),
    })
    .await?)
}

/// An app would ask for the passphrase, and show the words once.
fn keys(dir: &Path) -> Result<ClientKeys> {
    let passphrase = Passphrase::new("an example".to_owned())?;
    let file = dir.join("seed.json");
    let seed = if file.exists() {
        Seed::open(&file, &passphrase)?
    } else {
        Seed::create(&file, &passphrase, KdfCost::Light)?.0
    };
    Ok(ClientKeys::new(&seed, Network::Regtest)?)
}

async fn use_it(client: &SignerClient, args: &Args) -> Result<()> {
    println!("wallet {}", client.node_id());
    let factory = match usable(client).await? {
        Some(factory) => factory,
        None => join(client).await?,
    };
    println!("usable {factory}");
    if let Some(sat) = args.invoice {
        receive(client, sat).await?;
    }
    if let Some(invoice) = &args.pay {
        pay(client, invoice).await?;
    }
    let balance = client.lightning_balance().await?;
    println!("balance {} msat", balance.lightning_msat);
    if args.leave {
        leave(client, factory).await?;
    }
    Ok(())
}

/// The factory whose channel can be used now.
async fn usable(client: &SignerClient) -> Result<Option<FactoryId>> {
    let channels = client.channels().await?;
    let mut usable = channels.iter().filter(|channel| channel.usable);
    Ok(usable.find_map(|channel| channel.factory))
}

/// Asks for a place, and waits until the factory is confirmed and its channel usable.
async fn join(client: &SignerClient) -> Result<FactoryId> {
    // Events first, so that none is missed; the capacity is the coordinator's default.
    let mut events = client.events();
    client.join(Amount::ZERO).await?;
    println!("joining");
    loop {
        match events.recv().await?.event {
            Event::ChannelOpened { factory } => println!("channel {factory}"),
            Event::Refused { rule, found } => return Err(format!("{rule}: {found}").into()),
            Event::ServerError { message, .. } => println!("coordinator: {message}"),
            _ => {}
        }
        if let Some(factory) = usable(client).await? {
            return Ok(factory);
        }
    }
}

async fn receive(client: &SignerClient, sat: u64) -> Result<()> {
    let mut events = client.events();
    let options = InvoiceOptions {
        amount: Some(Msat(sat * 1000)),
        description: "an example".to_owned(),
        ..InvoiceOptions::default()
    };
    let invoice = client.invoice(&options).await?;
    println!("invoice {}", invoice.invoice);
    loop {
        if let Event::PaymentReceived {
            hash, amount_msat, ..
        } = events.recv().await?.event
            && hash == invoice.hash
        {
            println!("received {amount_msat} msat");
            return Ok(());
        }
    }
}

async fn pay(client: &SignerClient, invoice: &str) -> Result<()> {
    let begun = client.pay(invoice, None).await?;
    let hash: PaymentHash = begun.hash()?;
    let ended = client.payment_ended(hash, PATIENCE).await?;
    match ended.state {
        PaymentState::Succeeded => println!("paid {} msat", ended.amount_msat),
        PaymentState::Pending => println!("still under way"),
        PaymentState::Failed => return Err(ended.failure.unwrap_or_default().into()),
    }
    Ok(())
}

/// Needs nobody's help, and a few confirmed coins for fees.
async fn leave(client: &SignerClient, factory: FactoryId) -> Result<()> {
    let mut events = client.events();
    client.request_exit(factory, None, None).await?;
    loop {
        match events.recv().await?.event {
            Event::ExitWaiting { what, .. } => println!("leaving: {what}"),
            Event::ExitDone { factory: left } if left == factory => {
                println!("left {factory}");
                return Ok(());
            }
            _ => {}
        }
    }
}
