//! What can be received, over which channels, and what of it is covered if the coordinator breaks off.

use factory_tree::ids::FactoryId;
use factory_tree::kit::ExitKit;
use factory_tree::sale::{Coverage, Stock, least_channel};
use factory_tree::units::Height;
use serde::{Deserialize, Serialize};

use super::TopUpView;
use crate::client::{KitCache, Usable};
use crate::error::{Error, Result};
use crate::exit::Unrolled;
use crate::lightning::ChannelView;
use crate::store::{PurchaseRow, SharedStore};

/// What is covered of what could be held, in satoshi.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct CoverageView {
    /// What the wallet is sure of if it stays away.
    pub away_sat: u64,
    /// What it is sure of if it looks every 60 blocks: nobody else publishes its poisons.
    pub awake_sat: u64,
    /// What its channels in factories hold, the coordinator's reserves included: all it could have, and a little more.
    pub held_sat: u64,
}

impl From<Coverage> for CoverageView {
    fn from(coverage: Coverage) -> Self {
        Self {
            away_sat: coverage.away.to_sat(),
            awake_sat: coverage.awake.to_sat(),
            held_sat: coverage.held.to_sat(),
        }
    }
}

impl From<Usable> for CoverageView {
    fn from(usable: Usable) -> Self {
        Self {
            away_sat: usable.covered.away.to_sat(),
            awake_sat: usable.covered.awake.to_sat(),
            held_sat: usable.capacity.to_sat(),
        }
    }
}

impl CoverageView {
    fn add(&mut self, other: Self) {
        self.away_sat = self.away_sat.saturating_add(other.away_sat);
        self.awake_sat = self.awake_sat.saturating_add(other.awake_sat);
        self.held_sat = self.held_sat.saturating_add(other.held_sat);
    }
}

/// One channel, as far as receiving goes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LimitChannel {
    /// The factory; nothing for a channel outside of factories, which no coverage counts.
    pub factory: Option<FactoryId>,
    /// The leaf's id, in hexadecimal digits, or the channel's number if it is on none.
    pub leaf: String,
    /// Which sale made it; nothing for the one the factory was born with, and outside of factories.
    pub sale: Option<u8>,
    /// Whether the wallet bought it by itself.
    pub automatic: bool,
    /// Whether the wallet has it for signing with somebody else who bought.
    pub bonus: bool,
    /// What it holds.
    pub capacity_sat: u64,
    /// What can be received over it now.
    pub receivable_msat: u64,
}

/// A stock from which could be bought.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct StockView {
    /// The factory.
    pub factory: FactoryId,
    /// What is left of it.
    pub left_sat: u64,
    /// The smallest channel that the factory's rules let anybody buy; the coordinator may have a larger minimum, which its quotes go by.
    pub least_sat: u64,
    /// How many sales there were.
    pub sales: u8,
    /// How many there can be.
    pub most_sales: u8,
    /// What is covered of this wallet's channels in the factory.
    pub coverage: CoverageView,
    /// Whether more can be held there than is covered already: whatever is bought there needs the user's explicit consent, as does any purchase after
    /// which it would be so.
    pub needs_consent: bool,
}

/// What this wallet can receive.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct LimitView {
    /// Now.
    pub receivable_msat: u64,
    /// What its channels hold in all. The coordinator has to keep a reserve in each, so that a little less can become the wallet's.
    pub limit_sat: u64,
    /// Over these channels; those outside of factories last.
    pub channels: Vec<LimitChannel>,
    /// What of it is covered, over all factories.
    pub coverage: CoverageView,
    /// What is left to be bought; whether it is for sale, and for how much, the coordinator says.
    pub stocks: Vec<StockView>,
    /// Whether and when the wallet buys by itself.
    pub top_up: TopUpView,
}

/// From a store, its kits and these channels.
///
/// # Errors
/// The store's.
pub(crate) async fn limit(
    store: &SharedStore,
    kits: &KitCache,
    channels: &[ChannelView],
) -> Result<LimitView> {
    let mut view = LimitView::default();
    let bought = store.purchases().await?;
    let chain = crate::exit::view(store, Height(0)).await?;
    let exits = store.exits().await?;
    for row in store.factories().await? {
        if !row.usable || !row.is_live() || row.is_given_away() {
            continue;
        }
        let Some(kit) = kits.sound(row.factory).await? else {
            continue;
        };
        let unrolled = Unrolled::of(&kit, &chain);
        if unrolled.is_some_and(Unrolled::is_over) {
            continue;
        }
        let own: Vec<ChannelView> = channels
            .iter()
            .filter(|own| own.factory == Some(row.factory))
            .cloned()
            .collect();
        let listed: Vec<LimitChannel> = own
            .iter()
            .filter_map(|own| channel(&kit, own, &bought))
            .collect();
        // Nothing is bought where somebody leaves.
        let sells = unrolled.is_none() && !exits.iter().any(|exit| exit.factory == row.factory);
        let left = !row.stands() || exits.iter().any(|exit| exit.leaves(row.factory));
        let counted = tokio::task::spawn_blocking(move || {
            let usable = Usable::of(&kit, &own).unless_left(left);
            (usable, stock(&kit, usable))
        });
        let (usable, stock) = counted
            .await
            .map_err(|error| Error::Task(error.to_string()))?;
        // What is left, or is to be handed over, is of no use, and covered until it is out.
        view.coverage.add(usable.into());
        if usable.channels == 0 {
            continue;
        }
        view.channels.extend(listed);
        view.stocks.extend(stock.filter(|_| sells));
    }
    view.limit_sat = view.coverage.held_sat;
    for own in channels.iter().filter(|own| own.is_outside()) {
        if let Some(own) = common(own) {
            view.limit_sat = view.limit_sat.saturating_add(own.capacity_sat);
            view.channels.push(own);
        }
    }
    view.receivable_msat = view.channels.iter().fold(0, |sum: u64, channel| {
        sum.saturating_add(channel.receivable_msat)
    });
    Ok(view)
}

/// What there is to say of any channel, if it is of use.
fn common(view: &ChannelView) -> Option<LimitChannel> {
    (!view.is_over()).then(|| LimitChannel {
        factory: view.factory,
        leaf: view.leaf.clone(),
        sale: None,
        automatic: false,
        bonus: false,
        capacity_sat: view.capacity_sat,
        receivable_msat: view.can_receive_msat(),
    })
}

fn channel(kit: &ExitKit, view: &ChannelView, bought: &[PurchaseRow]) -> Option<LimitChannel> {
    let all = kit.channels();
    let own = all
        .iter()
        .find(|own| own.leaf_id.to_string() == view.leaf)?;
    Some(LimitChannel {
        sale: own.sale,
        automatic: bought
            .iter()
            .any(|row| row.automatic && row.leaf_id == own.leaf_id),
        bonus: kit
            .sales
            .iter()
            .filter(|sale| Some(sale.number) == own.sale)
            .any(|sale| sale.bought.position != kit.position),
        ..common(view)?
    })
}

/// `usable`: what of the kit can still be used.
pub(super) fn stock(kit: &ExitKit, usable: Usable) -> Option<StockView> {
    let stock = Stock::of_kit(kit).ok()?;
    Some(StockView {
        factory: kit.factory_id,
        left_sat: stock.amount().to_sat(),
        least_sat: least_channel(stock.params()).to_sat(),
        sales: u8::try_from(stock.sales().len()).unwrap_or(u8::MAX),
        most_sales: stock.params().chain_depth_max,
        coverage: usable.into(),
        needs_consent: usable.needs_consent(),
    })
}
