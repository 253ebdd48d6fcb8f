//! `invoice --jit`: being paid without a channel; `close`: ending such a channel.

use std::io::Write;

use serde_json::Value;

use super::CliError;
use super::args::{Close, Invoice};
use super::context::{Context, unambiguous};
use super::lightning::ask;
use super::table::{grouped, time, with_msat};
use crate::jit::{JitInvoice, JitQuote};
use crate::lightning::ChannelView;
use crate::store::Request;

pub(super) fn parsed<T: serde::de::DeserializeOwned>(answer: Value) -> Result<T, CliError> {
    Ok(serde_json::from_value(answer).map_err(std::io::Error::other)?)
}

/// Asks what the channel costs, has the user agree, and orders it.
pub(super) async fn invoice(
    context: &Context,
    options: Invoice,
    amount_msat: Option<u64>,
) -> Result<(), CliError> {
    let Some(amount_msat) = amount_msat else {
        let text = "say how much is to be paid: the channel is opened for that, and its price depends on it";
        return Err(CliError::Usage(text.to_owned()));
    };
    let request = Request::QuoteJit { amount_msat };
    let quote: JitQuote = parsed(ask(context, "invoice", request).await?)?;
    eprintln!("{}", explain(&quote));
    confirm(
        context,
        options.yes,
        "Order the channel?",
        "nothing was ordered",
    )?;
    let request = Request::JitInvoice {
        quote,
        description: options.description,
        expiry: options.expiry,
        max_fee_msat: options.max_fee.map(|sat| sat.saturating_mul(1000)),
        consent: options.accept_uncovered,
    };
    let made: JitInvoice = parsed(ask(context, "invoice", request).await?)?;
    context.print(&made, &made.invoice.invoice)
}

fn explain(quote: &JitQuote) -> String {
    format!(
        "A channel is opened when this is paid: {} sat of the {} sat are kept for it, {} sat arrive. It can be paid until {}, while `run` is running.",
        with_msat(quote.fee_msat),
        with_msat(quote.payment_msat),
        with_msat(quote.receive_msat),
        time(quote.valid_until),
    )
}

/// Asks, unless that was done.
pub(super) fn confirm(
    context: &Context,
    yes: bool,
    question: &str,
    otherwise: &str,
) -> Result<(), CliError> {
    if yes {
        return Ok(());
    }
    if !context.interactive() {
        let text = "this costs money; say --yes where nobody can be asked";
        return Err(CliError::Usage(text.to_owned()));
    }
    eprint!("{question} Type yes: ");
    std::io::stderr().flush()?;
    let mut answer = String::new();
    std::io::stdin().read_line(&mut answer)?;
    if answer.trim() == "yes" {
        Ok(())
    } else {
        Err(CliError::Refused(otherwise.to_owned()))
    }
}

pub(super) async fn close(context: &Context, options: Close) -> Result<(), CliError> {
    let channels: Vec<ChannelView> = parsed(ask(context, "close", Request::Channels).await?)?;
    let ids = channels.iter().filter_map(|view| view.channel.clone());
    let channel = unambiguous(&options.channel, ids, "channel", "channels")?;
    let found = channels
        .iter()
        .find(|view| view.channel.as_ref() == Some(&channel));
    let question = found.map_or_else(
        || "Close the channel?".to_owned(),
        |view| {
            format!(
                "Close the channel of {} sat, with {} sat of yours?",
                grouped(view.capacity_sat),
                grouped(view.ours_msat / 1000)
            )
        },
    );
    if options.force {
        eprintln!(
            "Alone, a coin of this wallet pays for the closing transaction, and what is yours comes when the coordinator's chance to object is over."
        );
    }
    confirm(context, options.yes, &question, "nothing was closed")?;
    let request = Request::CloseChannel {
        channel,
        force: options.force,
    };
    let closed: ChannelView = parsed(ask(context, "close", request).await?)?;
    let text = format!(
        "The channel of {} sat is being closed; about {} sat are on their way into the wallet. `{}` shows when they are there.",
        grouped(closed.capacity_sat),
        grouped(closed.ours_msat / 1000),
        context.again("balance")
    );
    context.print(&closed, &text)
}
