//! What only shows, or takes a moment.

use bitcoin::{Amount, FeeRate};
use factory_tree::ladder::Warning;
use factory_tree::params::ExpiryPolicy;
use serde::Serialize;
use serde_json::{Value, json};

use super::CliError;
use super::args::QuoteExit;
use super::context::{Context, Holder};
use super::table::{Table, covered, grouped, short, with_msat};
use crate::client::{
    self, Account, Balance, Counted, FactoryView, InFlight, QUOTED, Quote, Status, Swept,
};
use crate::lightning::{ChannelState, ChannelView};
use crate::lock::Occupant;
use crate::store::{Goal, Request, SharedStore};

/// The command that follows the chain, and does not talk to the coordinator.
const EXIT: &str = "exit";

/// The status, with who says so.
#[derive(Debug, Serialize)]
struct Shown {
    #[serde(flatten)]
    status: Status,
    running_command: Option<String>,
    running_pid: Option<u32>,
}

/// The balance, with the account in plain words.
#[derive(Debug, Serialize)]
struct BalanceShown {
    #[serde(flatten)]
    balance: Balance,
    account: Account,
}

pub(super) async fn status(context: &Context) -> Result<(), CliError> {
    let config = context.config()?;
    let occupant = context.occupant()?.filter(|occupant| occupant.serves);
    let coordinator = config.coordinator.as_deref();
    let store = context.store().await?;
    let status = client::status(&store, coordinator, occupant.is_some()).await?;
    let shown = Shown {
        running_command: occupant.as_ref().map(|occupant| occupant.command.clone()),
        running_pid: occupant.as_ref().map(|occupant| occupant.pid),
        status,
    };
    context.print(&shown, &describe(&shown.status, occupant.as_ref()))
}

fn describe(status: &Status, occupant: Option<&Occupant>) -> String {
    let mut text = format!("Wallet      {} on {}\n", status.node_id, status.network);
    if let Some(occupant) = occupant {
        text.push_str(&format!("Running     {occupant}\n"));
    }
    let live = &status.live;
    let exits_only = occupant.is_some_and(|occupant| occupant.command == EXIT);
    let connection = match (&live.disconnected_because, live.connected, status.running) {
        _ if status.coordinator.is_none() => "none is configured".to_owned(),
        (_, _, false) => {
            "not connected: this wallet's `run` is not running, so nothing is watched".to_owned()
        }
        _ if exits_only => "not connected: only `exit` is running".to_owned(),
        (_, true, _) => "connected".to_owned(),
        (Some(why), _, _) => format!("disconnected: {why}"),
        (None, false, _) => "connecting".to_owned(),
    };
    text.push_str(&format!("Coordinator {connection}\n"));
    if status.running {
        let trouble = live.chain_problem.as_ref();
        let chain = trouble.map_or_else(|| format!("at height {}", live.height), Clone::clone);
        text.push_str(&format!("Chain       {chain}\n"));
    }
    if let (Some(round), Some(phase)) = (&live.round, &live.phase) {
        text.push_str(&format!("Ceremony    {round}: {phase}\n"));
    }
    if let Some(capacity) = status.interest_sat {
        let capacity = match capacity {
            0 => "the coordinator's default capacity".to_owned(),
            sat => format!("{} sat", grouped(sat)),
        };
        let note = status.interest_note.as_deref().unwrap_or("waiting");
        text.push_str(&format!(
            "Joining     the next factory, with {capacity} ({note})\n"
        ));
    }
    if !status.factories.is_empty() || !status.channels.is_empty() {
        let moving = status.live.moving.as_deref();
        text.push_str(&account_text(&status.account, moving));
        text.push_str(&outside_text(&status.channels));
    }
    if !status.factories.is_empty() {
        text.push('\n');
        text.push_str(&factory_table(&status.factories));
    }
    text
}

/// The account in a few lines; `moving`: what a move does now, in words.
fn account_text(account: &Account, moving: Option<&str>) -> String {
    let mut lines = vec![format!(
        "Account     {} sat, in channels of {} sat; {} sat can be received; covered if the coordinator breaks off: {}{}",
        with_msat(account.balance_msat),
        grouped(account.limit_sat),
        with_msat(account.inbound_msat),
        covered(account.coverage_sat, account.coverage_awake_sat),
        uncovered(account.outside_msat)
    )];
    if let Some(window) = &account.window {
        let heights = || {
            format!(
                "blocks {} to {}",
                window.from_height, window.deadline_height
            )
        };
        let words = window.words.clone().unwrap_or_else(heights);
        lines.push(format!("Next        {words}"));
        lines.push(match account.monthly_fee_sat {
            0 => "Fee         none".to_owned(),
            fee => format!("Fee         {} sat a month", grouped(fee)),
        });
    }
    for begun in &account.moves {
        let to = begun.to.as_ref().map_or("-".to_owned(), short);
        lines.push(format!(
            "Moving      {} -> {to}: {} of {} parts, {} sat moved, {} sat left ({})",
            short(&begun.from),
            begun.parts_done,
            begun.parts_total,
            with_msat(begun.moved_msat),
            with_msat(begun.left_msat),
            moving.unwrap_or(begun.state)
        ));
    }
    if let Some(moving) = moving.filter(|_| account.moves.is_empty()) {
        lines.push(format!("Moving      {moving}"));
    }
    for left in &account.leaving {
        lines.push(format!(
            "Leaving     {}: {}; keep `run` running until it is done",
            short(&left.factory),
            left.words
        ));
    }
    for notice in &account.notices {
        let loud = notice.level >= Some(Warning::LastDay);
        let mark = if loud { "!!!" } else { "   " };
        lines.push(format!(
            "Notice {mark}  {}: {}",
            short(&notice.factory),
            notice.words.join(" ")
        ));
    }
    for refused in &account.double_sales {
        let at = match refused.at_height {
            0 => String::new(),
            height => format!(" (at block {height})"),
        };
        lines.push(format!(
            "Problem !!! {}: {}{at}",
            short(&refused.factory),
            refused.words
        ));
    }
    lines.join("\n") + "\n"
}

/// What is not covered of what is counted beside it.
fn uncovered(outside_msat: u64) -> String {
    match outside_msat {
        0 => String::new(),
        msat => format!(
            ", for what is in factories; nothing of the {} sat outside of them",
            with_msat(msat)
        ),
    }
}

/// Channels outside of factories, a line each.
fn outside_text(channels: &[ChannelView]) -> String {
    let line = |channel: &ChannelView| {
        let money = match channel.state {
            ChannelState::Open => format!("{} sat are yours", with_msat(channel.ours_msat)),
            _ => format!("{} sat are on their way", grouped(channel.closing_sat)),
        };
        let funding = match channel.factory_confirmed {
            true => "",
            false => "; its funding is in no block yet",
        };
        format!(
            "Channel     outside of factories, {}: {money} of {} sat{funding}\n",
            channel.state.as_str(),
            grouped(channel.capacity_sat)
        )
    };
    channels.iter().map(line).collect()
}

fn factory_table(factories: &[FactoryView]) -> String {
    let mut table = Table::new([
        "factory",
        "state",
        "capacity sat",
        "yours sat",
        "covered sat",
        "confirmed",
        "expires",
        "in flight",
    ]);
    for factory in factories {
        let exit = match (&factory.exit, factory.leave_by_height) {
            // The sentence below the table has it.
            (Some(_), _) if factory.on_chain_words.is_some() => "see below".to_owned(),
            (Some(exit), _) => exit.in_words(),
            (None, Some(height)) => format!("must be left by height {height}"),
            (None, None) => String::new(),
        };
        let confirmed = factory.confirmed_height;
        let ours = factory.channels.iter().map(ChannelView::own_msat);
        let ours = ours.reduce(u64::saturating_add);
        table.row([
            short(&factory.factory),
            factory.state.to_owned(),
            grouped(factory.capacity_sat),
            ours.map_or("-".to_owned(), with_msat),
            grouped(factory.coverage_sat),
            confirmed.map_or("-".to_owned(), |height| height.to_string()),
            factory.expiry_height.to_string(),
            exit,
        ]);
    }
    let seen = factories.iter().filter_map(|factory| {
        let words = factory.on_chain_words.as_ref()?;
        Some(format!("{}: {words}\n", short(&factory.factory)))
    });
    let seen: String = seen.collect();
    match seen.is_empty() {
        true => table.render(),
        false => format!("{}\n{seen}", table.render()),
    }
}

pub(super) async fn factories(context: &Context) -> Result<(), CliError> {
    context.config()?;
    let factories = client::factories(&context.store().await?).await?;
    let text = if factories.is_empty() {
        "No factories.".to_owned()
    } else {
        factory_table(&factories)
    };
    context.print(&json!({ "factories": factories }), &text)
}

pub(super) async fn quote(context: &Context, options: QuoteExit) -> Result<(), CliError> {
    let config = context.config()?;
    let store = context.store().await?;
    let factory = context.factory(&store, &options.factory).await?;
    let coins = match context.holder("quote-exit").await? {
        Holder::Other(_) => Some(coins(context, &store).await?),
        Holder::Us(_lock) => {
            let client = context.client(config).await?;
            client.sync().await?;
            Some(client.coins().await)
        }
    };
    let feerates = if options.feerate.is_empty() {
        QUOTED.to_vec()
    } else {
        options.feerate
    };
    let quote = client::quote(&store, factory, &feerates, coins.as_deref()).await?;
    context.print(&quote, &quote_text(&quote))
}

async fn coins(context: &Context, store: &SharedStore) -> Result<Vec<Amount>, CliError> {
    let coins = context.ask(store, Request::Coins).await?;
    let coins: Vec<u64> = serde_json::from_value(coins).map_err(std::io::Error::other)?;
    Ok(coins.into_iter().map(Amount::from_sat).collect())
}

/// Of a factory that is over: where the money is.
pub(super) fn nothing_to_leave(quote: &Quote) -> Option<String> {
    if !quote.over {
        return None;
    }
    let exit = quote.exit.as_ref();
    let progress = || exit.map(|exit| format!("{}.", exit.progress));
    let told = quote.on_chain_words.clone().or_else(progress);
    let told = told.unwrap_or_else(|| "`balance` shows where the money is.".to_owned());
    Some(format!(
        "There is nothing left to exit in factory {} (it is {}): {told}",
        short(&quote.factory),
        quote.state
    ))
}

/// Of a factory whose leaf is on the chain: it costs nothing to leave, but it is an end all the same.
pub(super) fn nothing_to_pay(quote: &Quote) -> Option<String> {
    (quote.path_transactions == 0).then(|| {
        let then = match quote.channels {
            0 => "no channel of yours is open there".to_owned(),
            number => format!("leaving closes {} on the chain", channels(number)),
        };
        format!("There is no transaction to pay for; {then}.")
    })
}

fn channels(number: usize) -> String {
    match number {
        0 => "no channel".to_owned(),
        1 => "a channel".to_owned(),
        several => format!("{several} channels"),
    }
}

/// What comes of doing nothing.
pub(super) fn staying_away(quote: &Quote) -> String {
    match (quote.coverage_sat, quote.expiry_policy) {
        (0, ExpiryPolicy::LspReclaim) => {
            "Staying away pays nothing: this factory must be left in time.".to_owned()
        }
        (0, ExpiryPolicy::ClientRefund) => {
            "If you stay away instead, no timeout is sure to pay you anything.".to_owned()
        }
        (sure, _) => format!(
            "If you stay away instead, the coordinator brings your balance to the chain when the factory ends; only if it breaks off, the timeouts pay at least {} sat after height {}. You need no coins for either.",
            grouped(sure),
            quote.expiry_height
        ),
    }
}

fn quote_text(quote: &Quote) -> String {
    if let Some(text) = nothing_to_leave(quote) {
        return text;
    }
    let mut table = Table::new([
        "sat/vB",
        "path transactions",
        "vB with children",
        "cost sat",
        "one coin of",
        "your coins",
    ]);
    // Some of its coins are in it.
    let leaving = |exit: &InFlight| {
        exit.goal == Goal::Leave && exit.done_height.is_none() && exit.fees_sat > 0
    };
    let leaving = quote.exit.as_ref().is_some_and(leaving);
    for at in &quote.quotes {
        let suffice = match at.coins_suffice {
            Some(true) => "suffice",
            // They are in its transactions, and come back by and by. Where one is missing, the exit says so.
            Some(false) if leaving => "at work in this exit",
            Some(false) => "do not suffice",
            None => "not known",
        };
        table.row([
            at.feerate_sat_per_vb.to_string(),
            at.transactions.to_string(),
            grouped(at.vbytes),
            grouped(at.cost_sat),
            grouped(at.coin_needed_sat),
            suffice.to_owned(),
        ]);
    }
    let cost = nothing_to_pay(quote).unwrap_or_else(|| {
        format!(
            "{}\nThe channel is on the chain after {} blocks at least, {} at worst; its timeout is valid at height {}.",
            table.render(),
            quote.least_delay_blocks,
            quote.worst_delay_blocks,
            quote.expiry_height,
        )
    });
    let away = staying_away(quote);
    let seen = quote.on_chain_words.as_ref();
    let seen = seen.map_or_else(String::new, |words| format!("\n{words}"));
    let from = match quote.channels {
        0 => "of its closed channels".to_owned(),
        number => format!(
            "on Lightning, of {} of {} sat",
            channels(number),
            grouped(quote.capacity_sat)
        ),
    };
    format!(
        "Leaving factory {} brings the {} sat that are yours {from}:\n\n{cost}\n{away}{seen}",
        short(&quote.factory),
        with_msat(quote.lightning_msat),
    )
}

pub(super) async fn export(context: &Context, factory: &str) -> Result<(), CliError> {
    let config = context.config()?;
    let store = context.store().await?;
    let factory = context.factory(&store, factory).await?;
    let export = client::export(&store, config.coordinator.as_deref(), factory).await?;
    let text = serde_json::to_string_pretty(&export).map_err(std::io::Error::other)?;
    context.print(&export, &text)
}

pub(super) async fn address(context: &Context) -> Result<(), CliError> {
    let config = context.config()?;
    let address = match context.holder("address").await? {
        Holder::Other(_) => {
            let answer = context
                .ask(&context.store().await?, Request::Address)
                .await?;
            answer.as_str().unwrap_or_default().to_owned()
        }
        Holder::Us(_lock) => context
            .client(config)
            .await?
            .new_address()
            .await?
            .to_string(),
    };
    context.print(&json!({ "address": address }), &address)
}

pub(super) async fn balance(context: &Context) -> Result<(), CliError> {
    let config = context.config()?;
    let Counted { balance, channels }: Counted = match context.holder("balance").await? {
        Holder::Other(_) => {
            let answer = context
                .ask(&context.store().await?, Request::Balance)
                .await?;
            serde_json::from_value(answer).map_err(std::io::Error::other)?
        }
        Holder::Us(_lock) => {
            let client = context.client(config).await?;
            client.sync().await?;
            client.counted().await?
        }
    };
    let store = context.store().await?;
    let account = client::account(&store, &channels, Some(balance.height)).await?;
    let lightning = balance.lightning;
    let mut table = Table::new(["what", "sat"]);
    for (what, sat) in [
        ("confirmed coins", balance.confirmed_sat),
        ("coins on their way", balance.unconfirmed_sat),
        ("block rewards, not mature yet", balance.immature_sat),
        (
            "payouts of timeouts, confirmed (`sweep` moves them)",
            balance.payouts_sat,
        ),
        (
            "payouts of timeouts, on their way",
            balance.payouts_coming_sat,
        ),
        (
            "out of closed channels, on their way",
            lightning.lightning_closing_sat,
        ),
    ] {
        table.row([what.to_owned(), grouped(sat)]);
    }
    table.row([
        "on Lightning".to_owned(),
        with_msat(lightning.lightning_msat),
    ]);
    table.row(["total".to_owned(), grouped(balance.total_sat)]);
    let text = format!(
        "{}\n{}Over Lightning you can send {} sat and receive {} sat now.\nChannels in factories that can still be used hold {} sat; what is not yours on Lightning is the coordinator's.\n{}As of height {}.",
        table.render(),
        held_text(balance.held_for_orders_msat),
        with_msat(lightning.lightning_spendable_msat),
        with_msat(lightning.lightning_receivable_msat),
        grouped(balance.in_factories_sat),
        account_text(&account, None),
        balance.height
    );
    context.print(&BalanceShown { balance, account }, &text)
}

/// What is paid for a channel that is not there yet.
fn held_text(msat: u64) -> String {
    match msat {
        0 => String::new(),
        msat => format!(
            "The coordinator holds {} sat for what you ordered (`limit purchases`); they are no part of the total, and come back if nothing comes of it.\n",
            with_msat(msat)
        ),
    }
}

pub(super) async fn sweep(context: &Context, feerate: Option<u64>) -> Result<(), CliError> {
    let config = context.config()?;
    let feerate = feerate.and_then(FeeRate::from_sat_per_vb);
    let swept: Value = match context.holder("sweep").await? {
        Holder::Other(_) => {
            let request = Request::Sweep {
                sat_per_kwu: feerate.map(FeeRate::to_sat_per_kwu),
            };
            context.ask(&context.store().await?, request).await?
        }
        Holder::Us(_lock) => {
            let client = context.client(config).await?;
            client.sync().await?;
            json!(client::sweep(&client, feerate).await?)
        }
    };
    let swept: Swept = serde_json::from_value(swept).map_err(std::io::Error::other)?;
    let text = format!(
        "{} payouts, {} sat, are on their way into the wallet for a fee of {} sat: {}",
        swept.payouts,
        grouped(swept.sat),
        grouped(swept.fee_sat),
        swept.txid
    );
    context.print(&swept, &text)
}

#[cfg(test)]
pub(super) mod tests {
    use factory_tree::ids::FactoryId;

    use super::*;
    use crate::client::{DoubleSaleView, LeavingView};

    fn quoted(over: bool, path_transactions: usize) -> Quote {
        Quote {
            factory: FactoryId([7; 32]),
            state: "left",
            over,
            on_chain: None,
            on_chain_words: Some("Its channels are closed on the chain.".to_owned()),
            exit: None,
            capacity_sat: 0,
            channels: 0,
            lightning_msat: 0,
            pending: 0,
            expiry_policy: ExpiryPolicy::ClientRefund,
            expiry_height: 5_000,
            path_transactions,
            path_vbytes: 0,
            forced_siblings: 0,
            least_delay_blocks: 0,
            worst_delay_blocks: 0,
            coverage_sat: 0,
            coverage_path_sat: 0,
            coverage_channel_sat: 0,
            coverage_sold_sat: 0,
            coverage_stock_sat: 0,
            coins: None,
            quotes: Vec::new(),
        }
    }

    #[test]
    fn of_what_is_over_it_is_told_where_the_money_went_and_no_price() {
        for path in [0, 3] {
            let text = quote_text(&quoted(true, path));
            assert!(text.starts_with("There is nothing left to exit"), "{text}");
            assert!(text.contains("(it is left): Its channels are"), "{text}");
        }
        let text = quote_text(&quoted(false, 1));
        assert!(text.starts_with("Leaving factory"), "{text}");
        assert!(text.ends_with("closed on the chain."), "{text}");
    }

    /// Of who was brought to the chain by a mate.
    pub(in crate::cli) fn open_on_the_chain() -> Quote {
        Quote {
            channels: 2,
            ..quoted(false, 0)
        }
    }

    #[test]
    fn to_leave_what_is_on_the_chain_and_open_costs_nothing_and_closes_it() {
        let text = quote_text(&open_on_the_chain());
        assert!(text.starts_with("Leaving factory"), "{text}");
        let due = "no transaction to pay for; leaving closes 2 channels";
        assert!(text.contains(due), "{text}");
        assert!(!text.contains("nothing left to exit"), "{text}");
        assert!(!text.contains("cost sat"), "{text}");
        let text = quote_text(&quoted(false, 0));
        assert!(text.contains("no channel of yours is open there"), "{text}");
        assert!(!text.contains("0 channels"), "{text}");
    }

    #[test]
    fn a_double_sale_at_no_known_height_is_told_without_one() {
        let told = |at_height| {
            let refused = DoubleSaleView {
                factory: FactoryId([7; 32]),
                at_height,
                words: "Leave.".to_owned(),
            };
            let account = Account {
                double_sales: vec![refused],
                ..Account::default()
            };
            account_text(&account, None)
        };
        assert!(told(9).ends_with("Leave. (at block 9)\n"), "{}", told(9));
        assert!(told(0).ends_with(": Leave.\n"), "{}", told(0));
    }

    #[test]
    fn what_is_held_for_an_order_has_a_line_of_its_own() {
        let text = held_text(2_500_000);
        assert!(text.contains("holds 2 500.000 sat for"), "{text}");
        assert!(held_text(0).is_empty());
    }

    #[test]
    fn who_leaves_reads_what_the_exit_does() {
        let leaving = LeavingView {
            factory: FactoryId([7; 32]),
            words: "the state has to wait until height 9".to_owned(),
            until_height: Some(9),
        };
        let account = Account {
            leaving: vec![leaving],
            ..Account::default()
        };
        let text = account_text(&account, None);
        assert!(text.contains("has to wait until height 9; keep"), "{text}");
        assert!(!text.contains("Next"), "{text}");
    }

    #[test]
    fn the_account_is_covered_away_and_awake() {
        let account = Account {
            coverage_sat: 1_500,
            coverage_awake_sat: 2_500,
            ..Account::default()
        };
        let text = account_text(&account, None);
        let due = "covered if the coordinator breaks off: 1 500 sat away, 2 500 sat awake\n";
        assert!(text.ends_with(due), "{text}");
        // What lies outside of factories is part of the account, and of no coverage.
        let outside = Account {
            balance_msat: 12_098_500,
            outside_msat: 12_098_500,
            ..account
        };
        let text = account_text(&outside, None);
        let due = "2 500 sat awake, for what is in factories; nothing of the 12 098.500 sat outside of them\n";
        assert!(text.ends_with(due), "{text}");
    }

    #[test]
    fn an_exit_under_way_says_where_its_channels_and_its_coins_are() {
        let at = crate::client::QuoteAt {
            feerate_sat_per_vb: 1,
            transactions: 1,
            vbytes: 300,
            cost_sat: 300,
            timeouts_cost_sat: 0,
            coin_needed_sat: 630,
            coins_suffice: Some(false),
        };
        let before = Quote {
            lightning_msat: 19_000_000,
            quotes: vec![at],
            ..quoted(false, 1)
        };
        let text = quote_text(&before);
        assert!(text.contains("do not suffice"), "{text}");
        let exit = InFlight {
            goal: Goal::Leave,
            progress: "waiting".to_owned(),
            until_height: None,
            done_height: None,
            fees_sat: 640,
        };
        let text = quote_text(&Quote {
            exit: Some(InFlight {
                fees_sat: 0,
                ..exit.clone()
            }),
            ..before.clone()
        });
        assert!(text.contains("do not suffice"), "{text}");
        let text = quote_text(&Quote {
            exit: Some(exit),
            ..before
        });
        let due = "brings the 19 000.000 sat that are yours of its closed channels:";
        assert!(text.contains(due), "{text}");
        assert!(text.contains("at work in this exit"), "{text}");
        assert!(!text.contains("do not suffice"), "{text}");
    }
}
