//! What a wallet shows: status, factories, balance, what an exit would cost. All of it from the
//! store, so that it can be had beside a running process, and without the passphrase.

use bitcoin::{Amount, OutPoint};
use factory_tree::exit::{ChainView, ExitPlan, Goal, TxState, next, states};
use factory_tree::ids::{ClientId, FactoryId};
use factory_tree::kit::ExitKit;
use factory_tree::params::ExpiryPolicy;
use factory_tree::tx::{CHILD_VBYTES, TxKind};
use factory_tree::units::{Blocks, Height};
use serde::{Deserialize, Serialize};

use super::SignerClient;
use super::account::{Account, Usable, account, capacity, standing};
use super::kits::KitCache;
use crate::error::{Error, Result};
use crate::exit::{Unrolled, Whereabouts, coins_suffice, is_late, leave_by};
use crate::lightning::{ChannelView, LightningBalance, of_factory, stored};
use crate::lsps1::held as held_for_orders;
use crate::store::{ExitRow, FactoryRow, Live, SharedStore, StoreError};

/// Feerates an exit is quoted at, where none is asked for, in sat/vB.
pub const QUOTED: [u64; 3] = [1, 10, 50];

/// One authoritative view of what is in flight.
#[derive(Clone, Debug, Serialize)]
pub struct Status {
    /// Whose wallet it is.
    pub node_id: ClientId,
    /// The network.
    pub network: bitcoin::Network,
    /// The coordinator's connection string, if one is configured.
    pub coordinator: Option<String>,
    /// Whether a process runs on this data directory.
    pub running: bool,
    /// What that process is doing.
    #[serde(flatten)]
    pub live: Live,
    /// The capacity asked for, if the wallet wants to be in the next factory (0: the coordinator's
    /// default).
    pub interest_sat: Option<u64>,
    /// What became of that wish so far.
    pub interest_note: Option<String>,
    /// The account in plain words.
    pub account: Account,
    /// Channels outside of factories, as the Lightning node said last.
    pub channels: Vec<ChannelView>,
    /// Every factory.
    pub factories: Vec<FactoryView>,
}

/// One factory.
#[derive(Clone, Debug, Serialize)]
pub struct FactoryView {
    /// Its id.
    pub factory: FactoryId,
    /// One word for what it is doing: `kit_stored`, `unconfirmed`, `failed`, `confirming`,
    /// `usable`, `handing_over` (everything has moved, its keys are on their way), `handed_over`,
    /// `unrolling` (its tree is coming into the chain), `left` (its channels are closed on the chain; at most a share in the stock may follow),
    /// `paid` (all there is to get is paid), `ended` (others spent all of it), `late` (confirmed too near its end to be used), `abandoned`, `closed`; or `damaged`
    /// if its kit is no good any more.
    pub state: &'static str,
    /// Whether nothing of it is left to be published for a channel: nothing is covered in it, and there is nothing to leave.
    pub over: bool,
    /// How far its tree has come into the chain, once its funding output is spent.
    pub on_chain: Option<OnChain>,
    /// What that means for this wallet, and what comes next, in a sentence.
    pub on_chain_words: Option<String>,
    /// `client_refund` or `lsp_reclaim`; nothing if the kit is no good.
    pub expiry_policy: Option<ExpiryPolicy>,
    /// What its channels hold that can still be used: nothing where it is over, or this wallet leaves. If the kit is no good, what was agreed.
    pub capacity_sat: u64,
    /// Its funding output.
    pub funding: OutPoint,
    /// Height of the funding's block.
    pub confirmed_height: Option<u32>,
    /// Height it was proposed at.
    pub birth_height: u32,
    /// `T`.
    pub expiry_height: u32,
    /// An exit must begin by this height where there are no timeouts.
    pub leave_by_height: Option<u32>,
    /// What the timeouts pay, whatever happens, net.
    pub coverage_sat: u64,
    /// What is sure if the coordinator breaks off wherever it likes and the wallet looks every 60 blocks, what it bought included; net.
    pub coverage_awake_sat: u64,
    /// What a month in it was agreed to cost.
    pub fee_sat: u64,
    /// Its channels, as the Lightning node said last: the one on its leaf, and those that were bought.
    pub channels: Vec<ChannelView>,
    /// The exit under way or done.
    pub exit: Option<InFlight>,
}

/// How far a factory's tree has come into the chain, for this wallet.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct OnChain {
    /// Whether this wallet leaves it by itself; else somebody else does.
    pub by_this_wallet: bool,
    /// Transactions of this wallet's path.
    pub path_transactions: usize,
    /// Those of them that are confirmed.
    pub path_confirmed: usize,
    /// Height of the block of the leaf, which brings this wallet's channels to the chain.
    pub leaf_height: Option<u32>,
    /// This wallet's channels of which a payment could still go.
    pub channels_open: usize,
    /// What timeouts and poisons have paid to this wallet.
    pub paid_sat: u64,
}

/// An exit under way or done.
#[derive(Clone, Debug, Serialize)]
pub struct InFlight {
    /// `leave` or `timeout`.
    pub goal: crate::store::Goal,
    /// What it is doing, in words.
    pub progress: String,
    /// It waits for this height.
    pub until_height: Option<u32>,
    /// The height it was done at.
    pub done_height: Option<u32>,
    /// What it has cost so far at most.
    pub fees_sat: u64,
}

impl InFlight {
    /// What it is doing, and until when.
    pub(crate) fn in_words(&self) -> String {
        let until = self.until_height;
        let until = until.map_or_else(String::new, |height| format!(" until height {height}"));
        match self.progress.as_str() {
            // Nobody has looked at it yet.
            "" => "it begins with the next block that `run` sees".to_owned(),
            progress => format!("{progress}{until}"),
        }
    }
}

/// What the wallet has.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Balance {
    /// Confirmed coins of the on-chain wallet.
    pub confirmed_sat: u64,
    /// Its coins that are on their way.
    pub unconfirmed_sat: u64,
    /// Block rewards of its that are too young to be spent.
    pub immature_sat: u64,
    /// Confirmed outputs of timeouts and poisons to this wallet's payout keys, not swept.
    pub payouts_sat: u64,
    /// Payouts of timeouts and poisons that are published and not confirmed yet.
    pub payouts_coming_sat: u64,
    /// What channels in factories hold that can still be used, and that no timeout or poison has paid out. Of it only the Lightning balance is this
    /// wallet's, so it is no part of the total.
    pub in_factories_sat: u64,
    /// Payments that the coordinator holds until the channel they are for is there: no part of the total, and back if nothing comes of it.
    pub held_for_orders_msat: u64,
    /// What it has on Lightning.
    #[serde(flatten)]
    pub lightning: LightningBalance,
    /// All that is this wallet's, in whole satoshis.
    pub total_sat: u64,
    /// Number of confirmed coins.
    pub coins: usize,
    /// The block all of this is as of.
    pub height: u32,
}

/// A balance, and all channels as they were when it was counted: what is shown beside it is made from these.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Counted {
    pub(crate) balance: Balance,
    pub(crate) channels: Vec<ChannelView>,
}

/// What leaving costs and takes.
#[derive(Clone, Debug, Serialize)]
pub struct Quote {
    /// The factory.
    pub factory: FactoryId,
    /// What it is doing, as in [`FactoryView::state`].
    pub state: &'static str,
    /// Whether there is nothing left to leave: nothing is quoted then.
    pub over: bool,
    /// How far its tree has come into the chain, once its funding output is spent.
    pub on_chain: Option<OnChain>,
    /// What that means for this wallet, and what comes next, in a sentence.
    pub on_chain_words: Option<String>,
    /// The exit under way or done: how far the money is.
    pub exit: Option<InFlight>,
    /// The capacities of its channels that are not over.
    pub capacity_sat: u64,
    /// How many these are.
    pub channels: usize,
    /// What leaving brings, beside what payments under way bring: this wallet's side of the channels, in thousandths of a satoshi; of one that is closed
    /// what is not in the on-chain wallet yet.
    pub lightning_msat: u64,
    /// Payments under way over these channels.
    pub pending: u64,
    /// `client_refund` or `lsp_reclaim`.
    pub expiry_policy: ExpiryPolicy,
    /// `T`.
    pub expiry_height: u32,
    /// Transactions of the path that are not confirmed, with the sales that lead to channels of this wallet.
    pub path_transactions: usize,
    /// Their size, without the children that pay for them.
    pub path_vbytes: u64,
    /// Transactions of others that have to be published as well, of the whole plan, confirmed or not; 0 if nothing of the path is left.
    pub forced_siblings: u32,
    /// Blocks until the leaf is confirmed if everything goes well.
    pub least_delay_blocks: u32,
    /// Blocks until the channel's money is out, at worst, of the whole plan, confirmed or not; 0 if nothing of the path is left.
    pub worst_delay_blocks: u32,
    /// The least that the timeouts pay who stays away, whatever the others do, net of their fees: as in [`FactoryView::coverage_sat`]. What follows is
    /// what each of them pays.
    pub coverage_sat: u64,
    /// The least that a timeout on the path pays, net of its fee, while nobody publishes the leaf.
    pub coverage_path_sat: u64,
    /// What the timeout of the leaf's channel pays once the leaf is published.
    pub coverage_channel_sat: u64,
    /// What the timeouts of bought channels pay on top, once their sales are published.
    pub coverage_sold_sat: u64,
    /// What the end of the stock pays on top: its timeout, if the coordinator does not spend its stock before, or a poison of what was sold
    /// from it.
    pub coverage_stock_sat: u64,
    /// The coins there are to pay with.
    pub coins: Option<Coins>,
    /// At each feerate.
    pub quotes: Vec<QuoteAt>,
}

/// Coins to pay fees with.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Coins {
    /// Their sum.
    pub available_sat: u64,
    /// How many.
    pub coins: usize,
}

/// What leaving costs at one feerate.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct QuoteAt {
    /// The feerate.
    pub feerate_sat_per_vb: u64,
    /// Transactions of the path.
    pub transactions: usize,
    /// Bytes paid for: the path with its children.
    pub vbytes: u64,
    /// What the path costs; the wallet's coins pay it.
    pub cost_sat: u64,
    /// What the last timeouts of the whole plan cost; they pay it themselves.
    pub timeouts_cost_sat: u64,
    /// One coin of this size is enough.
    pub coin_needed_sat: u64,
    /// Whether the coins there are suffice; nothing if they are not known.
    pub coins_suffice: Option<bool>,
}

impl Quote {
    /// Refuses a budget that does not pay the path at the least feerate that nodes relay. That of an exit that has begun may be as small as one likes:
    /// it keeps what is under way from being paid more.
    ///
    /// # Errors
    /// [`Error::ExitBudget`].
    pub(crate) fn within(&self, budget: Amount) -> Result<()> {
        if matches!(&self.exit, Some(exit) if exit.goal == crate::store::Goal::Leave) {
            return Ok(());
        }
        let children = CHILD_VBYTES.saturating_mul(self.path_transactions as u64);
        let least_sat = self.path_vbytes.saturating_add(children);
        let budget_sat = budget.to_sat();
        match budget_sat < least_sat {
            true => Err(Error::ExitBudget {
                budget_sat,
                least_sat,
            }),
            false => Ok(()),
        }
    }
}

/// Everything in flight, from a store. `running`: somebody holds the data directory.
///
/// # Errors
/// The store's.
pub async fn status(
    store: &SharedStore,
    coordinator: Option<&str>,
    running: bool,
) -> Result<Status> {
    let identity = store
        .identity()
        .await?
        .ok_or(StoreError::Unreadable { what: "identity" })?;
    // What a process said that is gone does not count.
    let live = match running {
        true => store.live().await?,
        false => Live::default(),
    };
    let interest = store.interest().await?;
    let height = (live.height > 0).then_some(live.height);
    let mut channels = stored(store, running).await?;
    let account = account(store, &channels, height).await?;
    channels.retain(ChannelView::is_outside);
    Ok(Status {
        account,
        node_id: identity.node_id,
        network: identity.network,
        coordinator: coordinator.map(str::to_owned),
        running,
        live,
        interest_sat: interest.as_ref().map(|interest| interest.capacity.to_sat()),
        interest_note: interest.map(|interest| interest.note),
        channels,
        factories: factories(store).await?,
    })
}

/// All factories, from a store.
///
/// # Errors
/// The store's.
pub async fn factories(store: &SharedStore) -> Result<Vec<FactoryView>> {
    let kits = KitCache::new(SharedStore::clone(store));
    let exits = store.exits().await?;
    let chain = crate::exit::view(store, Height(0)).await?;
    let mut views = Vec::new();
    for row in store.factories().await? {
        let kit = kits.sound(row.factory).await?;
        let exit = exits.iter().find(|exit| exit.factory == row.factory);
        views.push(view(store, &row, kit.as_deref(), exit, &chain).await?);
    }
    Ok(views)
}

async fn view(
    store: &SharedStore,
    row: &FactoryRow,
    kit: Option<&ExitKit>,
    exit: Option<&ExitRow>,
    chain: &ChainView,
) -> Result<FactoryView> {
    let left = exit.is_some_and(|exit| exit.leaves(row.factory));
    let exit = match exit {
        Some(exit) => Some(in_flight(store, exit).await?),
        None => None,
    };
    let policy = kit.map(|kit| kit.params.expiry_policy);
    let unrolled = kit
        .filter(|_| row.is_live() && row.confirmed.is_some())
        .and_then(|kit| Some((kit, Unrolled::of(kit, chain)?)));
    let state = match (kit, unrolled) {
        (None, _) => "damaged",
        (_, Some((_, unrolled))) => unrolled.as_str(),
        (Some(kit), _) if row.is_live() && is_late(row, kit) => "late",
        _ => row.state(),
    };
    let channels = of_factory(store, row.factory).await?;
    let on_chain = unrolled.map(|(kit, _)| seen_of(kit, chain, exit.as_ref(), &channels));
    let words = unrolled.zip(on_chain).map(|((kit, unrolled), seen)| {
        let gone = row.is_given_away();
        told(unrolled, &seen, exit.as_ref(), kit.expiry, gone)
    });
    let over = !row.is_live() || unrolled.is_some_and(|(_, unrolled)| unrolled.is_over());
    let has_more = !over && !row.is_given_away();
    let ours = kit.filter(|_| has_more);
    let reclaim = ours.filter(|_| policy == Some(ExpiryPolicy::LspReclaim));
    let usable = ours.map(|kit| Usable::of(kit, &channels).unless_left(left));
    let usable = usable.unwrap_or_default();
    let capacity = match kit {
        None if has_more && !left => row.capacity,
        _ => usable.capacity,
    };
    let covered = usable.covered;
    Ok(FactoryView {
        factory: row.factory,
        state,
        over,
        on_chain,
        on_chain_words: words,
        expiry_policy: policy,
        capacity_sat: capacity.to_sat(),
        funding: row.funding,
        confirmed_height: row.confirmed.map(|height| height.0),
        birth_height: row.birth.0,
        expiry_height: row.expiry.0,
        leave_by_height: reclaim.map(|kit| leave_by(kit).0),
        coverage_sat: covered.away.to_sat(),
        coverage_awake_sat: covered.awake.to_sat(),
        fee_sat: row.fee.to_sat(),
        channels,
        exit,
    })
}

fn seen_of(
    kit: &ExitKit,
    chain: &ChainView,
    exit: Option<&InFlight>,
    channels: &[ChannelView],
) -> OnChain {
    let states = kit.txs.iter().zip(states(kit, chain));
    let path = states.filter(|(tx, _)| tx.is_path() && tx.kind != TxKind::StockChain);
    let heights: Vec<Option<Height>> = path
        .map(|(_, state)| match state {
            TxState::Confirmed(height) => Some(height),
            _ => None,
        })
        .collect();
    OnChain {
        by_this_wallet: exit.is_some_and(|exit| exit.goal == crate::store::Goal::Leave),
        path_transactions: heights.len(),
        path_confirmed: heights.iter().flatten().count(),
        leaf_height: heights.last().copied().flatten().map(|height| height.0),
        channels_open: channels.iter().filter(|view| !view.is_over()).count(),
        paid_sat: next(kit, Goal::Leave, chain).paid().to_sat(),
    }
}

/// What has happened to a factory that is on the chain, and what comes next. `given_away`: the coordinator may have its keys.
fn told(
    unrolled: Unrolled,
    seen: &OnChain,
    exit: Option<&InFlight>,
    expiry: Height,
    given_away: bool,
) -> String {
    let how = match (unrolled, seen.leaf_height) {
        (Unrolled::Paid { beside_channels }, _) => format!(
            "It is over: {} sat were paid out to this wallet{}; `sweep` moves them into the on-chain wallet",
            seen.paid_sat,
            if beside_channels { ", beside what came of its channels" } else { "" }
        ),
        (Unrolled::Ended, _) if given_away => {
            "It is over: its balance had moved before; the coordinator took its coins back".to_owned()
        }
        (Unrolled::Left, _) => "Its channels are closed on the chain: what is yours of them comes into the on-chain wallet by itself, `balance` shows how far it is".to_owned(),
        (Unrolled::Ended, _) => "It is over: others spent all of it, and nothing of it comes to this wallet".to_owned(),
        (Unrolled::Unrolling, leaf) => {
            let who = match seen.by_this_wallet {
                true => "This wallet leaves",
                false => "Somebody else published it",
            };
            match leaf {
                Some(height) => format!("{who}: its leaf, with this wallet's channels, is on the chain since block {height}"),
                None => format!(
                    "{who}: {} of the {} transactions that lead to this wallet's channels are on the chain",
                    seen.path_confirmed, seen.path_transactions
                ),
            }
        }
    };
    // What the tree paid says it already.
    let paid = Unrolled::Paid {
        beside_channels: false,
    };
    let progress = exit.filter(|_| unrolled != paid).map(|exit| {
        let now = exit.done_height.map_or("now: ", |_| "");
        format!("; {now}{}", exit.in_words())
    });
    let then = match (seen.channels_open, seen.leaf_height) {
        _ if unrolled.is_over() || seen.by_this_wallet => String::new(),
        (0, _) => {
            "; keep `run` running, and what is yours comes into the on-chain wallet".to_owned()
        }
        (_, None) => "; its channels go on as before, keep `run` running".to_owned(),
        (_, Some(_)) => format!(
            "; they go on carrying payments until the coordinator closes them before block {expiry}, or this wallet moves to another factory; keep `run` running, and what is yours comes to you"
        ),
    };
    format!("{how}{then}{}.", progress.unwrap_or_default())
}

pub(super) async fn in_flight(store: &SharedStore, exit: &ExitRow) -> Result<InFlight> {
    let children = store.children(exit.factory).await?;
    let mut newest = std::collections::BTreeMap::new();
    for child in &children {
        newest.insert(child.parent, child.fee.to_sat());
    }
    Ok(InFlight {
        goal: exit.goal,
        progress: exit.progress.text.clone(),
        until_height: exit.progress.until.map(|height| height.0),
        done_height: exit.progress.done.map(|height| height.0),
        fees_sat: newest.values().sum(),
    })
}

/// What leaving a factory costs at each of these feerates (sat/vB); `coins`: the wallet's, if known.
///
/// # Errors
/// [`StoreError::NoFactory`], [`Error::Kit`].
pub async fn quote(
    store: &SharedStore,
    factory: FactoryId,
    feerates: &[u64],
    coins: Option<&[Amount]>,
) -> Result<Quote> {
    let kit = KitCache::new(SharedStore::clone(store))
        .get(factory)
        .await?;
    let row = store.factory(factory).await?;
    let exits = store.exits().await?;
    let exit = exits.iter().find(|exit| exit.factory == factory);
    let chain = crate::exit::view(store, Height(0)).await?;
    let shown = view(store, &row, Some(&*kit), exit, &chain).await?;
    let over = shown.over;
    let plan = ExitPlan::new(&kit);
    // What is over, or was published by somebody, costs nothing any more.
    let states = states(&kit, &chain);
    let is_left = |index: usize| match states.get(index) {
        Some(TxState::Confirmed(_) | TxState::Impossible { .. }) | None => false,
        Some(_) => !over,
    };
    let path: Vec<_> = plan
        .steps
        .iter()
        .filter(|step| kit.txs.get(step.index).is_some_and(|tx| tx.is_path()))
        .filter(|step| is_left(step.index))
        .collect();
    let path_vbytes = path.iter().map(|step| step.vbytes).sum::<u64>();
    let least_delay = path
        .iter()
        .fold(Blocks(0), |all, step| all.plus(step.delay));
    let at = |feerate: u64| {
        let fees: Vec<Amount> = path.iter().map(|step| step.cost(feerate)).collect();
        let cost = fees.iter().map(|fee| fee.to_sat());
        let cost_sat = cost.fold(0, u64::saturating_add);
        let children = CHILD_VBYTES.saturating_mul(path.len() as u64);
        QuoteAt {
            feerate_sat_per_vb: feerate,
            transactions: path.len(),
            vbytes: path_vbytes.saturating_add(children),
            cost_sat,
            timeouts_cost_sat: plan.cost(feerate).timeouts.to_sat(),
            coin_needed_sat: match cost_sat {
                0 => 0,
                cost => cost.saturating_add(330),
            },
            coins_suffice: coins.map(|coins| coins_suffice(coins, &fees)),
        }
    };
    let feerates: &[u64] = if over { &[] } else { feerates };
    let sum = |of: fn(&ChannelView) -> u64| {
        let all = shown.channels.iter().filter(|_| !over);
        all.fold(0, |sum: u64, channel| sum.saturating_add(of(channel)))
    };
    let (lightning_msat, pending) = (sum(ChannelView::own_msat), sum(|channel| channel.pending));
    let usable = match over {
        true => Usable::default(),
        false => Usable::of(&kit, &shown.channels),
    };
    let doubt = over || usable.in_part;
    let sure = |amount: Amount| if doubt { 0 } else { amount.to_sat() };
    let ahead = |number: u32| if path.is_empty() { 0 } else { number };
    Ok(Quote {
        factory,
        state: shown.state,
        over,
        on_chain: shown.on_chain,
        capacity_sat: usable.capacity.to_sat(),
        channels: usable.channels,
        lightning_msat,
        pending,
        on_chain_words: shown.on_chain_words,
        exit: shown.exit,
        expiry_policy: kit.params.expiry_policy,
        expiry_height: kit.expiry.0,
        path_transactions: path.len(),
        path_vbytes,
        forced_siblings: ahead(plan.forced_siblings),
        least_delay_blocks: least_delay.0,
        worst_delay_blocks: ahead(plan.worst_delay.0),
        coverage_sat: usable.covered.away.to_sat(),
        coverage_path_sat: sure(plan.coverage.path),
        coverage_channel_sat: sure(plan.coverage.channel),
        coverage_sold_sat: sure(plan.coverage.sold),
        coverage_stock_sat: sure(plan.coverage.stock),
        coins: coins.map(|coins| Coins {
            available_sat: coins.iter().map(|coin| coin.to_sat()).sum(),
            coins: coins.len(),
        }),
        quotes: feerates.iter().map(|feerate| at(*feerate)).collect(),
    })
}

impl SignerClient {
    /// What the wallet has, to the satoshi; every satoshi in one place only.
    ///
    /// # Errors
    /// The store's and the wallet's.
    pub async fn balance(&self) -> Result<Balance> {
        Ok(self.counted().await?.balance)
    }

    /// See [`Self::balance`].
    ///
    /// # Errors
    /// As there.
    pub(crate) async fn counted(&self) -> Result<Counted> {
        let inner = &self.inner;
        let wallet = inner.wallet.balance().await?;
        let payouts = inner.store.payouts().await?;
        let unspent = payouts.iter().filter(|payout| payout.spent_by.is_none());
        let mut payouts_sat = 0u64;
        for payout in unspent {
            payouts_sat += self.left_over(payout.outpoint, payout.amount).await;
        }
        let channels = self.channels().await?;
        let (in_factories_sat, payouts_coming_sat, out) = self.in_factories(&channels).await?;
        // What is paid out elsewhere is not counted by its channel as well.
        let mut left = channels.clone();
        left.retain(|channel| !out.contains(&channel.outpoint));
        let lightning = LightningBalance::of(&left);
        let checkpoints = inner.wallet.checkpoints().await;
        let confirmed = wallet.confirmed.to_sat();
        let confirmed_sat = confirmed.saturating_add(wallet.locked.to_sat());
        let unconfirmed_sat = wallet.pending.to_sat();
        let immature_sat = wallet.immature.to_sat();
        let parts = [
            confirmed_sat,
            unconfirmed_sat,
            immature_sat,
            payouts_sat,
            payouts_coming_sat,
            lightning.whole_sat(),
        ];
        let balance = Balance {
            confirmed_sat,
            unconfirmed_sat,
            immature_sat,
            payouts_sat,
            payouts_coming_sat,
            in_factories_sat,
            held_for_orders_msat: held_for_orders(&inner.store).await?.0,
            lightning,
            total_sat: parts.into_iter().fold(0, u64::saturating_add),
            coins: inner.wallet.coins().await.len(),
            height: checkpoints.last().map_or(0, |block| block.height),
        };
        Ok(Counted { balance, channels })
    }

    /// What of a payout is not on its way into the wallet already, by a sweep or a fee child that
    /// the wallet counts as its own.
    async fn left_over(&self, outpoint: OutPoint, amount: Amount) -> u64 {
        match self.inner.chain.mempool_spender(outpoint).await {
            Ok(Some(_)) => 0,
            // A node that is away takes nothing from anybody.
            Ok(None) | Err(_) => amount.to_sat(),
        }
    }

    /// What of these channels can still be used in factories, payouts that are on their way out of them, and the channels that these pay for.
    async fn in_factories(&self, channels: &[ChannelView]) -> Result<(u64, u64, Vec<OutPoint>)> {
        let inner = &self.inner;
        let tip = inner.wallet.checkpoints().await;
        let tip = Height(tip.last().map_or(0, |block| block.height));
        let chain = crate::exit::view(&inner.store, tip).await?;
        let exits = inner.store.exits().await?;
        let (mut inside, mut coming, mut out) = (0u64, 0u64, Vec::new());
        for row in inner.store.factories().await? {
            if !row.is_live() || row.is_given_away() || row.confirmed.is_none() {
                continue;
            }
            let left = exits.iter().any(|exit| exit.leaves(row.factory));
            let Some(kit) = inner.kits.sound(row.factory).await? else {
                let held = if left { Amount::ZERO } else { row.capacity };
                inside = inside.saturating_add(held.to_sat());
                continue;
            };
            let published = inner.store.published(row.factory).await?;
            let published = published.iter().map(|row| row.txid).collect();
            let found = Whereabouts::of(&kit, &chain, &published);
            if !left {
                let standing = standing(&kit, channels);
                let held = standing
                    .iter()
                    .filter(|channel| !found.out.contains(&channel.outpoint));
                // Where all of it is over, nothing is inside.
                let held = capacity(held).min(found.inside);
                inside = inside.saturating_add(held.to_sat());
            }
            for (outpoint, amount) in found.coming {
                coming = coming.saturating_add(self.left_over(outpoint, amount).await);
            }
            out.extend(found.out);
        }
        Ok((inside, coming, out))
    }

    /// Confirmed, free coins of the on-chain wallet.
    pub async fn coins(&self) -> Vec<Amount> {
        self.inner.coin_values().await
    }

    /// See [`status`].
    ///
    /// # Errors
    /// The store's.
    pub async fn status(&self) -> Result<Status> {
        status(
            &self.inner.store,
            self.inner.config.coordinator.as_deref(),
            true,
        )
        .await
    }

    /// See [`account`].
    ///
    /// # Errors
    /// The store's.
    pub async fn account(&self) -> Result<Account> {
        let height = self.inner.followed_height();
        let channels = self.channels().await?;
        let height = (height > 0).then_some(height);
        account(&self.inner.store, &channels, height).await
    }

    /// See [`factories`].
    ///
    /// # Errors
    /// The store's.
    pub async fn factories(&self) -> Result<Vec<FactoryView>> {
        factories(&self.inner.store).await
    }

    /// See [`quote`]; with the wallet's own coins.
    ///
    /// # Errors
    /// [`StoreError::NoFactory`].
    pub async fn quote_exit(&self, factory: FactoryId, feerates: &[u64]) -> Result<Quote> {
        let coins = self.coins().await;
        quote(&self.inner.store, factory, feerates, Some(&coins)).await
    }

    /// A factory as JSON, for people and other tools; this client's path only.
    ///
    /// # Errors
    /// [`StoreError::NoFactory`]; [`Error::Connection`] if the coordinator is not configured.
    pub async fn export(&self, factory: FactoryId) -> Result<factory_tree::export::Export> {
        let coordinator = self.inner.config.coordinator.as_deref();
        export(&self.inner.store, coordinator, factory).await
    }

    /// Follows the chain to its tip once, without running.
    ///
    /// # Errors
    /// The node's, and the store's.
    pub async fn sync(&self) -> Result<()> {
        crate::watch::sync_once(&self.inner).await
    }
}

/// A factory as JSON; this client's path only.
///
/// # Errors
/// [`StoreError::NoFactory`]; [`Error::Connection`] if the coordinator is not configured.
pub async fn export(
    store: &SharedStore,
    coordinator: Option<&str>,
    factory: FactoryId,
) -> Result<factory_tree::export::Export> {
    let kit = KitCache::new(SharedStore::clone(store))
        .get(factory)
        .await?;
    let own = store
        .identity()
        .await?
        .ok_or(StoreError::Unreadable { what: "identity" })?
        .node_id;
    let connection: proto::connection::Connection = coordinator
        .ok_or_else(|| Error::Connection("none is configured".to_owned()))?
        .parse()
        .map_err(|error: proto::connection::ConnectionError| {
            Error::Connection(error.to_string())
        })?;
    let lsp = ClientId(connection.node_id().to_bytes());
    Ok(factory_tree::export::Export::of_kit(&kit, lsp, own))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_became_of_a_factory_is_told_with_what_is_still_to_come() {
        let seen = OnChain {
            by_this_wallet: true,
            path_transactions: 3,
            path_confirmed: 3,
            leaf_height: Some(200),
            channels_open: 0,
            paid_sat: 300,
        };
        let exit = InFlight {
            goal: crate::store::Goal::Leave,
            progress: "5 sat are on their way".to_owned(),
            until_height: Some(400),
            done_height: None,
            fees_sat: 0,
        };
        let say =
            |unrolled, given_away| told(unrolled, &seen, Some(&exit), Height(5_000), given_away);
        let progress = "; now: 5 sat are on their way until height 400.";
        let left = say(Unrolled::Left, false);
        assert!(left.starts_with("Its channels are closed"), "{left}");
        assert!(left.ends_with(progress), "{left}");
        let ended = say(Unrolled::Ended, false);
        assert!(ended.contains("others spent all of it"), "{ended}");
        let moved = say(Unrolled::Ended, true);
        assert!(moved.contains("its balance had moved before"), "{moved}");
        assert!(!moved.contains("others spent"), "{moved}");
        let paid = |beside_channels| say(Unrolled::Paid { beside_channels }, false);
        let (alone, beside) = (paid(false), paid(true));
        for text in [&alone, &beside] {
            assert!(text.contains("300 sat were paid out"), "{text}");
        }
        assert!(!alone.contains("beside"), "{alone}");
        assert!(!alone.contains("on their way"), "{alone}");
        assert!(
            beside.contains("beside what came of its channels"),
            "{beside}"
        );
        assert!(beside.ends_with(progress), "{beside}");
    }
}
