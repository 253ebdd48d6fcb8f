//! Getting out: asks `factory_tree::exit` what is to be published now, given what the chain says,
//! and publishes it. Nothing is remembered but the wish to leave: everything else is derived from
//! the chain at every block, so a crash, a reorg or a node's restart changes nothing.

mod fees;
mod publish;
mod quote;
mod stock;
#[cfg(test)]
pub(crate) mod tests;
mod whereabouts;

use std::collections::BTreeMap;

use bitcoin::OutPoint;
use factory_tree::exit::{ChainView, End, ExitPlan, Meaning, Spender, Step};
use factory_tree::ids::FactoryId;
use factory_tree::kit::{ExitKit, KitTx};
use factory_tree::params::ExpiryPolicy;
use factory_tree::tx::TxKind;
use factory_tree::units::{Blocks, Height};

use crate::client::{Inner, Warning};
use crate::config::ExitConfig;
use crate::error::{Error, Result};
use crate::event::Event;
use crate::lightning::{Ending, ending, leave};
use crate::store::{ExitRow, FactoryRow, Goal, Progress, SharedStore};
pub(crate) use fees::RELAXED_TARGET;
use publish::{Published, Publisher};
pub(crate) use quote::{coins_suffice, path_is_paid};
pub(crate) use whereabouts::{Unrolled, Whereabouts};

/// What a kit's transaction is, as the export names it.
pub(crate) fn kind_name(tx: &KitTx) -> String {
    match tx.kind {
        TxKind::Static => "static",
        TxKind::Kickoff => "kickoff",
        TxKind::State => "state",
        TxKind::Leaf => "leaf",
        TxKind::StockChain => "stock_chain",
        TxKind::Timeout => "timeout",
        TxKind::Poison => "poison",
    }
    .to_owned()
}

/// Brings every exit forward as far as the chain lets it.
pub(crate) async fn drive(client: &Inner, tip: Height) -> Result<()> {
    let factories = client.store.factories().await?;
    // What moved elsewhere is not fetched a second time: its timeouts and its path are the coordinator's affair.
    let ours = |row: &&FactoryRow| row.is_live() && !row.is_given_away();
    let open: Vec<&FactoryRow> = factories.iter().filter(ours).collect();
    if open.is_empty() {
        return Ok(());
    }
    let view = view(&client.store, tip).await?;
    let exits: BTreeMap<FactoryId, ExitRow> = client
        .store
        .exits()
        .await?
        .into_iter()
        .map(|exit| (exit.factory, exit))
        .collect();
    let mut outcome = Ok(());
    for row in open {
        let driven = drive_one(client, row, exits.get(&row.factory), &view).await;
        // One exit that cannot go on must not keep the others from it.
        if let Err(error) = driven {
            tracing::warn!(factory = %row.factory, %error, "exit");
            outcome = Err(error);
        }
    }
    outcome
}

/// What the store knows of the chain.
pub(crate) async fn view(store: &SharedStore, tip: Height) -> Result<ChainView> {
    let seen = store.seen_txs().await?;
    let spends = store.spends().await?;
    let confirmed = seen
        .iter()
        .map(|seen| (seen.tx.compute_txid(), seen.height));
    let spent = spends.iter().map(|spend| {
        let spender = Spender {
            txid: spend.spender,
            height: spend.height,
        };
        (spend.outpoint, spender)
    });
    Ok(ChainView {
        tip,
        confirmed: confirmed.collect(),
        spent: spent.collect::<BTreeMap<OutPoint, Spender>>(),
    })
}

async fn drive_one(
    client: &Inner,
    row: &FactoryRow,
    exit: Option<&ExitRow>,
    view: &ChainView,
) -> Result<()> {
    let Some(kit) = client.kits.sound(row.factory).await? else {
        return Ok(());
    };
    let exit = match (exit, unasked(&client.config.exit, row, &kit, view)) {
        // What was begun for the sake of the stock does not keep the rest from being left in time.
        (Some(exit), Some(Goal::Leave)) if exit.goal == Goal::Timeout => {
            start(client, row, Goal::Leave, view.tip).await?
        }
        (Some(exit), _) => exit.clone(),
        (None, Some(goal)) => start(client, row, goal, view.tip).await?,
        (None, None) => return warn(client, row, &kit, view.tip).await,
    };
    let step = stock::due(&kit, exit.goal, view);
    if exit.goal == Goal::Leave && step.funded {
        leave(client, &kit, view.spent.contains_key(&row.funding)).await;
    }
    let ending = ending(client, &kit, &step).await?;
    let progress = if step.funded {
        let published = publish_all(client, &exit, &kit, &step, view).await?;
        progress(&kit, &step, &published, &ending, view.tip)
    } else {
        Progress {
            text: "waiting for the factory's funding to be confirmed".to_owned(),
            ..Progress::default()
        }
    };
    let progress = match (&ending, exit.progress.done) {
        // Nothing new: the Lightning node does not run, or has not seen the block yet.
        (Ending::Unknown(_), Some(_)) => exit.progress.clone(),
        _ => progress,
    };
    report(client, row, &exit, &progress).await?;
    close(client, row, &step, &ending, view).await
}

/// What is to be done without being asked: what was sold from a stock is defended, which has its time; timeouts at `T`; and, where there are
/// none, leaving while that is possible.
fn unasked(config: &ExitConfig, row: &FactoryRow, kit: &ExitKit, view: &ChainView) -> Option<Goal> {
    row.confirmed?;
    let refund = kit.params.expiry_policy == ExpiryPolicy::ClientRefund;
    let late = view.tip >= leave_by(kit).minus(Blocks(kit.params.conf_margin));
    if !refund && late && config.auto_leave {
        return Some(Goal::Leave);
    }
    let step = stock::due(kit, Goal::Timeout, view);
    let due = !step.publish.is_empty() && config.auto_timeout;
    let over = refund && (due || !step.ends.is_empty());
    (over || stock::defends(kit, &step)).then_some(Goal::Timeout)
}

/// Where there are no timeouts, tells in the dying days that the factory must be left, and whether
/// there is something to pay for that.
async fn warn(client: &Inner, row: &FactoryRow, kit: &ExitKit, tip: Height) -> Result<()> {
    let reclaim = kit.params.expiry_policy == ExpiryPolicy::LspReclaim;
    let dying = tip >= leave_by(kit).minus(Blocks(kit.params.dying));
    if !reclaim || !dying || row.confirmed.is_none() {
        return Ok(());
    }
    let feerate = client.chain.fee_rate(RELAXED_TARGET).await?;
    let plan = ExitPlan::new(kit);
    let ends = |kind| matches!(kind, TxKind::Timeout | TxKind::Poison);
    let path = plan.steps.iter().filter(|step| !ends(step.kind));
    let sizes = path.map(|step| step.vbytes);
    let coins_suffice = path_is_paid(&client.coin_values().await, sizes, feerate);
    if client.first_time(row.factory, Warning::LeaveSoon) {
        client.events.emit(Event::LeaveSoon {
            factory: row.factory,
            leave_by_height: leave_by(kit).0,
            coins_suffice,
        });
    }
    Ok(())
}

/// `E`: a path that is to be confirmed in time must be begun by this height (protocol.md section 1).
pub(crate) fn leave_by(kit: &ExitKit) -> Height {
    kit.expiry
        .minus(kit.exit_delay)
        .minus(Blocks(kit.params.expiry_margin))
}

/// Whether the funding came into the chain so late that it is as deep as agreed only when the
/// factory should have been left already: nothing may be received in it.
pub(crate) fn is_late(row: &FactoryRow, kit: &ExitKit) -> bool {
    row.confirmed
        .is_some_and(|confirmed| would_be_late(row, kit, confirmed))
}

/// Whether a funding in the block at `confirmed` is too late.
pub(crate) fn would_be_late(row: &FactoryRow, kit: &ExitKit, confirmed: Height) -> bool {
    let more = Blocks(row.confirmations.saturating_sub(1));
    confirmed.plus(more) >= leave_by(kit)
}

/// Begins to leave, or to be paid by timeouts, where nobody asked.
pub(crate) async fn begin(client: &Inner, row: &FactoryRow, goal: Goal) -> Result<()> {
    let tip = Height(client.tip_height().await?);
    start(client, row, goal, tip).await.map(drop)
}

async fn start(client: &Inner, row: &FactoryRow, goal: Goal, tip: Height) -> Result<ExitRow> {
    let exit = ExitRow {
        factory: row.factory,
        goal,
        feerate: None,
        max_fee: None,
        requested: tip,
        progress: Progress::default(),
    };
    client.store.request_exit(&exit).await?;
    Ok(exit)
}

async fn publish_all(
    client: &Inner,
    exit: &ExitRow,
    kit: &ExitKit,
    step: &Step,
    view: &ChainView,
) -> Result<Vec<Published>> {
    let mut published = Vec::with_capacity(step.publish.len());
    if step.publish.is_empty() {
        return Ok(published);
    }
    let publisher = Publisher::new(client, exit, kit, view).await?;
    for index in &step.publish {
        let Some(tx) = kit.txs.get(*index) else {
            continue;
        };
        match publisher.publish(tx).await {
            Ok(what) => published.push(what),
            Err(error @ (Error::Chain(_) | Error::Store(_))) => return Err(error),
            Err(error) => published.push(Published::Stuck(error.to_string())),
        }
    }
    Ok(published)
}

/// In one line, for people.
fn progress(
    kit: &ExitKit,
    step: &Step,
    published: &[Published],
    ending: &Ending,
    tip: Height,
) -> Progress {
    let stuck = published.iter().find_map(|published| match published {
        Published::Stuck(why) => Some(why.clone()),
        Published::Waiting => None,
    });
    if let Some(text) = stuck {
        return Progress {
            text,
            ..Progress::default()
        };
    }
    if let Some(text) = on_lightning(ending) {
        return Progress {
            text,
            ..Progress::default()
        };
    }
    if step.only_stock_left(kit) && !step.is_done() {
        return Progress {
            text: format!("{}; a share in the stock may follow", outcome(kit, step)),
            until: None,
            done: Some(tip),
        };
    }
    let name = |index: &usize| kit.txs.get(*index).map(describe).unwrap_or_default();
    if !step.publish.is_empty() {
        let names: Vec<String> = step.publish.iter().map(name).collect();
        return Progress {
            text: format!("waiting for {} to be confirmed", names.join(" and ")),
            ..Progress::default()
        };
    }
    if let Some(waiting) = step.waiting.iter().min_by_key(|waiting| waiting.until) {
        return Progress {
            text: format!("{} has to wait", name(&waiting.index)),
            // The tip at which the next block can hold it.
            until: Some(waiting.until.minus(Blocks(1))),
            done: None,
        };
    }
    if has_no_way(step) {
        return Progress {
            text: "nothing can be published: without timeouts only leaving in time helps"
                .to_owned(),
            ..Progress::default()
        };
    }
    Progress {
        text: outcome(kit, step),
        until: None,
        done: Some(tip),
    }
}

/// What Lightning is still at work on.
fn on_lightning(ending: &Ending) -> Option<String> {
    match ending {
        Ending::Nothing | Ending::Done(_) => None,
        Ending::Closing => Some("waiting for the channel's commitment to be confirmed".to_owned()),
        // How much is `balance`'s: one channel's commitment may come later than another's.
        Ending::OnItsWay => Some(
            "the channel is closed; what is yours of it is on its way into the wallet (`balance` has the sum)"
                .to_owned(),
        ),
        Ending::Unknown(why) => Some(why.clone()),
    }
}

fn describe(tx: &KitTx) -> String {
    match tx.kind {
        TxKind::Timeout => format!("the timeout of the {}", spent_name(tx)),
        TxKind::Poison => format!("the poison of the {}", spent_name(tx)),
        TxKind::StockChain => "the next sale from the stock".to_owned(),
        _ => format!("the {}", kind_name(tx)),
    }
}

/// What a kit's transaction spends, in the words of the export and the log.
pub(crate) fn spent_name(tx: &KitTx) -> String {
    use factory_tree::factory::SpentKind;
    match tx.spends.kind {
        SpentKind::Funding => "funding",
        SpentKind::Static => "static",
        SpentKind::Kickoff => "kickoff",
        SpentKind::State => "state",
        SpentKind::FirstStage => "first_stage",
        SpentKind::Stock => "stock",
        SpentKind::Channel => "channel",
    }
    .to_owned()
}

const fn meaning_text(meaning: Meaning, sold: bool) -> &'static str {
    match meaning {
        Meaning::SpentTogether => "all its keys signed something else",
        Meaning::Reclaimed => "the coordinator took at the expiry what was not published",
        Meaning::OtherState => "another state of the factory was published",
        Meaning::StockSpent if sold => "the stock was taken, with what was sold from it",
        Meaning::StockSpent => "the coordinator took its unsold stock",
    }
}

fn has_no_way(step: &Step) -> bool {
    let stuck = |end: &End| matches!(end, End::NoTimeout { .. });
    step.ends.iter().any(stuck)
}

fn outcome(kit: &ExitKit, step: &Step) -> String {
    let (mut texts, mut closed) = (Vec::new(), 0u32);
    for end in &step.ends {
        match end {
            End::Paid { amount, .. } => texts.push(format!("paid {} sat", amount.to_sat())),
            End::Foreign { meaning, .. } => {
                texts.push(meaning_text(*meaning, !kit.sales.is_empty()).to_owned());
            }
            End::Lightning { .. } => closed = closed.saturating_add(1),
            End::NoTimeout { .. } => {
                texts.push("an output that no timeout pays back".to_owned());
            }
        }
    }
    match closed {
        0 => {}
        1 => texts.push("the channel's balance was paid out".to_owned()),
        several => texts.push(format!("the balances of {several} channels were paid out")),
    }
    format!("done: {}", texts.join(", "))
}

/// Stores and tells how far the exit is, when that has changed.
async fn report(
    client: &Inner,
    row: &FactoryRow,
    exit: &ExitRow,
    progress: &Progress,
) -> Result<()> {
    let mut progress = progress.clone();
    let known = &exit.progress;
    // The height it was first found to be done at.
    progress.done = progress.done.map(|now| known.done.unwrap_or(now));
    if progress == *known {
        return Ok(());
    }
    let factory = row.factory;
    client.store.set_progress(factory, &progress).await?;
    let new = known.text.is_empty() || known.text == "requested";
    if new && exit.goal == Goal::Leave {
        client.events.emit(Event::ExitStarted { factory });
    }
    match progress.done {
        Some(_) if known.done.is_none() => client.events.emit(Event::ExitDone { factory }),
        Some(_) => {}
        None => client.events.emit(Event::ExitWaiting {
            factory,
            until_height: progress.until.map(|height| height.0),
            what: progress.text.clone(),
        }),
    }
    Ok(())
}

/// A factory that is done with, to depth, is not looked at any more.
async fn close(
    client: &Inner,
    row: &FactoryRow,
    step: &Step,
    ending: &Ending,
    view: &ChainView,
) -> Result<()> {
    if !step.is_done() || has_no_way(step) || step.ends.is_empty() {
        return Ok(());
    }
    let swept = match ending {
        Ending::Nothing => None,
        Ending::Done(swept) => *swept,
        Ending::Closing | Ending::OnItsWay | Ending::Unknown(_) => return Ok(()),
    };
    let height = |end: &End| match end {
        End::Paid { height, .. } => Some(*height),
        End::Foreign { outpoint, .. } => view.spent.get(outpoint).map(|spender| spender.height),
        End::Lightning { height, .. } => Some(*height),
        End::NoTimeout { .. } => None,
    };
    let last = step.ends.iter().filter_map(height).chain(swept).max();
    let finally = Blocks(client.config.exit.final_depth.saturating_sub(1));
    if last.is_some_and(|last| last.plus(finally) <= view.tip) {
        client.store.set_closed(row.factory, Some(view.tip)).await?;
    }
    Ok(())
}
