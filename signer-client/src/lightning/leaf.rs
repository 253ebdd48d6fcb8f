//! Leaves, as the Lightning node wants to know them: the one a factory was born with, and those of channels bought from its stock.

use channel_host::{KnownSpend, Leaf, LeafId, SpendKind, funding_redeem_script};
use factory_tree::exit::{ChainView, Spender, TxState, states};
use factory_tree::factory::SpentKind;
use factory_tree::kit::{ExitKit, KitChannel, KitTx};
use factory_tree::sale::SaleTxs;
use factory_tree::units::Blocks;

/// The name of the leaf that a kit was made with.
pub(crate) const fn leaf_id(kit: &ExitKit) -> LeafId {
    LeafId(kit.leaf_id.0)
}

/// The name of a channel's leaf.
pub(crate) const fn name_of(channel: &KitChannel) -> LeafId {
    LeafId(channel.leaf_id.0)
}

/// The leaf of a channel of a verified kit, with our channel id of it: the one that the kit was made with, or the sale that made a bought one.
pub(crate) fn leaf_at(kit: &ExitKit, channel: &KitChannel) -> Option<Leaf> {
    let outpoint = channel.outpoint;
    let transaction = kit.txs.iter().find(|tx| tx.txid() == outpoint.txid)?;
    let timeouts = kit
        .txs
        .iter()
        .filter(|tx| tx.spends.kind == SpentKind::Channel && tx.spends.outpoint == outpoint);
    let spends = timeouts.map(|timeout| KnownSpend {
        txid: timeout.txid(),
        kind: SpendKind::Timeout,
    });
    Some(Leaf {
        id: name_of(channel),
        channel_id: channel.leaf_id.as_u128(),
        transaction: transaction.tx.clone(),
        vout: outpoint.vout,
        redeem_script: funding_redeem_script(&channel.channel_key, &channel.lsp_channel_key),
        exit_delay: kit.exit_delay.0,
        last_expiry: last_expiry(kit),
        spends: spends.collect(),
    })
}

/// The leaf that a sale, which is not in the kit yet, is to make for the kit's client, if it makes one.
pub(crate) fn leaf_to_be(kit: &ExitKit, txs: &SaleTxs) -> Option<Leaf> {
    let (sold, timeout) = txs.channel_of(kit.position)?;
    let outpoint = timeout.spends.outpoint;
    let spend = KnownSpend {
        txid: timeout.txid,
        kind: SpendKind::Timeout,
    };
    Some(Leaf {
        id: LeafId(sold.leaf_id.0),
        channel_id: sold.leaf_id.as_u128(),
        transaction: txs.chain.tx.clone(),
        vout: outpoint.vout,
        redeem_script: funding_redeem_script(&sold.channel_key, &sold.lsp_channel_key),
        exit_delay: kit.exit_delay.0,
        last_expiry: last_expiry(kit),
        spends: vec![spend],
    })
}

/// What is locked in a payment must be fetched before the timeout takes all of the channel.
fn last_expiry(kit: &ExitKit) -> u32 {
    kit.expiry.minus(Blocks(kit.params.late_margin)).0
}

/// The transactions that bring a channel to the chain: the path, and the sales up to its own.
pub(crate) fn way<'a>(
    kit: &'a ExitKit,
    channel: &KitChannel,
) -> impl Iterator<Item = &'a KitTx> + use<'a> {
    let sales = usize::from(channel.sale.unwrap_or(0));
    kit.path().chain(kit.chain().take(sales))
}

/// What else took an output on the way to a channel, if something did: the channel can never come.
pub(crate) fn cut(kit: &ExitKit, channel: &KitChannel, chain: &ChainView) -> Option<Spender> {
    let txid = channel.outpoint.txid;
    let carrier = kit.txs.iter().position(|tx| tx.txid() == txid)?;
    let by = match states(kit, chain).get(carrier)? {
        TxState::Impossible { by } => *by,
        _ => return None,
    };
    let spenders = chain.spent.values().filter(|spender| spender.txid == by);
    spenders.min_by_key(|spender| spender.height).copied()
}

#[cfg(test)]
mod tests {
    use super::*;
    use bitcoin::Network;
    use factory_tree::params::{ExpiryPolicy, FactoryParams, Profile};
    use factory_tree::testing::TestFactory;
    use factory_tree::tx::TxKind;

    #[test]
    fn a_kits_leaf_is_its_channel_output() {
        let params = FactoryParams::profile(Profile::Lite, Network::Regtest);
        let kit = TestFactory::new(1, params, 2).unwrap().sign().kit(1);
        let leaf = leaf_at(&kit, &kit.channels()[0]).unwrap();
        let output = &leaf.transaction.output[leaf.vout as usize];
        assert_eq!(output.value, kit.capacity);
        assert_eq!(output.script_pubkey, leaf.redeem_script.to_p2wsh());
        assert_eq!(leaf.channel_id.to_be_bytes(), kit.leaf_id.0);
        assert_eq!(leaf.last_expiry, kit.expiry.0 - kit.params.late_margin);
        let timeout = kit.txs.last().unwrap();
        assert_eq!(
            timeout.spends.outpoint.txid,
            leaf.transaction.compute_txid()
        );
        assert_eq!(leaf.spends.len(), 1);
        assert_eq!(leaf.spends[0].txid, timeout.txid());
    }

    #[test]
    fn a_bought_channels_leaf_is_the_sale_that_made_it() {
        let [kit, mate] = crate::exit::tests::sold(ExpiryPolicy::ClientRefund);
        let channels = kit.channels();
        assert_eq!((channels.len(), mate.channels().len()), (3, 2));
        let mut names = std::collections::HashSet::new();
        for channel in &channels {
            let leaf = leaf_at(&kit, channel).unwrap();
            let output = &leaf.transaction.output[leaf.vout as usize];
            assert_eq!(output.value, channel.capacity);
            assert_eq!(output.script_pubkey, leaf.redeem_script.to_p2wsh());
            assert_eq!(leaf.channel_id.to_be_bytes(), leaf.id.0);
            assert_eq!(leaf.spends.len(), 1);
            assert!(names.insert(leaf.id));
            let last = way(&kit, channel).last().unwrap();
            assert_eq!(last.txid(), leaf.transaction.compute_txid());
        }
        let born = kit.path().count();
        let ways: Vec<usize> = channels.iter().map(|at| way(&kit, at).count()).collect();
        assert_eq!(ways, [born, born + 1, born + 3]);
    }

    #[test]
    fn a_poison_cuts_what_was_sold_and_not_the_leaf() {
        let [kit, _] = crate::exit::tests::sold(ExpiryPolicy::ClientRefund);
        let mut chain = crate::exit::tests::chain(&kit, 1, 300);
        let stock = kit.chain().nth(1).unwrap().spends.outpoint;
        let mut spends = kit.txs.iter().filter(|tx| tx.spends.outpoint == stock);
        let poison = spends.find(|tx| tx.kind == TxKind::Poison).unwrap();
        let spender = Spender {
            txid: poison.txid(),
            height: chain.tip,
        };
        let cuts = |chain: &ChainView| {
            let channels = kit.channels().into_iter();
            let cuts = channels.map(|channel| cut(&kit, &channel, chain));
            cuts.collect::<Vec<_>>()
        };
        assert_eq!(cuts(&chain), [None, None, None]);
        chain.spent.insert(stock, spender);
        // The first purchase is on the chain already.
        assert_eq!(cuts(&chain), [None, None, Some(spender)]);
    }
}
