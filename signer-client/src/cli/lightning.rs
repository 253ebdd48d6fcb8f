//! Invoices, payments and channels.

use std::time::Duration;

use bitcoin::consensus::encode::serialize_hex;
use serde::Serialize;
use serde_json::{Value, json};

use super::CliError;
use super::args::{Invoice, Keysend, Pay, Wait, Webhook};
use super::context::{Context, Holder};
use super::follow::{self, Progress};
use super::jit;
use super::table::{Table, grouped, short, with_msat as sat};
use crate::error::Error;
use crate::lightning::{ChannelView, stored};
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
    let answer = ask(context, "invoice", request).await?;
    let invoice: crate::lightning::Invoice =
        serde_json::from_value(answer).map_err(std::io::Error::other)?;
    context.print(&invoice, &invoice.invoice)
}

pub(super) async fn pay(context: &Context, options: Pay) -> Result<(), CliError> {
    let request = Request::Pay {
        invoice: options.invoice,
        amount_msat: options.amount.map(msat),
    };
    let begun = ask(context, "pay", request).await?;
    wait(context, begun, options.wait).await
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
        None => stored(&store).await?,
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
        let state = match (&channel.spent, channel.closing_sat) {
            (Some(spent), _) => format!("spent by {} at {}", spent.kind, spent.height),
            (None, _) => channel.state.as_str().to_owned(),
        };
        table.row([
            channel.factory.as_ref().map_or("-".to_owned(), short),
            channel.channel.as_ref().map_or("-".to_owned(), short),
            state,
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
