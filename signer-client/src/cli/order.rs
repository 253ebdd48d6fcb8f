//! `limit upgrade --or-onchain` and `--next-factory`: a channel from a stock, or else from the chain, for one payment; or one of the next factory.

use std::time::Duration;

use crate::lsps1::{ChannelQuote, OrderView, orders};
use crate::store::{OrderState, Request, SharedStore};

use super::CliError;
use super::args::Upgrade;
use super::context::Context;
use super::follow::{self, Progress};
use super::jit::{confirm, parsed};
use super::lightning::ask;
use super::table::{grouped, short, time, with_msat};

/// Between two looks at an order.
const LOOK: Duration = Duration::from_millis(100);

pub(super) async fn upgrade(context: &Context, options: &Upgrade) -> Result<(), CliError> {
    let amount_sat = options.wanted.amount;
    let request = Request::QuoteChannel {
        amount_sat,
        at_birth: options.next_factory,
    };
    let quote: ChannelQuote = parsed(ask(context, "limit", request).await?)?;
    eprint!("{}", explain(&quote, options.accept_uncovered));
    let max_fee_msat = options.max_fee.map(|sat| sat.saturating_mul(1000));
    if max_fee_msat.is_none_or(|max| quote.fee_msat <= max) {
        confirm(context, options.yes, "Buy?", "nothing was bought")?;
    }
    // What costs more than is allowed is refused there.
    let request = Request::OrderChannel {
        quote: Box::new(quote),
        consent: options.accept_uncovered,
        max_fee_msat,
    };
    let begun: OrderView = parsed(ask(context, "limit", request).await?)?;
    if options.no_wait {
        let text = format!(
            "Order {} is on its way. `{}` shows what becomes of it.",
            begun.order,
            context.again("limit purchases")
        );
        return context.print(&begun, &text);
    }
    let store = context.store().await?;
    eprintln!("waiting; Ctrl-C is safe, the order goes on");
    let ended = tokio::select! {
        ended = ended(&store, &begun) => ended?,
        left = follow::left(context) => {
            left?;
            let text = "the signer-client that ran here has ended; the order goes on when it runs again";
            return Err(CliError::Busy(text.to_owned()));
        }
    };
    report(context, &ended)
}

fn explain(quote: &ChannelQuote, consent: bool) -> String {
    let mut text = format!(
        "A channel of {} sat, all of it to receive, for {} sat; the coordinator keeps it open for {} blocks at least. Valid until {}.\n",
        grouped(quote.capacity_sat),
        with_msat(quote.fee_msat),
        grouped(quote.blocks.into()),
        time(quote.valid_until),
    );
    if quote.at_birth {
        text.push_str(
            "  With the next factory, which is born within a day or two: the payment is held until then. Keep the wallet running.\n",
        );
        return text;
    }
    text.push_str(&match (&quote.stock, &quote.no_stock) {
        (Some(stock), _) if stock.needs_consent && !consent => format!(
            "  From the chain: from the stock of factory {} you could then hold {} sat there, of which {} sat are covered awake if the coordinator breaks off (--accept-uncovered).\n",
            short(&stock.quote.factory),
            grouped(stock.after.held_sat),
            grouped(stock.after.awake_sat),
        ),
        (Some(stock), _) => format!(
            "  From the stock of factory {}, if those who share it come to sign; or else from the chain.\n",
            short(&stock.quote.factory)
        ),
        (None, why) => format!(
            "  From the chain: {}.\n",
            why.as_deref().unwrap_or("it can come from no stock")
        ),
    });
    text
}

async fn ended(store: &SharedStore, begun: &OrderView) -> Result<OrderView, CliError> {
    let mut progress = Progress::new();
    loop {
        let known = orders(store).await?.into_iter();
        let mut known = known.filter(|order| order.order == begun.order);
        let order = known.next().unwrap_or_else(|| begun.clone());
        if order.is_over() {
            return Ok(order);
        }
        progress.say(&order.note);
        tokio::time::sleep(LOOK).await;
    }
}

fn report(context: &Context, order: &OrderView) -> Result<(), CliError> {
    if order.state == OrderState::Failed {
        let text = format!("nothing was bought: {}", order.note);
        return Err(CliError::Refused(text));
    }
    let text = format!(
        "Bought: {} sat more can be received, for {} sat, {}.",
        grouped(order.capacity_sat),
        with_msat(order.fee_msat),
        order.note
    );
    context.print(order, &text)
}

/// A row of `limit purchases`.
pub(super) fn row(order: &OrderView) -> [String; 7] {
    [
        order.order.clone(),
        String::new(),
        grouped(order.capacity_sat),
        with_msat(order.fee_msat),
        "you".to_owned(),
        order.state.as_str().to_owned(),
        order.note.clone(),
    ]
}
