//! Channel keys for the machine.

use std::fmt;
use std::sync::Arc;

use bitcoin::Script;
use bitcoin::secp256k1::ecdsa;
use factory_tree::ceremony::signer::{ChannelSigner, JoinKeys};
use factory_tree::factory::FactoryTx;
use factory_tree::ids::LeafId;

use crate::keys::ClientKeys;

/// Signs channel timeouts with the wallet's leaf keys.
pub(crate) struct LeafSigner(pub(crate) Arc<ClientKeys>);

impl fmt::Debug for LeafSigner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("LeafSigner(..)")
    }
}

impl ChannelSigner for LeafSigner {
    fn sign_channel_timeout(
        &self,
        leaf: LeafId,
        timeout: &FactoryTx,
        witness_script: &Script,
    ) -> Option<ecdsa::Signature> {
        self.0
            .leaf_keys()
            .sign_timeout(
                leaf.as_u128(),
                &timeout.tx,
                0,
                witness_script,
                timeout.spends.txout.value,
            )
            .ok()
    }
}

/// The keys of one join.
pub(super) fn join_keys(keys: &ClientKeys, join_nonce: [u8; 16]) -> JoinKeys {
    let public = keys.join_public(join_nonce);
    JoinKeys {
        join_nonce,
        leaf_id: public.leaf_id,
        factory_secret: keys.factory_secret(join_nonce),
        payout_script: public.payout_script,
        channel_key: public.channel_key,
    }
}
