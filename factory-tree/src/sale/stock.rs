//! The state of one stock: the leaf's own output, what was sold from it, and what is left.

use bitcoin::secp256k1::PublicKey;
use bitcoin::{Amount, OutPoint, ScriptBuf, TxOut};

use super::Sale;
use crate::expiry::{self, ExpiryError, deduction};
use crate::factory::{Spent, SpentKind};
use crate::keys::{KeyRing, Owners};
use crate::kit::ExitKit;
use crate::musig::MusigError;
use crate::output::{MIN_OUTPUT, OutputRole};
use crate::params::{FactoryParams, ParamsError, Schedule};
use crate::plan;
use crate::shape::{ClientRange, Shape, len};
use crate::tree::Tree;
use crate::tx::{RelayError, TxKind, checked_sum};
use crate::units::Height;

/// No channel is sold smaller: Lightning nodes refuse what their reserves take up.
pub const LEAST_CHANNEL: Amount = Amount::from_sat(10_000);

/// Why nothing, or not this, can be sold from a stock.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum StockError {
    /// The leaf has no stock for this client.
    #[error("client {0} shares no stock")]
    NoStock(u32),
    /// The kit does not say where the clients of the stock are paid.
    #[error("the payout scripts of the stock's clients are not known")]
    NoPayouts,
    /// Not a sale from this stock.
    #[error("a sale from {asked}, not from {stock}")]
    OtherStock {
        /// The sale's.
        asked: OutPoint,
        /// This one.
        stock: OutPoint,
    },
    /// Sales are numbered without a gap.
    #[error("sale number {asked}, the next is {next}")]
    OutOfOrder {
        /// The sale's.
        asked: u8,
        /// The next.
        next: u8,
    },
    /// As many sales as the factory allows.
    #[error("the stock carries no more than {0} sales")]
    Depth(u8),
    /// Nothing is left.
    #[error("the stock is sold out")]
    SoldOut,
    /// A channel smaller than the least or larger than what is left.
    #[error(
        "a channel of {} sat, at least {} sat and at most {} sat can be sold",
        .asked.to_sat(), .least.to_sat(), .most.to_sat()
    )]
    Amount {
        /// What was asked for.
        asked: Amount,
        /// The least.
        least: Amount,
        /// The most.
        most: Amount,
    },
    /// What is left is too small for a stock of its own: it goes to the buyer.
    #[error("{} sat would be left, less than the least stock of {} sat", .left.to_sat(), .least.to_sat())]
    Remainder {
        /// What would be left.
        left: Amount,
        /// The least stock.
        least: Amount,
    },
    /// A channel for somebody who does not share the stock, or two for one.
    #[error("client {0} cannot have this channel")]
    Channel(u32),
    /// Other terms of that number may have been signed.
    #[error("sale number {0} is bound to other terms")]
    Bound(u8),
    /// Not everybody who shares the stock has an account.
    #[error("the accounts are not those of the stock's clients")]
    Accounts,
    /// The amounts of a timeout or poison.
    #[error(transparent)]
    Expiry(#[from] ExpiryError),
    /// The parameters.
    #[error(transparent)]
    Params(#[from] ParamsError),
    /// The clients' keys.
    #[error(transparent)]
    Keys(#[from] MusigError),
    /// A transaction that would not relay.
    #[error("{kind:?} transaction: {error}")]
    Relay {
        /// Which kind.
        kind: TxKind,
        /// The rule broken.
        error: RelayError,
    },
}

/// The least channel that can be sold: it must bear its share of a poison's fee.
#[must_use]
pub fn least_channel(params: &FactoryParams) -> Amount {
    let fee = deduction(params, params.k.into()).to_sat();
    let borne = Amount::from_sat(fee.saturating_add(MIN_OUTPUT.to_sat()));
    borne.max(LEAST_CHANNEL)
}

/// One stock with its sales.
#[derive(Clone, Debug)]
pub struct Stock {
    pub(super) params: FactoryParams,
    pub(super) schedule: Schedule,
    /// Factory keys of its clients, in leaf order.
    pub(super) keys: Vec<PublicKey>,
    /// Where its clients are paid, in leaf order.
    pub(super) payouts: Vec<ScriptBuf>,
    /// What was left after each sale, the leaf's own output first; what the last sale left is
    /// missing when it took everything.
    pub(super) left: Vec<Spent>,
    pub(super) sales: Vec<Sale>,
}

impl Stock {
    /// The unsold stock that the client at `position` shares, as the LSP knows it.
    ///
    /// # Errors
    /// [`StockError::NoStock`], and keys that do not aggregate.
    pub fn of_tree(tree: &Tree, position: u32) -> Result<Self, StockError> {
        let missing = StockError::NoStock(position);
        let path = tree.path(position);
        let leaf = path.last().ok_or_else(|| missing.clone())?;
        let mut stocks = leaf.outputs_of(OutputRole::Stock);
        let found = stocks.find(|(_, output)| output.clients.contains(&position));
        let (outpoint, output) = found.ok_or(missing)?;
        let spec = tree.spec();
        let members = members(&spec.members, &output.clients);
        Self::new(
            spec.params.clone(),
            *tree.schedule(),
            (spec.lsp_key, tree.keys().clients()),
            (outpoint, &output.clients, output.txout.clone()),
            members.iter().map(|m| m.payout_script.clone()).collect(),
        )
    }

    /// The stock that the client of this kit shares, with the sales the kit knows.
    ///
    /// # Errors
    /// [`StockError`] when there is none, and whatever is wrong with the kit's sales.
    pub fn of_kit(kit: &ExitKit) -> Result<Self, StockError> {
        let mut stock = Self::unsold_of_kit(kit)?;
        for sale in &kit.sales {
            stock.push(sale.clone())?;
        }
        Ok(stock)
    }

    /// The same before its first sale.
    pub(crate) fn unsold_of_kit(kit: &ExitKit) -> Result<Self, StockError> {
        let missing = StockError::NoStock(kit.position);
        let leaf = kit.path().last().ok_or_else(|| missing.clone())?;
        let mut own = kit.own_outputs(leaf);
        let found = own.find(|(_, output, _)| output.role == OutputRole::Stock);
        let (outpoint, output, txout) = found.ok_or(missing)?;
        let clients = u32::try_from(kit.keys.len()).unwrap_or(u32::MAX);
        let shape = Shape::new(&kit.params, clients)?;
        Self::new(
            kit.params.clone(),
            kit.params.schedule(kit.birth, shape.levels())?,
            (kit.lsp_key, &kit.keys),
            (outpoint, &output.clients, txout.clone()),
            kit.payouts_of(outpoint),
        )
    }

    fn new(
        params: FactoryParams,
        schedule: Schedule,
        (lsp_key, keys): (PublicKey, &[PublicKey]),
        (outpoint, clients, txout): (OutPoint, &ClientRange, TxOut),
        payouts: Vec<ScriptBuf>,
    ) -> Result<Self, StockError> {
        if payouts.len() != len(clients) as usize {
            return Err(StockError::NoPayouts);
        }
        let leaf = plan::script_leaf(&params, &schedule, SpentKind::Stock);
        let mut ring = KeyRing::new(lsp_key, keys.to_vec());
        let root = leaf.merkle_root(ring.lsp_x_only());
        let key = ring.output(&Owners::with_lsp(clients), root)?;
        let own = members(keys, clients).to_vec();
        Ok(Self {
            params,
            schedule,
            keys: own,
            payouts,
            left: vec![plan::spent(outpoint, SpentKind::Stock, txout.value, key)],
            sales: Vec::new(),
        })
    }

    /// The leaf's own output: what names the stock.
    #[must_use]
    pub fn outpoint(&self) -> OutPoint {
        self.left
            .first()
            .map_or_else(OutPoint::null, |s| s.outpoint)
    }

    /// The clients that share it.
    #[must_use]
    pub fn clients(&self) -> ClientRange {
        self.left.first().map_or(0..0, |s| s.clients.clone())
    }

    /// The factory key of the client at `position`.
    #[must_use]
    pub fn key_of(&self, position: u32) -> Option<PublicKey> {
        let index = position.checked_sub(self.clients().start)?;
        self.keys.get(index as usize).copied()
    }

    /// Where timeouts and poisons pay the client at `position`.
    #[must_use]
    pub fn payout_of(&self, position: u32) -> Option<&ScriptBuf> {
        let index = position.checked_sub(self.clients().start)?;
        self.payouts.get(index as usize)
    }

    /// The factory's parameters.
    #[must_use]
    pub const fn params(&self) -> &FactoryParams {
        &self.params
    }

    /// The factory's calendar.
    #[must_use]
    pub const fn schedule(&self) -> &Schedule {
        &self.schedule
    }

    /// `T`.
    #[must_use]
    pub const fn expiry(&self) -> Height {
        self.schedule.expiry
    }

    /// The sales so far.
    #[must_use]
    pub fn sales(&self) -> &[Sale] {
        &self.sales
    }

    /// What is left to be sold.
    #[must_use]
    pub fn amount(&self) -> Amount {
        self.tip().map_or(Amount::ZERO, |tip| tip.txout.value)
    }

    /// The output that the next sale consumes; `None` when all is sold.
    #[must_use]
    pub fn tip(&self) -> Option<&Spent> {
        self.left.get(self.sales.len())
    }

    /// The number of the next sale.
    #[must_use]
    pub fn next_number(&self) -> u8 {
        let next = self.sales.len().saturating_add(1);
        u8::try_from(next).unwrap_or(u8::MAX)
    }

    /// What the channel of a buyer of `asked` holds, when channels of `bonus` go to others: as
    /// much, or everything where the rest would be no stock of its own.
    ///
    /// # Errors
    /// [`StockError`] when it cannot be sold.
    pub fn capacity_for(&self, asked: Amount, bonus: Amount) -> Result<Amount, StockError> {
        if self.next_number() > self.params.chain_depth_max {
            return Err(StockError::Depth(self.params.chain_depth_max));
        }
        let tip = self.tip().ok_or(StockError::SoldOut)?.txout.value;
        let most = tip.checked_sub(bonus).unwrap_or(Amount::ZERO);
        let least = least_channel(&self.params);
        if asked < least || asked > most {
            return Err(StockError::Amount { asked, least, most });
        }
        let left = most.checked_sub(asked).unwrap_or(Amount::ZERO);
        Ok(if left < self.least_stock() {
            most
        } else {
            asked
        })
    }

    fn least_stock(&self) -> Amount {
        expiry::least_stock(&self.params, len(&self.clients()))
    }

    /// What `sale` leaves: nothing, or a stock that pays for its own timeout and poison.
    pub(super) fn check(&self, sale: &Sale) -> Result<Amount, StockError> {
        let (asked, stock) = (sale.stock, self.outpoint());
        if asked != stock {
            return Err(StockError::OtherStock { asked, stock });
        }
        let next = self.next_number();
        if sale.number != next {
            let asked = sale.number;
            return Err(StockError::OutOfOrder { asked, next });
        }
        if next > self.params.chain_depth_max {
            return Err(StockError::Depth(self.params.chain_depth_max));
        }
        let tip = self.tip().ok_or(StockError::SoldOut)?.txout.value;
        self.check_owners(sale)?;
        let least = least_channel(&self.params);
        let mut left = tip;
        for channel in sale.channels() {
            let (asked, most) = (channel.capacity, left);
            let rest = left.checked_sub(asked).filter(|_| asked >= least);
            left = rest.ok_or(StockError::Amount { asked, least, most })?;
        }
        let least = self.least_stock();
        if left > Amount::ZERO && left < least {
            return Err(StockError::Remainder { left, least });
        }
        Ok(left)
    }

    fn check_owners(&self, sale: &Sale) -> Result<(), StockError> {
        let clients = self.clients();
        let mut seen = Vec::new();
        for channel in sale.channels() {
            let position = channel.position;
            if !clients.contains(&position) || seen.contains(&position) {
                return Err(StockError::Channel(position));
            }
            seen.push(position);
        }
        Ok(())
    }

    /// What the channels hold that the client at `position` got in the sales `from..=to`.
    pub(super) fn sold_to(&self, position: u32, sales: &[Sale]) -> Amount {
        let own = sales.iter().filter_map(|sale| sale.channel_of(position));
        checked_sum(own.map(|channel| channel.capacity)).unwrap_or(Amount::MAX_MONEY)
    }
}

fn members<'a, T>(all: &'a [T], clients: &ClientRange) -> &'a [T] {
    let range = clients.start as usize..clients.end as usize;
    all.get(range).unwrap_or_default()
}
