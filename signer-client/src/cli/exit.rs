//! `exit`: leave by oneself.

use std::io::Write;

use bitcoin::{Amount, FeeRate};
use factory_tree::ids::FactoryId;
use factory_tree::units::Height;
use serde_json::json;

use super::CliError;
use super::args::Exit;
use super::context::{Context, Holder};
use super::follow::{self, Reached};
use super::show::{nothing_to_leave, nothing_to_pay, staying_away};
use super::table::{grouped, with_msat};
use crate::client::{Quote, Shutdown, SignerClient, Tasks, quote, request_exit};
use crate::lightning::{ChannelView, of_factory};
use crate::lock::DataDirLock;
use crate::store::{Goal, Request, SharedStore};

/// Of channels that hold nothing of the wallet's.
const NOTHING_YOURS: &str =
    "Nothing on Lightning is yours there, so nothing of it goes into your wallet.";
/// Shown where neither a feerate nor an estimate is at hand, in sat/vB.
const EXAMPLE: u64 = 10;

pub(super) async fn run(context: &Context, options: Exit) -> Result<(), CliError> {
    let config = context.config()?;
    match context.holder("exit").await? {
        Holder::Other(_) => beside(context, &options).await,
        Holder::Us(_lock) if options.background => {
            let store = context.store().await?;
            let factory = context.factory(&store, &options.factory).await?;
            confirm(context, &options, &store, factory, None).await?;
            record(&store, factory, &options).await?;
            let text = format!(
                "Recorded. Nothing happens before `{}` is started.",
                context.again("run")
            );
            context.print(&json!({"factory": factory, "state": "requested"}), &text)
        }
        Holder::Us(lock) => {
            super::run::log(&config.log_level);
            let client = context.client(config).await?;
            alone(context, &options, &client, lock).await
        }
    }
}

/// Another process drives the exit; this one asks for it and looks on.
async fn beside(context: &Context, options: &Exit) -> Result<(), CliError> {
    let store = context.store().await?;
    let factory = context.factory(&store, &options.factory).await?;
    if let Some(finished) = finished(&store, factory).await? {
        return report(context, &store, factory, finished).await;
    }
    let coins = context.ask(&store, Request::Coins).await?;
    let coins: Vec<u64> = serde_json::from_value(coins).map_err(std::io::Error::other)?;
    let coins: Vec<Amount> = coins.into_iter().map(Amount::from_sat).collect();
    confirm(context, options, &store, factory, Some(&coins)).await?;
    record(&store, factory, options).await?;
    context.ask(&store, Request::Wake).await?;
    if options.background {
        let text = "The running signer-client leaves the factory. `status` shows how far it is.";
        return context.print(&json!({"factory": factory, "state": "requested"}), text);
    }
    let reached = tokio::select! {
        reached = follow::exit(&store, factory, options.to_the_end) => reached?,
        left = follow::left(context) => {
            left?;
            let text = format!(
                "the signer-client that drove the exit has ended; the exit goes on with `{}`",
                context.again("run")
            );
            return Err(CliError::Refused(text));
        }
    };
    report(context, &store, factory, reached).await
}

/// Nobody runs: this process does it.
async fn alone(
    context: &Context,
    options: &Exit,
    client: &SignerClient,
    mut lock: DataDirLock,
) -> Result<(), CliError> {
    let store = client.store();
    let factory = context.factory(store, &options.factory).await?;
    client.sync().await?;
    if let Some(finished) = finished(store, factory).await? {
        return report(context, store, factory, finished).await;
    }
    let coins = client.coins().await;
    confirm(context, options, store, factory, Some(&coins)).await?;
    record(store, factory, options).await?;
    let tasks = Tasks {
        connection: false,
        chain: true,
        answers: true,
        lightning: true,
    };
    lock.serve()?;
    eprintln!(
        "waiting; Ctrl-C is safe, the exit goes on with `{}`",
        context.again("run")
    );
    let (stop, shutdown) = Shutdown::new();
    let running = client.run(tasks, shutdown);
    tokio::pin!(running);
    let reached = tokio::select! {
        ended = &mut running => {
            ended?;
            return Err(CliError::Refused("stopped; start again to go on".to_owned()));
        }
        reached = follow::exit(store, factory, options.to_the_end) => reached?,
        () = super::run::wait_for_signal() => {
            let _ = stop.send(true);
            running.await?;
            let text = "stopped; the exit goes on when `exit` or `run` is started again";
            return Err(CliError::Refused(text.to_owned()));
        }
    };
    let _ = stop.send(true);
    running.await?;
    report(context, store, factory, reached).await
}

/// An exit that is done is not begun again.
async fn finished(store: &SharedStore, factory: FactoryId) -> Result<Option<Reached>, CliError> {
    let live = store.factory(factory).await?.is_live();
    let exits = store.exits().await?;
    let exit = exits.iter().find(|exit| exit.factory == factory);
    let done = exit.is_some_and(|exit| exit.progress.done.is_some());
    // What is closed is refused, with the reason.
    Ok((live && done).then_some(Reached::End))
}

async fn record(store: &SharedStore, factory: FactoryId, options: &Exit) -> Result<(), CliError> {
    let feerate = options.feerate.and_then(FeeRate::from_sat_per_vb);
    let max_fee = options.max_fee.map(Amount::from_sat);
    let tip = Height(store.live().await?.height);
    Ok(request_exit(store, factory, feerate, max_fee, tip).await?)
}

/// Shows what it means, and asks.
async fn confirm(
    context: &Context,
    options: &Exit,
    store: &SharedStore,
    factory: FactoryId,
    coins: Option<&[Amount]>,
) -> Result<(), CliError> {
    let feerate = options.feerate.unwrap_or(EXAMPLE);
    let quote = quote(store, factory, &[feerate], coins).await?;
    if let Some(text) = nothing_to_leave(&quote) {
        // An exit that is under way is followed to its end, and needs no second yes.
        let mut exit = quote.exit.iter();
        if !exit.any(|exit| exit.goal == Goal::Leave && exit.done_height.is_none()) {
            return Err(CliError::Refused(text));
        }
        eprintln!("{text}");
        return Ok(());
    }
    eprintln!("{}", explain(&quote));
    if let Some(budget) = options.max_fee {
        quote.within(Amount::from_sat(budget))?;
    }
    if options.yes {
        return Ok(());
    }
    if !context.interactive() {
        let text = "this cannot be taken back; say --yes where nobody can be asked";
        return Err(CliError::Usage(text.to_owned()));
    }
    eprint!("Leave? Type yes: ");
    std::io::stderr().flush()?;
    let mut answer = String::new();
    std::io::stdin().read_line(&mut answer)?;
    if answer.trim() == "yes" {
        Ok(())
    } else {
        Err(CliError::Refused("nothing was done".to_owned()))
    }
}

fn explain(quote: &Quote) -> String {
    let mut text = format!("Leaving factory {} by yourself:\n", quote.factory);
    let free = nothing_to_pay(quote);
    for at in quote.quotes.iter().filter(|_| free.is_none()) {
        text.push_str(&format!(
            "  {} transactions, {} vB with what pays for them; at {} sat/vB {} sat, from your own coins.\n",
            at.transactions,
            grouped(at.vbytes),
            at.feerate_sat_per_vb,
            grouped(at.cost_sat)
        ));
        match (at.coins_suffice, &quote.coins) {
            (Some(true), Some(coins)) => text.push_str(&format!(
                "  Your {} confirmed coins ({} sat) suffice.\n",
                coins.coins,
                grouped(coins.available_sat)
            )),
            (Some(false), Some(coins)) if coins.coins == 0 => text.push_str(&format!(
                "  WARNING: these transactions pay no fees themselves, and you have no confirmed coin that pays for them. Send one of {} sat to `address`: they wait until it is confirmed.\n",
                grouped(at.coin_needed_sat)
            )),
            (Some(false), Some(coins)) => text.push_str(&format!(
                "  WARNING: your {} confirmed coins ({} sat) do not suffice at this feerate. Send a coin of {} sat to `address`.\n",
                coins.coins,
                grouped(coins.available_sat),
                grouped(at.coin_needed_sat)
            )),
            _ => text.push_str("  Whether your coins suffice is not known here.\n"),
        }
    }
    if quote.forced_siblings > 0 {
        text.push_str(&format!(
            "  {} transactions of others have to be published as well, by others.\n",
            quote.forced_siblings
        ));
    }
    let coinless = quote.coins.is_some_and(|coins| coins.coins == 0);
    if free.is_some() && coinless && quote.lightning_msat > 0 {
        text.push_str("  WARNING: what closes a channel pays no fees itself, and you have no confirmed coin that pays for it. Send one to `address`, or wait until the coordinator closes the channel.\n");
    }
    text.push_str(&match free {
        Some(free) => format!("  {free}"),
        None => format!(
            "  It takes {} blocks at least, {} at worst, until the channel is on the chain. Then it is closed.",
            quote.least_delay_blocks, quote.worst_delay_blocks
        ),
    });
    text.push_str(&match (quote.lightning_msat, quote.pending) {
        (0, 0) => format!(" {NOTHING_YOURS}"),
        (0, _) => " What payments under way bring goes into your wallet once they are decided."
            .to_owned(),
        (msat, _) => format!(
            " The {} sat that are yours on Lightning go into your wallet some 144 blocks later, less the fees of two small transactions.",
            with_msat(msat)
        ),
    });
    text.push_str(&format!("\n  {}", staying_away(quote)));
    text
}

/// What is said once the leaf is confirmed.
fn leaf_text(channels: &[ChannelView], expiry: Height) -> String {
    let is_empty = |channel: &ChannelView| {
        channel.ours_msat == 0 && channel.closing_sat == 0 && channel.pending == 0
    };
    match !channels.is_empty() && channels.iter().all(is_empty) {
        true => format!("The leaf is confirmed. {NOTHING_YOURS}"),
        false => format!(
            "The leaf is confirmed. What is yours on Lightning follows it into your wallet, by transactions that take a confirmed coin for their fees: keep `signer-client run` going until then. If that fails, the channel's timeout pays after height {expiry}."
        ),
    }
}

async fn report(
    context: &Context,
    store: &SharedStore,
    factory: FactoryId,
    reached: Reached,
) -> Result<(), CliError> {
    let row = store.factory(factory).await?;
    let exits = store.exits().await?;
    let exit = exits.iter().find(|exit| exit.factory == factory);
    let progress = exit.map_or(String::new(), |exit| exit.progress.text.clone());
    let (state, text) = match reached {
        Reached::Leaf => (
            "leaf_confirmed",
            leaf_text(&of_factory(store, factory).await?, row.expiry),
        ),
        Reached::End => {
            let done = exit.and_then(|exit| exit.progress.done);
            let at = done.map_or(String::new(), |height| format!(" (since height {height})"));
            ("done", format!("The exit is {progress}{at}."))
        }
    };
    let value = json!({"factory": factory, "state": state, "progress": progress});
    context.print(&value, &text)
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use bitcoin::Network;
    use clap::Parser;
    use factory_tree::params::{FactoryParams, Profile};
    use factory_tree::testing::TestFactory;

    use super::*;
    use crate::cli::args::{Args, Command};
    use crate::cli::show::tests::open_on_the_chain;
    use crate::client::{Coins, QuoteAt};
    use crate::exit::tests::row;
    use crate::store::{ExitRow, JoinRow, Progress};

    /// A wallet in one factory, in this directory, and what it is told.
    async fn leaver(dir: &Path, more: &[&str]) -> (Context, Exit, SharedStore, FactoryId) {
        let path = dir.display().to_string();
        let words = ["x", "--data-dir", path.as_str(), "exit", "0", "--yes"];
        let args = Args::try_parse_from(words.iter().chain(more).copied()).unwrap();
        let context = Context::new(&args).unwrap();
        let Command::Exit(options) = args.command else {
            panic!("not exit");
        };
        let store = context.store().await.unwrap();
        let params = FactoryParams::profile(Profile::Lite, Network::Regtest);
        let kit = TestFactory::new(3, params, 2).unwrap().sign().kit(0);
        let (factory, row) = (kit.factory_id, row(&kit));
        let join = JoinRow {
            join_nonce: kit.join_nonce,
            round: row.round,
            leaf_id: kit.leaf_id,
            factory_key: kit.factory_key,
            channel_key: kit.channel_key,
            payout_script: kit.payout_script.clone(),
            common_pin: row.common_pin,
            capacity: kit.capacity,
        };
        store.record_join(&join).await.unwrap();
        let text = kit.to_json().unwrap();
        store.store_kit(&row, text.as_bytes()).await.unwrap();
        (context, options, store, factory)
    }

    #[tokio::test]
    async fn a_budget_that_no_node_relays_the_path_for_is_refused_and_nothing_is_recorded() {
        let dir = tempfile::tempdir().unwrap();
        let (context, options, store, factory) = leaver(dir.path(), &["--max-fee", "5"]).await;
        let asked = confirm(&context, &options, &store, factory, None).await;
        let recorded = record(&store, factory, &options).await;
        for refused in [asked, recorded] {
            let error = refused.unwrap_err();
            assert_eq!(error.exit_code(), 2, "{error}");
            assert!(error.to_string().contains("a budget of 5 sat"), "{error}");
        }
        assert!(store.exits().await.unwrap().is_empty());
        // At 1 sat/vB it can be had.
        let quote = quote(&store, factory, &[1], None).await.unwrap();
        let options = Exit {
            max_fee: quote.quotes.first().map(|at| at.cost_sat),
            ..options
        };
        record(&store, factory, &options).await.unwrap();
        assert_eq!(store.exits().await.unwrap().len(), 1);
    }

    #[tokio::test]
    async fn what_is_over_is_not_left_whoever_says_yes() {
        let dir = tempfile::tempdir().unwrap();
        let (context, options, store, factory) = leaver(dir.path(), &[]).await;
        let ask = async || confirm(&context, &options, &store, factory, None).await;
        ask().await.unwrap();
        let over = Some(Height(9));
        store.set_abandoned(factory, over).await.unwrap();
        let error = ask().await.unwrap_err();
        assert_eq!(error.exit_code(), 4, "{error}");
        assert!(
            error.to_string().contains("nothing left to exit"),
            "{error}"
        );
        // An exit that is under way is followed.
        let exit = ExitRow {
            factory,
            goal: Goal::Leave,
            feerate: None,
            max_fee: None,
            requested: Height(8),
            progress: Progress::default(),
        };
        store.request_exit(&exit).await.unwrap();
        ask().await.unwrap();
        let done = Progress {
            done: over,
            ..Progress::default()
        };
        store.set_progress(factory, &done).await.unwrap();
        assert_eq!(ask().await.unwrap_err().exit_code(), 4);
    }

    #[test]
    fn who_leaves_an_open_channel_on_the_chain_is_told_that_it_is_closed() {
        let text = explain(&open_on_the_chain());
        assert!(text.contains("leaving closes 2 channels"), "{text}");
        assert!(!text.contains("nothing left to exit"), "{text}");
    }

    #[test]
    fn of_empty_channels_nothing_is_promised() {
        let text = explain(&open_on_the_chain());
        assert!(text.contains(NOTHING_YOURS), "{text}");
        assert!(!text.contains("go into your wallet some"), "{text}");
        let of = |ours_msat| ChannelView::sample(FactoryId([7; 32]), ours_msat, 9_000);
        let text = leaf_text(&[of(0), of(0)], Height(500));
        assert!(text.contains(NOTHING_YOURS), "{text}");
        assert!(!text.contains("timeout"), "{text}");
        let text = leaf_text(&[of(0), of(5_000)], Height(500));
        assert!(text.contains("timeout pays after height 500"), "{text}");
    }

    #[test]
    fn who_has_no_coins_for_fees_is_told_what_that_means() {
        let none = Some(Coins {
            available_sat: 0,
            coins: 0,
        });
        let on_the_chain = Quote {
            lightning_msat: 5_000_000,
            coins: none,
            ..open_on_the_chain()
        };
        let text = explain(&on_the_chain);
        assert!(text.contains("no confirmed coin"), "{text}");
        assert!(text.contains("until the coordinator closes"), "{text}");
        let at = QuoteAt {
            feerate_sat_per_vb: 1,
            transactions: 3,
            vbytes: 900,
            cost_sat: 900,
            timeouts_cost_sat: 0,
            coin_needed_sat: 1_230,
            coins_suffice: Some(false),
        };
        let inside = Quote {
            path_transactions: 3,
            quotes: vec![at],
            ..on_the_chain
        };
        let text = explain(&inside);
        assert!(text.contains("pay no fees themselves"), "{text}");
        assert!(text.contains("1 230 sat to `address`"), "{text}");
        let rich = Quote {
            lightning_msat: 5_000_000,
            coins: Some(Coins {
                available_sat: 9_000,
                coins: 1,
            }),
            ..open_on_the_chain()
        };
        assert!(!explain(&rich).contains("no confirmed coin"));
    }
}
