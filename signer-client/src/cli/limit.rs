//! `limit`: what can be received, and buying more.

use std::io::Write;
use std::time::Duration;

use bitcoin::Amount;
use factory_tree::ids::{FactoryId, SaleId};
use factory_tree::sale::order::PurchaseState;
use serde_json::json;

use super::CliError;
use super::args::{Limit, LimitAmount, Upgrade};
use super::context::Context;
use super::follow::{self, Progress};
use super::jit::parsed;
use super::lightning::ask;
use super::order;
use super::table::{Table, covered, grouped, short, time, with_msat};
use crate::client::KitCache;
use crate::lightning::stored;
use crate::lsps1::orders;
use crate::sales::{
    LimitQuote, LimitView, PurchaseView, SaleError, StockView, TopUpView, limit as limit_of,
    purchases as all, top_up_at_rest,
};
use crate::store::{Request, SharedStore, state_name};

/// Between two looks at a purchase.
const LOOK: Duration = Duration::from_millis(100);

pub(super) async fn run(context: &Context, command: Limit) -> Result<(), CliError> {
    match command {
        Limit::Show => show(context).await,
        Limit::Quote(wanted) => {
            let quote = quote(context, &wanted).await?;
            context.print(&quote, &explain(&quote))
        }
        Limit::Upgrade(options) if options.or_onchain || options.next_factory => {
            order::upgrade(context, &options).await
        }
        Limit::Upgrade(options) => upgrade(context, &options).await,
        Limit::Purchases => purchases(context).await,
        Limit::Cancel { sale } => cancel(context, sale).await,
    }
}

async fn show(context: &Context) -> Result<(), CliError> {
    let config = context.config()?;
    let store = context.store().await?;
    let view: LimitView = match context.occupant()?.filter(|by| by.serves) {
        Some(_) => parsed(context.ask(&store, Request::Limit).await?)?,
        None => {
            let kits = KitCache::new(SharedStore::clone(&store));
            LimitView {
                top_up: top_up_at_rest(&store, &config.top_up).await?,
                ..limit_of(&store, &kits, &stored(&store, false).await?).await?
            }
        }
    };
    context.print(&view, &text(context, &view))
}

fn text(context: &Context, view: &LimitView) -> String {
    if view.channels.is_empty() && view.stocks.is_empty() {
        return format!(
            "Nothing can be received: this wallet has no channel, and is in no factory that is in use. `{}` asks for a place in one, `{}` orders a channel together with a payment.\n{}",
            context.again("join"),
            context.again("invoice --jit AMOUNT"),
            top_up(&view.top_up)
        );
    }
    let mut channels = Table::new(["factory", "channel", "capacity sat", "to receive sat"]);
    for channel in &view.channels {
        let by = match (channel.automatic, channel.bonus) {
            (true, _) => ", by itself",
            (_, true) => ", a bonus for signing",
            _ => "",
        };
        let made = match (channel.factory, channel.sale) {
            (None, _) => "outside of factories".to_owned(),
            (Some(_), None) => "its own".to_owned(),
            (Some(_), Some(number)) => format!("of sale {number}{by}"),
        };
        channels.row([
            channel
                .factory
                .map_or_else(|| "-".to_owned(), |id| short(&id)),
            made,
            grouped(channel.capacity_sat),
            with_msat(channel.receivable_msat),
        ]);
    }
    let stocks = match view.stocks.is_empty() {
        true => String::new(),
        false => stock_table(&view.stocks, &context.again("limit quote AMOUNT")),
    };
    let mut factories = view.channels.iter().map(|channel| channel.factory);
    let outside = match factories.any(|factory| factory.is_none()) {
        true => format!(
            "Of what is outside of factories nothing is covered: if the coordinator is gone, `{}` brings what is yours to the chain.\n",
            context.again("close CHANNEL --force")
        ),
        false => String::new(),
    };
    let coverage = &view.coverage;
    format!(
        "{}\n{stocks}You can receive {} sat now. Your channels hold {} sat; of that the coordinator keeps a reserve in each, a hundredth and at least 1 000 sat, which nobody can pay you.\nCovered if the coordinator breaks off:\n  away   {} sat: what the timeouts of the factory's birth pay if you do nothing\n  awake  {} sat: what you are sure of wherever it stops publishing, if this wallet looks every 60 blocks (`run`; nobody else publishes for it)\n{outside}{}",
        channels.render(),
        with_msat(view.receivable_msat),
        grouped(view.limit_sat),
        grouped(coverage.away_sat),
        grouped(coverage.awake_sat),
        top_up(&view.top_up)
    )
}

/// What can be bought, factory by factory, as a purchase is judged; `quote`: the command that asks for a price.
fn stock_table(stocks: &[StockView], quote: &str) -> String {
    let mut table = Table::new([
        "factory",
        "left to be bought sat",
        "factory's least sat",
        "sales",
        "you hold sat",
        "covered awake sat",
        "needs --accept-uncovered",
    ]);
    for stock in stocks {
        let consent = match stock.needs_consent {
            true => "whatever you buy",
            false => "beyond what is covered",
        };
        table.row([
            short(&stock.factory),
            grouped(stock.left_sat),
            grouped(stock.least_sat),
            format!("{} of {}", stock.sales, stock.most_sales),
            grouped(stock.coverage.held_sat),
            grouped(stock.coverage.awake_sat),
            consent.to_owned(),
        ]);
    }
    format!(
        "{}\nEach factory is judged by itself: a purchase after which you could hold more there than is covered awake needs --accept-uncovered. The coordinator may sell nothing as small as a factory's least. `{quote}` says both before anything is bought.\n\n",
        table.render()
    )
}

/// Whether the wallet buys by itself, and what it waits for.
fn top_up(view: &TopUpView) -> String {
    if !view.enabled {
        return "Nothing is bought by itself (`top_up.enabled` in client.toml).".to_owned();
    }
    let until = view
        .until_time
        .map_or_else(String::new, |until| format!("; not before {}", time(until)));
    format!(
        "By itself: when less than {} sat can be received, {} sat more are bought, for {} sat at most; {} of {} sat for 30 days are spent.\n  Now: {}{until}.",
        grouped(view.below_sat),
        grouped(view.amount_sat),
        grouped(view.max_fee_sat),
        with_msat(view.spent_msat),
        grouped(view.max_fee_sat_per_month),
        view.note
    )
}

async fn quote(context: &Context, wanted: &LimitAmount) -> Result<LimitQuote, CliError> {
    if context.config()?.coordinator.is_none() {
        return Err(CliError::Client(SaleError::NoCoordinator.into()));
    }
    let factory: Option<FactoryId> = match &wanted.factory {
        Some(text) => Some(context.factory(&context.store().await?, text).await?),
        None => None,
    };
    let request = Request::QuoteLimit {
        factory,
        amount_sat: wanted.amount,
    };
    parsed(ask(context, "limit", request).await?)
}

fn explain(quoted: &LimitQuote) -> String {
    let (quote, after) = (&quoted.quote, &quoted.after);
    let mut text = format!(
        "A channel of {} sat in factory {}, all of it to receive, for {} sat. Valid until {}.\n",
        grouped(quote.capacity.to_sat()),
        short(&quote.factory),
        with_msat(quote.fee_msat),
        time(quote.valid_until),
    );
    if quote.capacity != quote.asked {
        text.push_str("  That is all there is: the rest would be too small to be sold later.\n");
    }
    if quoted.needs_consent {
        text.push_str(&format!(
            "  WARNING: you could then hold {} sat in this factory. Covered if the coordinator breaks off: {} (`limit show` says what that is). For the rest you need fee coins and have to leave by yourself.\n",
            grouped(after.held_sat),
            covered(after.away_sat, after.awake_sat)
        ));
    }
    text
}

async fn upgrade(context: &Context, options: &Upgrade) -> Result<(), CliError> {
    let quoted = quote(context, &options.wanted).await?;
    eprint!("{}", explain(&quoted));
    let max_fee_msat = options.max_fee.map(|sat| sat.saturating_mul(1000));
    if let Some(max_msat) = max_fee_msat.filter(|max| quoted.quote.fee_msat > *max) {
        let fee_msat = quoted.quote.fee_msat;
        return Err(CliError::Client(
            SaleError::Fee { fee_msat, max_msat }.into(),
        ));
    }
    let consent = confirm(context, options, &quoted)?;
    let request = Request::UpgradeLimit {
        quote: quoted.signed,
        consent,
        max_fee_msat,
    };
    let begun: PurchaseView = parsed(ask(context, "limit", request).await?)?;
    if options.no_wait {
        let text = format!(
            "Purchase {} is on its way. `{}` shows what becomes of it.",
            begun.sale,
            context.again("limit purchases")
        );
        return context.print(&begun, &text);
    }
    let store = context.store().await?;
    eprintln!("waiting; Ctrl-C is safe, the purchase goes on");
    let ended = tokio::select! {
        ended = ended(&store, begun.sale) => ended?,
        left = follow::left(context) => {
            left?;
            let text = "the signer-client that ran here has ended; the purchase goes on when it runs again";
            return Err(CliError::Busy(text.to_owned()));
        }
    };
    report(context, &ended)
}

/// Asks, unless that was done; whether the user accepts what is not covered.
fn confirm(context: &Context, options: &Upgrade, quoted: &LimitQuote) -> Result<bool, CliError> {
    let uncovered = quoted.needs_consent && !options.accept_uncovered;
    let silent = options.yes || !context.interactive();
    if uncovered && silent {
        return Err(CliError::Client(
            SaleError::Uncovered {
                factory: quoted.quote.factory,
                held: Amount::from_sat(quoted.after.held_sat),
                awake: Amount::from_sat(quoted.after.awake_sat),
            }
            .into(),
        ));
    }
    if options.yes {
        return Ok(options.accept_uncovered);
    }
    if silent {
        let text = "this costs money; say --yes where nobody can be asked";
        return Err(CliError::Usage(text.to_owned()));
    }
    // More is agreed to than a price.
    let word = if uncovered { "accept" } else { "yes" };
    eprint!("Buy? Type {word}: ");
    std::io::stderr().flush()?;
    let mut answer = String::new();
    std::io::stdin().read_line(&mut answer)?;
    if answer.trim() == word {
        Ok(uncovered || options.accept_uncovered)
    } else {
        Err(CliError::Refused("nothing was bought".to_owned()))
    }
}

async fn ended(store: &SharedStore, sale: SaleId) -> Result<PurchaseView, CliError> {
    let mut progress = Progress::new();
    loop {
        let known = all(store).await?;
        let purchase = known.into_iter().find(|purchase| purchase.sale == sale);
        let purchase = purchase.ok_or_else(|| CliError::Client(SaleError::Unknown(sale).into()))?;
        if purchase.is_over() {
            return Ok(purchase);
        }
        progress.say(&words(&purchase));
        tokio::time::sleep(LOOK).await;
    }
}

/// How far a purchase is, in words.
fn words(purchase: &PurchaseView) -> String {
    match purchase.note.as_str() {
        "" => state_name(purchase.state).to_owned(),
        note => format!("{}: {note}", state_name(purchase.state)),
    }
}

fn report(context: &Context, purchase: &PurchaseView) -> Result<(), CliError> {
    if purchase.state == PurchaseState::Cancelled {
        let text = format!(
            "nothing was bought, and nothing is charged: {}; `{}` takes it from the chain where a stock cannot serve it",
            purchase.note,
            context.again("limit upgrade AMOUNT --or-onchain")
        );
        return Err(CliError::Refused(text));
    }
    let text = format!(
        "Bought: {} sat more can be received, for {} sat.",
        grouped(purchase.capacity_sat),
        with_msat(purchase.fee_msat)
    );
    context.print(purchase, &text)
}

async fn purchases(context: &Context) -> Result<(), CliError> {
    context.config()?;
    let store = context.store().await?;
    let (purchases, orders) = (all(&store).await?, orders(&store).await?);
    let mut table = Table::new([
        "purchase", "factory", "sat", "fee sat", "by", "state", "note",
    ]);
    for purchase in &purchases {
        table.row([
            purchase.sale.to_string(),
            short(&purchase.factory),
            grouped(purchase.capacity_sat),
            with_msat(purchase.fee_msat),
            if purchase.automatic { "itself" } else { "you" }.to_owned(),
            state_name(purchase.state).to_owned(),
            purchase.note.clone(),
        ]);
    }
    for order in &orders {
        table.row(order::row(order));
    }
    let text = if purchases.is_empty() && orders.is_empty() {
        "No purchases.".to_owned()
    } else {
        table.render()
    };
    context.print(&json!({ "purchases": purchases, "orders": orders }), &text)
}

async fn cancel(context: &Context, sale: SaleId) -> Result<(), CliError> {
    let answer = ask(context, "limit", Request::CancelPurchase { sale }).await?;
    let purchase: PurchaseView = parsed(answer)?;
    let text = if purchase.is_over() {
        format!("Purchase {sale} is cancelled.")
    } else {
        format!(
            "Purchase {sale} is being cancelled; `{}` shows when the payment is back.",
            context.again("limit purchases")
        )
    };
    context.print(&purchase, &text)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sales::CoverageView;

    #[test]
    fn consent_is_told_factory_by_factory_and_whose_least_it_is() {
        let stock = |number, needs_consent| StockView {
            factory: FactoryId([number; 32]),
            left_sat: 400_000,
            least_sat: 2_000,
            sales: 0,
            most_sales: 4,
            coverage: CoverageView::default(),
            needs_consent,
        };
        let text = stock_table(&[stock(1, true), stock(2, false)], "limit quote AMOUNT");
        let line = |number| {
            let name = short(&FactoryId([number; 32]));
            text.lines().find(|line| line.starts_with(&name)).unwrap()
        };
        assert!(line(1).ends_with("whatever you buy"), "{text}");
        assert!(line(2).ends_with("beyond what is covered"), "{text}");
        assert!(text.contains("factory's least sat"), "{text}");
    }
}
