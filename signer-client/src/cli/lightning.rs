//! Invoices, payments and channels.

use std::time::Duration;

use bitcoin::Network;
use bitcoin::consensus::encode::serialize_hex;
use channel_host::read_invoice;
use serde::Serialize;
use serde_json::{Value, json};

use super::CliError;
use super::args::{Invoice, Keysend, Pay, Wait, Webhook};
use super::context::{Context, Holder};
use super::follow::{self, Progress};
use super::jit;
use super::table::{Table, grouped, short, with_msat as sat};
use crate::error::Error;
use crate::lightning::{ChannelView, Invoice as Invoiced, LightningBalance, stored};
use crate::store::{Direction, Payment, PaymentState, Request, SharedStore};
use crate::webhooks::{WebhookSet, Webhooks};

/// Between two looks at a payment.
const LOOK: Duration = Duration::from_millis(50);

/// Asks the running wallet: without it there is no Lightning.
pub(super) async fn ask(
    context: &Context,
    command: &'static str,
    request: Request,
) -> Result<Value, CliError> {
    context.config()?;
    match context.holder(command).await? {
        Holder::Other(_) => context.ask(&context.store().await?, request).await,
        Holder::Us(_lock) => {
            Err(Error::NoLightning(format!("start `{}`", context.again("run"))).into())
        }
    }
}

pub(super) async fn invoice(context: &Context, options: Invoice) -> Result<(), CliError> {
    let amount_msat = options.msat.or(options.amount.map(msat));
    if options.jit {
        return jit::invoice(context, options, amount_msat).await;
    }
    let request = Request::Invoice {
        amount_msat,
        description: options.description,
        expiry: options.expiry,
    };
    let invoice = jit::parsed(ask(context, "invoice", request).await?)?;
    let channels = ask(context, "invoice", Request::Channels).await?;
    let channels: Vec<ChannelView> = jit::parsed(channels)?;
    let made = Made {
        invoice,
        receivable_msat: LightningBalance::of(&channels).lightning_receivable_msat,
    };
    // While the coordinator is away nothing is known of the room.
    let known = channels.iter().all(|view| view.usable || view.is_over());
    if let Some(warning) = made.warning().filter(|_| known && !context.json) {
        eprintln!("{warning}");
    }
    context.print(&made, &made.invoice.invoice)
}

/// An invoice, and what could be paid of it.
#[derive(Debug, Serialize)]
struct Made {
    #[serde(flatten)]
    invoice: Invoiced,
    /// What can be received now.
    receivable_msat: u64,
}

impl Made {
    /// Room may come until it is paid, but not by itself.
    fn warning(&self) -> Option<String> {
        let most = self.receivable_msat;
        let asked = self.invoice.amount_msat.filter(|asked| *asked > most)?;
        Some(format!(
            "WARNING: {} sat can be received now, and this invoice asks for {} sat: it cannot be paid before there is room. `limit upgrade` buys room, and `invoice --jit` has a channel opened for the payment.",
            sat(most),
            sat(asked)
        ))
    }
}

pub(super) async fn pay(context: &Context, options: Pay) -> Result<(), CliError> {
    readable(&options.invoice, context.config()?.network)?;
    let request = Request::Pay {
        invoice: options.invoice,
        amount_msat: options.amount.map(msat),
    };
    let begun = ask(context, "pay", request).await?;
    wait(context, begun, options.wait).await
}

/// What is no invoice of this network is refused whether or not the wallet runs.
fn readable(invoice: &str, network: Network) -> Result<(), CliError> {
    read_invoice(invoice, network).map(drop).map_err(|error| {
        CliError::Usage(format!(
            "{error}; give a whole BOLT 11 invoice of this wallet's network, as its payee shows it"
        ))
    })
}

pub(super) async fn keysend(context: &Context, options: Keysend) -> Result<(), CliError> {
    let request = Request::Keysend {
        to: options.to,
        amount_msat: msat(options.amount),
    };
    let begun = ask(context, "keysend", request).await?;
    wait(context, begun, options.wait).await
}

const fn msat(sat: u64) -> u64 {
    sat.saturating_mul(1000)
}

/// Follows a payment to its end.
async fn wait(context: &Context, begun: Value, wait: Wait) -> Result<(), CliError> {
    let begun: Payment = serde_json::from_value(begun).map_err(std::io::Error::other)?;
    if wait.background {
        let text = format!(
            "On its way. `{}` shows what becomes of it.",
            context.again("payments")
        );
        return context.print(&begun, &text);
    }
    let store = context.store().await?;
    let patience = Duration::from_secs(wait.timeout);
    let ended = tokio::select! {
        ended = tokio::time::timeout(patience, ended(&store, &begun)) => ended,
        left = follow::left(context) => {
            left?;
            let text = "the signer-client that ran here has ended; the payment goes on when it runs again";
            return Err(CliError::Busy(text.to_owned()));
        }
    };
    match ended {
        Err(_) => Err(CliError::Busy(format!(
            "the payment is still under way after {} s; `{}` shows what becomes of it",
            wait.timeout,
            context.again("payments")
        ))),
        Ok(ended) => report(context, &ended?),
    }
}

async fn ended(store: &SharedStore, begun: &Payment) -> Result<Payment, CliError> {
    let mut progress = Progress::new();
    progress.say(&format!("{} sat are on their way", sat(begun.amount_msat)));
    let hash = begun.hash()?;
    loop {
        match store.payment(hash, Direction::Out).await? {
            Some(payment) if payment.state != PaymentState::Pending => return Ok(payment),
            _ => tokio::time::sleep(LOOK).await,
        }
    }
}

fn report(context: &Context, payment: &Payment) -> Result<(), CliError> {
    if payment.state == PaymentState::Failed {
        let why = payment.failure.as_deref().unwrap_or("it is not known why");
        return Err(CliError::Refused(format!("the payment failed: {why}")));
    }
    let text = format!(
        "Paid {} sat for a fee of {} sat.",
        sat(payment.amount_msat),
        sat(payment.fee_msat.unwrap_or(0))
    );
    context.print(payment, &text)
}

/// A channel, with its commitment once that may be published.
#[derive(Debug, Serialize)]
struct Shown {
    #[serde(flatten)]
    channel: ChannelView,
    /// It will never carry a payment again.
    over: bool,
    commitment_tx: Option<String>,
}

pub(super) async fn webhook(context: &Context, command: Webhook) -> Result<(), CliError> {
    match command {
        Webhook::Set { name, url } => {
            let request = Request::SetWebhook {
                app_name: name.clone(),
                url,
            };
            let answer = ask(context, "webhook", request).await?;
            let set: WebhookSet = serde_json::from_value(answer).map_err(std::io::Error::other)?;
            let what = if set.no_change {
                "is set already"
            } else {
                "is set; a first notification is on its way to it"
            };
            let text = format!(
                "Webhook {name:?} {what} ({} of {}).",
                set.num_webhooks, set.max_webhooks
            );
            context.print(&set, &text)
        }
        Webhook::List => {
            let answer = ask(context, "webhook", Request::Webhooks).await?;
            let all: Webhooks = serde_json::from_value(answer).map_err(std::io::Error::other)?;
            let text = if all.app_names.is_empty() {
                "No webhooks.".to_owned()
            } else {
                all.app_names.join("\n")
            };
            context.print(&all, &text)
        }
        Webhook::Remove { name } => {
            let request = Request::RemoveWebhook {
                app_name: name.clone(),
            };
            ask(context, "webhook", request).await?;
            context.print(
                &json!({ "removed": name }),
                &format!("Webhook {name:?} is removed."),
            )
        }
    }
}

pub(super) async fn channels(context: &Context) -> Result<(), CliError> {
    context.config()?;
    let store = context.store().await?;
    let channels: Vec<ChannelView> = match context.occupant()?.filter(|by| by.serves) {
        Some(_) => {
            let answer = context.ask(&store, Request::Channels).await?;
            serde_json::from_value(answer).map_err(std::io::Error::other)?
        }
        None => stored(&store, false).await?,
    };
    let rows = store.channels().await?;
    let commitment = |leaf: &str| {
        let row = rows.iter().find(|row| row.leaf.to_string() == leaf)?;
        row.commitment.as_ref().map(serialize_hex)
    };
    let shown: Vec<Shown> = channels
        .into_iter()
        .map(|channel| Shown {
            commitment_tx: commitment(&channel.leaf),
            over: channel.is_over(),
            channel,
        })
        .collect();
    let text = if shown.is_empty() {
        "No channels.".to_owned()
    } else {
        table(&shown)
    };
    context.print(&json!({ "channels": shown }), &text)
}

/// How far a channel is, in words.
fn state(channel: &ChannelView) -> String {
    let coming = match channel.closing_sat {
        0 => String::new(),
        amount => format!(", {} sat on their way", grouped(amount)),
    };
    match (&channel.spent, channel.leaf_height) {
        (Some(spent), _) => {
            format!("over: spent by {} at {}{coming}", spent.kind, spent.height)
        }
        _ if channel.is_over() => format!("over: {}{coming}", channel.state.as_str()),
        (None, Some(height)) => {
            format!("{}, on the chain since {height}", channel.state.as_str())
        }
        (None, None) => channel.state.as_str().to_owned(),
    }
}

fn table(channels: &[Shown]) -> String {
    let mut table = Table::new([
        "factory",
        "channel",
        "state",
        "capacity sat",
        "yours sat",
        "to receive sat",
        "pending",
        "usable",
    ]);
    for Shown { channel, .. } in channels {
        table.row([
            channel.factory.as_ref().map_or("-".to_owned(), short),
            channel.channel.as_ref().map_or("-".to_owned(), short),
            state(channel),
            grouped(channel.capacity_sat),
            sat(channel.ours_msat),
            sat(channel.receivable_msat),
            channel.pending.to_string(),
            if channel.usable { "yes" } else { "no" }.to_owned(),
        ]);
    }
    table.render()
}

pub(super) async fn payments(context: &Context, limit: u32) -> Result<(), CliError> {
    context.config()?;
    let payments = context.store().await?.payments(limit).await?;
    let mut table = Table::new(["", "sat", "fee sat", "state", "height", "hash", "what"]);
    for payment in &payments {
        let way = match payment.direction {
            Direction::In => "in",
            Direction::Out => "out",
        };
        let fee = payment.fee_msat.map_or("-".to_owned(), sat);
        let what = payment.failure.as_ref().unwrap_or(&payment.text);
        table.row([
            way.to_owned(),
            sat(payment.amount_msat),
            fee,
            payment.state.as_str().to_owned(),
            payment.created_height.to_string(),
            short(&payment.hash),
            what.clone(),
        ]);
    }
    let text = if payments.is_empty() {
        "No payments.".to_owned()
    } else {
        table.render()
    };
    context.print(&json!({ "payments": payments }), &text)
}

#[cfg(test)]
mod tests {
    use bitcoin::Txid;
    use bitcoin::hashes::Hash;
    use clap::Parser;
    use factory_tree::ids::FactoryId;

    use super::*;
    use crate::cli::args::{Args, Command};
    use crate::config::Config;
    use crate::lightning::{ChannelState, SpentView};

    #[tokio::test]
    async fn what_is_no_invoice_is_wrong_usage() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().display().to_string();
        let words = [
            "signer-client",
            "--data-dir",
            path.as_str(),
            "pay",
            "garbage",
        ];
        let args = Args::try_parse_from(words).unwrap();
        let context = Context::new(&args).unwrap();
        let config = Config::new(Network::Regtest);
        config.write_new(&context.config_path()).unwrap();
        let Command::Pay(options) = args.command else {
            panic!("not pay");
        };
        let error = pay(&context, options).await.unwrap_err();
        assert_eq!(error.exit_code(), 2, "{error}");
        let text = error.to_string();
        assert!(
            text.contains("no invoice") && text.contains("BOLT 11"),
            "{text}"
        );
    }

    #[test]
    fn an_invoice_over_what_can_be_received_comes_with_a_warning() {
        let made = |asked| Made {
            invoice: Invoiced {
                invoice: "lnbcrt1".to_owned(),
                hash: String::new(),
                amount_msat: asked,
                expires_time: 0,
            },
            receivable_msat: 184_000_000,
        };
        assert_eq!(made(None).warning(), None);
        assert_eq!(made(Some(184_000_000)).warning(), None);
        let text = made(Some(184_000_001)).warning().unwrap();
        for word in ["184 000.000 sat can", "limit upgrade", "invoice --jit"] {
            assert!(text.contains(word), "{text}");
        }
        let json = serde_json::to_value(made(None)).unwrap();
        assert_eq!(json["receivable_msat"], 184_000_000);
        assert_eq!(json["invoice"], "lnbcrt1");
    }

    #[test]
    fn a_channel_that_is_over_says_so_and_a_mates_that_it_is_on_the_chain() {
        let open = ChannelView::sample(FactoryId([1; 32]), 7_000, 1_000);
        assert_eq!(state(&open), "open");
        let confirmed = ChannelView {
            leaf_height: Some(200),
            ..open.clone()
        };
        assert_eq!(state(&confirmed), "open, on the chain since 200");
        let closed = ChannelView {
            state: ChannelState::Closed,
            closing_sat: 7_000,
            ..confirmed.clone()
        };
        assert_eq!(state(&closed), "over: closed, 7 000 sat on their way");
        let spent = ChannelView {
            state: ChannelState::Spent,
            spent: Some(SpentView {
                kind: "commitment".to_owned(),
                txid: Txid::all_zeros(),
                height: 210,
            }),
            ..confirmed.clone()
        };
        assert_eq!(state(&spent), "over: spent by commitment at 210");
        let over = [&open, &confirmed, &closed, &spent].map(ChannelView::is_over);
        assert_eq!(over, [false, false, true, true]);
    }
}
