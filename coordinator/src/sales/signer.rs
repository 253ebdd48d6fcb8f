//! How the coordinator signs one sale.

use std::sync::Arc;

use bitcoin::Script;
use bitcoin::secp256k1::{SecretKey, ecdsa};
use channel_host::lsp_channel_id;
use factory_tree::ceremony::coordinator::LspSigner;
use factory_tree::ceremony::message::Round;
use factory_tree::factory::FactoryTx;
use factory_tree::ids::LeafId;

use crate::keys::{FreshSeed, NodeKeys};

/// Signs with the keys of one factory and of the channels of one sale there.
#[derive(Debug)]
pub(super) struct SaleSigner {
    pub keys: Arc<NodeKeys>,
    /// Of the attempt that built the factory.
    pub factory: FreshSeed,
    /// Of the channels.
    pub leaves: Vec<LeafId>,
    /// Of the order.
    pub fresh: FreshSeed,
}

impl LspSigner for SaleSigner {
    fn factory_secret(&self, round: Round) -> SecretKey {
        self.keys.factory_secret(round, self.factory)
    }

    fn sign_channel_timeout(
        &self,
        leaf: LeafId,
        timeout: &FactoryTx,
        witness_script: &Script,
    ) -> Option<ecdsa::Signature> {
        if !self.leaves.contains(&leaf) {
            return None;
        }
        let id = lsp_channel_id(leaf.0, self.fresh);
        let amount = timeout.spends.txout.value;
        self.keys
            .leaf_keys()
            .sign_timeout(id, &timeout.tx, 0, witness_script, amount)
            .ok()
    }
}
