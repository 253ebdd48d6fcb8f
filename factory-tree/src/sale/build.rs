//! The transactions of a sale, as a pure function of the stock and its terms.

use bitcoin::{Amount, OutPoint};

use super::stock::{Stock, StockError};
use super::{Sale, SoldChannel};
use crate::expiry::{self, Claim, even};
use crate::factory::{FactoryTx, Spent, SpentKind, channel_output};
use crate::output::{OutputRole, RoledOutput, anchor};
use crate::plan;
use crate::tx::{Timelock, TxKind, check_relay};

/// The unsigned transactions of one sale.
#[derive(Clone, Debug)]
pub struct SaleTxs {
    /// Its terms.
    pub sale: Sale,
    /// Spends the stock: the new channels, and what is left.
    pub chain: FactoryTx,
    /// The timeout of what is left, where something is and the policy has timeouts.
    pub timeout: Option<FactoryTx>,
    /// The poison of every consumed stock, the leaf's own first: all with this sale's delay, so
    /// that they come before those of earlier sales (attacks.md, second part, 1b).
    pub poisons: Vec<FactoryTx>,
    /// The timeout of each new channel, in the order of [`Sale::channels`].
    pub channel_timeouts: Vec<FactoryTx>,
    pub(super) left: Option<Spent>,
}

impl SaleTxs {
    /// What is signed by MuSig2, in session order: the chain transaction, the timeout of what is
    /// left, the poisons from the leaf's stock on.
    pub fn sessions(&self) -> impl Iterator<Item = &FactoryTx> {
        let chain = core::iter::once(&self.chain);
        chain.chain(&self.timeout).chain(&self.poisons)
    }

    /// Every transaction.
    pub fn all(&self) -> impl Iterator<Item = &FactoryTx> {
        self.sessions().chain(&self.channel_timeouts)
    }

    /// The new channel of the client at `position`, with its timeout.
    #[must_use]
    pub fn channel_of(&self, position: u32) -> Option<(&SoldChannel, &FactoryTx)> {
        let mut channels = self.sale.channels().zip(&self.channel_timeouts);
        channels.find(|(channel, _)| channel.position == position)
    }
}

impl Stock {
    /// The transactions of the next sale.
    ///
    /// # Errors
    /// [`StockError`] when there can be no such sale.
    pub fn draft(&self, sale: &Sale) -> Result<SaleTxs, StockError> {
        let left = self.check(sale)?;
        let consumed = self.tip().ok_or(StockError::SoldOut)?;
        let chain = chain(consumed, sale, left);
        let left = chain
            .outputs_of(OutputRole::Stock)
            .next()
            .map(|(outpoint, output)| Spent {
                outpoint,
                txout: output.txout.clone(),
                ..consumed.clone()
            });
        let has_timeouts = plan::has_timeouts(&self.params);
        let timeout = left.clone().filter(|_| has_timeouts).map(|left| {
            let claims = self.claims(&[], &self.shares(Some(&left)));
            plan::timeout(&self.params, &self.schedule, left, &claims)
        });
        let sales: Vec<Sale> = self.sales.iter().chain([sale]).cloned().collect();
        let txs = SaleTxs {
            timeout: timeout.transpose()?,
            poisons: self.poisons(&sales, left.as_ref())?,
            channel_timeouts: self.channel_timeouts(&chain, sale)?,
            sale: sale.clone(),
            chain,
            left,
        };
        for tx in txs.all() {
            let input = tx.spends.txout.value;
            check_relay(input, &tx.outputs, tx.vbytes()).map_err(|error| StockError::Relay {
                kind: tx.kind,
                error,
            })?;
        }
        Ok(txs)
    }

    /// Takes the next sale into the chain.
    ///
    /// # Errors
    /// [`StockError`] when there can be no such sale.
    pub fn push(&mut self, sale: Sale) -> Result<SaleTxs, StockError> {
        let txs = self.draft(&sale)?;
        self.left.extend(txs.left.clone());
        self.sales.push(sale);
        Ok(txs)
    }

    /// What is left, in even parts.
    fn shares(&self, left: Option<&Spent>) -> Vec<u64> {
        let amount = left.map_or(Amount::ZERO, |left| left.txout.value);
        even(amount.to_sat(), self.payouts.len())
    }

    /// What each client has a claim on: its channels of `sales`, and its share of what is left.
    /// Who has none is not paid.
    fn claims(&self, sales: &[Sale], shares: &[u64]) -> Vec<Claim> {
        let payouts = self.clients().zip(&self.payouts).zip(shares);
        let claims = payouts.map(|((position, script), share)| Claim {
            capacity: self.sold_to(position, sales),
            share: Amount::from_sat(*share),
            clients: position..position.saturating_add(1),
            script: script.clone(),
            role: OutputRole::Payout,
        });
        let paid = |claim: &Claim| claim.capacity > Amount::ZERO || claim.share > Amount::ZERO;
        claims.filter(paid).collect()
    }

    /// The poisons that the last of `sales` makes, on everything consumed up to it.
    pub(super) fn poisons(
        &self,
        sales: &[Sale],
        left: Option<&Spent>,
    ) -> Result<Vec<FactoryTx>, StockError> {
        let Some(last) = sales.last() else {
            return Ok(Vec::new());
        };
        let shares = self.shares(left);
        let timelock = Timelock {
            height: None,
            delay: Some(self.params.poison_delay(last.number)),
        };
        let consumed = self.left.iter().take(sales.len()).enumerate();
        consumed
            .map(|(sold_before, stock)| {
                let since = sales.get(sold_before..).unwrap_or_default();
                let claims = self.claims(since, &shares);
                let outputs = expiry::timeout_outputs(&self.params, stock.txout.value, &claims)?;
                let spends = stock.clone();
                Ok(FactoryTx::new(TxKind::Poison, timelock, spends, outputs))
            })
            .collect()
    }

    fn channel_timeouts(
        &self,
        chain: &FactoryTx,
        sale: &Sale,
    ) -> Result<Vec<FactoryTx>, StockError> {
        let made = chain.outputs_of(OutputRole::Channel).zip(sale.channels());
        made.map(|((outpoint, output), channel)| {
            let claims = self.claims(core::slice::from_ref(sale), &self.shares(None));
            let own = claims
                .into_iter()
                .filter(|claim| claim.clients.contains(&channel.position));
            let own: Vec<Claim> = own.collect();
            let spends = channel_spent(outpoint, output);
            Ok(plan::timeout(&self.params, &self.schedule, spends, &own)?)
        })
        .collect()
    }
}

fn chain(consumed: &Spent, sale: &Sale, left: Amount) -> FactoryTx {
    let mut outputs: Vec<RoledOutput> = sale
        .channels()
        .map(|channel| RoledOutput {
            role: OutputRole::Channel,
            clients: channel.position..channel.position.saturating_add(1),
            txout: channel_output(
                &channel.channel_key,
                &channel.lsp_channel_key,
                channel.capacity,
            ),
        })
        .collect();
    if left > Amount::ZERO {
        let mut txout = consumed.txout.clone();
        txout.value = left;
        outputs.push(RoledOutput {
            role: OutputRole::Stock,
            clients: consumed.clients.clone(),
            txout,
        });
    }
    outputs.push(anchor(Amount::ZERO));
    FactoryTx::new(
        TxKind::StockChain,
        Timelock::NONE,
        consumed.clone(),
        outputs,
    )
}

fn channel_spent(outpoint: OutPoint, output: &RoledOutput) -> Spent {
    Spent {
        outpoint,
        kind: SpentKind::Channel,
        txout: output.txout.clone(),
        key: None,
        clients: output.clients.clone(),
    }
}
