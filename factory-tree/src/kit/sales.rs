//! The sales in an exit kit: how one is added, what they are checked against, and which of their
//! transactions a client publishes.

use std::collections::BTreeSet;

use bitcoin::secp256k1::{PublicKey, schnorr};
use bitcoin::{Amount, OutPoint, ScriptBuf};

use super::{ChannelSignatures, ExitKit, KitError, KitTx, sign_channel};
use crate::factory::SpentKind;
use crate::ids::LeafId;
use crate::output::OutputRole;
use crate::plan;
use crate::sale::{SaleTxs, Stock};
use crate::tx::TxKind;

/// One channel of the client in this factory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KitChannel {
    /// Its leaf id.
    pub leaf_id: LeafId,
    /// Where it is.
    pub outpoint: OutPoint,
    /// What it holds.
    pub capacity: Amount,
    /// The client's funding key.
    pub channel_key: PublicKey,
    /// The LSP's funding key.
    pub lsp_channel_key: PublicKey,
    /// The sale that made it; `None` for the leaf's own.
    pub sale: Option<u8>,
}

impl ExitKit {
    /// The kit with one more sale, from its finished signatures in session order; `channel` signs
    /// the timeout of the client's new channel, if it has one.
    ///
    /// # Errors
    /// [`KitError::Count`], and everything [`Self::verify`] finds.
    pub fn with_sale(
        &self,
        txs: &SaleTxs,
        signatures: &[schnorr::Signature],
        channel: Option<&ChannelSignatures>,
    ) -> Result<Self, KitError> {
        let kit = self.append_sale(txs, signatures, channel)?;
        kit.verify()?;
        Ok(kit)
    }

    /// [`Self::with_sale`] without looking at the signatures.
    pub(crate) fn append_sale(
        &self,
        txs: &SaleTxs,
        signatures: &[schnorr::Signature],
        channel: Option<&ChannelSignatures>,
    ) -> Result<Self, KitError> {
        let count = |what, found, expected| KitError::Count {
            what,
            found,
            expected,
        };
        let (found, expected) = (signatures.len(), txs.sessions().count());
        if found != expected {
            return Err(count("signatures", found, expected));
        }
        let own = txs.channel_of(self.position);
        if own.is_some() != channel.is_some() {
            let (found, expected) = (channel.iter().count(), own.iter().count());
            return Err(count("channel signatures", found, expected));
        }
        let mut kit = self.clone();
        let signed = txs.sessions().zip(signatures);
        kit.txs
            .extend(signed.map(|(tx, signature)| KitTx::new(tx, tx.signed(signature))));
        if let Some(((sold, timeout), signed)) = own.zip(channel) {
            let client = (&sold.channel_key, &signed.client);
            let lsp = (&sold.lsp_channel_key, &signed.lsp);
            kit.txs
                .push(KitTx::new(timeout, sign_channel(timeout, client, lsp)));
        }
        kit.sales.push(txs.sale.clone());
        Ok(kit)
    }

    /// The client's channels: the leaf's own first, then those of sales.
    #[must_use]
    pub fn channels(&self) -> Vec<KitChannel> {
        let leaf = self.channel_outpoint().map(|outpoint| KitChannel {
            leaf_id: self.leaf_id,
            outpoint,
            capacity: self.capacity,
            channel_key: self.channel_key,
            lsp_channel_key: self.lsp_channel_key,
            sale: None,
        });
        let chain = self.chain().zip(&self.sales);
        let sold = chain.filter_map(|(tx, sale)| {
            let channel = sale.channel_of(self.position)?;
            let outpoint = self.own_channel(tx)?;
            Some(KitChannel {
                leaf_id: channel.leaf_id,
                outpoint,
                capacity: channel.capacity,
                channel_key: channel.channel_key,
                lsp_channel_key: channel.lsp_channel_key,
                sale: Some(sale.number),
            })
        });
        leaf.into_iter().chain(sold).collect()
    }

    /// The sales' chain transactions, in order.
    pub fn chain(&self) -> impl Iterator<Item = &KitTx> {
        self.txs.iter().filter(|tx| tx.kind == TxKind::StockChain)
    }

    fn own_channel(&self, tx: &KitTx) -> Option<OutPoint> {
        let mut own = self.own_outputs(tx);
        let found = own.find(|(_, output, _)| output.role == OutputRole::Channel);
        found.map(|(outpoint, ..)| outpoint)
    }

    /// Where the clients of the stock at `stock` are paid, in leaf order.
    pub(crate) fn payouts_of(&self, stock: OutPoint) -> Vec<ScriptBuf> {
        let mut spends = self.txs.iter().filter(|tx| tx.spends.outpoint == stock);
        let Some(timeout) = spends.find(|tx| tx.kind == TxKind::Timeout) else {
            return self.stock_payouts.clone();
        };
        let outputs = timeout.outputs.iter().zip(&timeout.tx.output);
        let payouts = outputs.filter(|(output, _)| output.role == OutputRole::Payout);
        payouts
            .map(|(_, txout)| txout.script_pubkey.clone())
            .collect()
    }

    /// What the kit had before its first sale: the timeout of the leaf's channel comes last.
    pub(super) fn txs_before_sales(&self) -> &[KitTx] {
        let mut txs = self.txs.iter();
        let last = txs.position(|tx| tx.spends.kind == SpentKind::Channel);
        let end = last.map_or(self.txs.len(), |last| last.saturating_add(1));
        self.txs.get(..end).unwrap_or_default()
    }

    /// After the leaf's come the transactions of each sale, exactly as its terms make them: what
    /// of them concerns this client, in session order.
    pub(super) fn check_sales(&self) -> Result<(), KitError> {
        if plan::has_timeouts(&self.params) && !self.stock_payouts.is_empty() {
            return Err(KitError::Field("stock_payouts"));
        }
        let mut kept = self.txs.iter().skip(self.txs_before_sales().len());
        if !self.sales.is_empty() || !self.stock_payouts.is_empty() {
            let mut stock = Stock::unsold_of_kit(self)?;
            if stock.payout_of(self.position) != Some(&self.payout_script) {
                return Err(KitError::Field("stock_payouts"));
            }
            for sale in &self.sales {
                self.check_sale(&stock.push(sale.clone())?, &mut kept)?;
            }
        }
        let mut leaves = BTreeSet::new();
        let fresh = |channel: &KitChannel| leaves.insert(channel.leaf_id);
        if kept.next().is_none() && self.channels().iter().all(fresh) {
            return Ok(());
        }
        Err(KitError::Field("sales"))
    }

    /// The next of `kept` are those of this sale, in every field; what is signed is judged with
    /// the rest of the kit.
    fn check_sale<'a>(
        &self,
        txs: &SaleTxs,
        kept: &mut impl Iterator<Item = &'a KitTx>,
    ) -> Result<(), KitError> {
        let own = txs.channel_of(self.position).map(|(_, timeout)| timeout);
        for due in txs.sessions().chain(own) {
            let found = kept.next().ok_or(KitError::Field("sales"))?;
            if *found != KitTx::new(due, found.tx.clone()) {
                return Err(KitError::Field("sales"));
            }
        }
        Ok(())
    }

    /// Whether the client ever publishes `tx`. Of a stock that was sold from that is the sale, if
    /// a channel of the client's is at its end, and the newest poison, if it pays the client; never
    /// what would pay as if the sale had not been.
    pub(crate) fn publishes(&self, tx: &KitTx) -> bool {
        if tx.spends.kind != SpentKind::Stock {
            return true;
        }
        let stock = tx.spends.outpoint;
        let mut later = self
            .chain()
            .skip_while(|sold| sold.spends.outpoint != stock);
        match tx.kind {
            TxKind::StockChain => later.any(|sold| self.own_channel(sold).is_some()),
            TxKind::Poison => self.newest_poison(stock).is_some_and(|newest| newest == tx),
            _ => later.next().is_none(),
        }
    }

    /// The poison of `stock` that is final first, if it pays the client.
    fn newest_poison(&self, stock: OutPoint) -> Option<&KitTx> {
        let spends = self.txs.iter().filter(|tx| tx.spends.outpoint == stock);
        let poisons = spends.filter(|tx| tx.kind == TxKind::Poison);
        let newest = poisons.min_by_key(|tx| tx.timelock.delay)?;
        self.own_outputs(newest).next().is_some().then_some(newest)
    }

    /// How the client's share of the stock ends when it publishes what it has to, and nobody else
    /// does anything: by the poison of the first sale that it does not publish, or by the timeout
    /// of what the last one left.
    pub(crate) fn stock_end(&self) -> Option<&KitTx> {
        if let Some(withheld) = self.chain().find(|sold| !self.publishes(sold)) {
            return self.newest_poison(withheld.spends.outpoint);
        }
        let mut stock = self
            .txs
            .iter()
            .filter(|tx| tx.spends.kind == SpentKind::Stock);
        stock.find(|tx| tx.kind == TxKind::Timeout && self.publishes(tx))
    }
}
