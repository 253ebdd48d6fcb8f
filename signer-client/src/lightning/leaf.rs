//! A leaf, as the Lightning node wants to know it.

use channel_host::{KnownSpend, Leaf, LeafId, SpendKind, funding_redeem_script};
use factory_tree::factory::SpentKind;
use factory_tree::kit::{ExitKit, KitChannel};
use factory_tree::units::Blocks;

/// The name of a kit's leaf.
pub(crate) const fn leaf_id(kit: &ExitKit) -> LeafId {
    LeafId(kit.leaf_id.0)
}

/// The leaf of a verified kit, with our channel id of it; nothing if the kit has no channel.
pub(crate) fn leaf_of(kit: &ExitKit) -> Option<Leaf> {
    leaf_at(kit, kit.channels().first()?)
}

/// The leaf of one of a verified kit's channels, with our channel id of it.
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
    // What is locked in a payment must be fetched before the timeout takes all of the channel.
    let last_expiry = kit.expiry.minus(Blocks(kit.params.late_margin));
    Some(Leaf {
        id: LeafId(channel.leaf_id.0),
        channel_id: channel.leaf_id.as_u128(),
        transaction: transaction.tx.clone(),
        vout: outpoint.vout,
        redeem_script: funding_redeem_script(&channel.channel_key, &channel.lsp_channel_key),
        exit_delay: kit.exit_delay.0,
        last_expiry: last_expiry.0,
        spends: spends.collect(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use bitcoin::Network;
    use factory_tree::params::{FactoryParams, Profile};
    use factory_tree::testing::TestFactory;

    #[test]
    fn a_kits_leaf_is_its_channel_output() {
        let params = FactoryParams::profile(Profile::Lite, Network::Regtest);
        let kit = TestFactory::new(1, params, 2).unwrap().sign().kit(1);
        let leaf = leaf_of(&kit).unwrap();
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
}
