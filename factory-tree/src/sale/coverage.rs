//! What a client is sure of when the LSP breaks off (protocol.md section 6, attacks.md, second
//! part, section 1): without lifting a finger, and as long as it looks now and then.

use bitcoin::Amount;

use super::{Sale, Stock, StockError};
use crate::exit::{self, ExitPlan};
use crate::factory::FactoryTx;
use crate::kit::ExitKit;
use crate::output::OutputRole;
use crate::tx::checked_sum;

/// What a client is sure of, net of fees, and what it can hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Coverage {
    /// If it stays away: what the timeouts of the factory's birth pay at least, no purchases. Once
    /// somebody publishes the leaf that is its channel: the unsold stock may be the LSP's.
    pub away: Amount,
    /// If it or its tower looks every 60 blocks: at whichever point of the chain the LSP stops
    /// publishing.
    pub awake: Amount,
    /// The capacities of all its channels.
    pub held: Amount,
}

impl Coverage {
    /// The coverage of a verified kit's client.
    ///
    /// # Errors
    /// [`StockError`] when the kit's sales are not what they should be.
    pub fn of_kit(kit: &ExitKit) -> Result<Self, StockError> {
        let timeouts = ExitPlan::new(kit).coverage;
        match Stock::of_kit(kit) {
            Ok(stock) => stock.coverage(kit.position, kit.capacity, timeouts),
            Err(StockError::NoStock(_) | StockError::NoPayouts) => Ok(Self {
                away: timeouts.least(),
                awake: timeouts.path.min(kit.capacity),
                held: kit.capacity,
            }),
            Err(error) => Err(error),
        }
    }

    /// Whether the client can hold more than it is sure of: then a purchase needs its fee coins or
    /// its explicit consent.
    #[must_use]
    pub fn needs_consent(&self) -> bool {
        self.held > self.awake
    }
}

impl Stock {
    /// The coverage of the client at `position`, whose channel in the leaf holds `leaf_channel`
    /// and whom the factory's birth gave these `timeouts`.
    ///
    /// # Errors
    /// [`StockError`] as in [`Self::draft`].
    pub fn coverage(
        &self,
        position: u32,
        leaf_channel: Amount,
        timeouts: exit::Coverage,
    ) -> Result<Coverage, StockError> {
        let poisons = self.poisons(&self.sales, self.tip())?;
        let paid = poisons.iter().map(|poison| payout(poison, position));
        // Where everything is published no poison is left, and the LSP takes its unsold stock.
        let stops = paid.chain([Amount::ZERO]).enumerate();
        let least = stops
            .map(|(published, paid)| {
                let sold = self.sales.get(..published).unwrap_or_default();
                sum([leaf_channel, self.sold_to(position, sold), paid])
            })
            .min();
        let held = sum([leaf_channel, self.sold_to(position, &self.sales)]);
        Ok(Coverage {
            away: timeouts.least(),
            awake: timeouts.path.min(least.unwrap_or(leaf_channel)),
            held,
        })
    }

    /// The same after `sale`.
    ///
    /// # Errors
    /// [`StockError`] when there can be no such sale.
    pub fn coverage_after(
        &self,
        sale: &Sale,
        position: u32,
        leaf_channel: Amount,
        timeouts: exit::Coverage,
    ) -> Result<Coverage, StockError> {
        let mut after = self.clone();
        after.push(sale.clone())?;
        after.coverage(position, leaf_channel, timeouts)
    }
}

fn payout(tx: &FactoryTx, position: u32) -> Amount {
    let payouts = tx.outputs_of(OutputRole::Payout);
    let own = payouts.filter(|(_, output)| output.clients.contains(&position));
    sum(own.map(|(_, output)| output.txout.value))
}

fn sum(amounts: impl IntoIterator<Item = Amount>) -> Amount {
    checked_sum(amounts).unwrap_or(Amount::MAX_MONEY)
}

#[cfg(test)]
mod tests;
