//! Every output script, one function each; and what an output is for.

use bitcoin::opcodes::all::{OP_CHECKSIG, OP_CLTV, OP_CSV, OP_DROP, OP_PUSHNUM_1};
use bitcoin::secp256k1::{PublicKey, Secp256k1, Verification, XOnlyPublicKey};
use bitcoin::taproot::{LeafVersion, TapNodeHash};
use bitcoin::{Amount, Script, ScriptBuf, TxOut};
use serde::{Deserialize, Serialize};

use crate::shape::ClientRange;
use crate::units::{Blocks, Height};

/// The witness program of pay-to-anchor (BIP-433).
const P2A_PROGRAM: [u8; 2] = [0x4e, 0x73];
/// What an anchor holds when its transaction pays a fee of its own (the dust limit of P2A).
pub const FUNDED_ANCHOR: Amount = Amount::from_sat(240);
/// No other output holds less.
pub const MIN_OUTPUT: Amount = Amount::from_sat(330);
/// No amount in the protocol is larger than this.
pub const MAX_MONEY: Amount = Amount::MAX_MONEY;

/// What an output is for. No code finds an output by counting.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum OutputRole {
    /// n-of-n of the clients of a subtree (with the LSP, or without it below a first-stage timeout).
    Branch,
    /// One client's Lightning channel.
    Channel,
    /// What the LSP sells further channels from.
    Stock,
    /// Keyless pay-to-anchor for a fee-paying child.
    Anchor,
    /// One client's own money.
    Payout,
}

/// An output together with what it is for and whose it is.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct RoledOutput {
    /// What it is for.
    pub role: OutputRole,
    /// The clients it belongs to; empty for an anchor.
    pub clients: ClientRange,
    /// Amount and script.
    pub txout: TxOut,
}

/// The script leaf of an output, beside its key path.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum ScriptLeaf {
    /// Key path only.
    None,
    /// The LSP alone from this height on (`LspReclaim`).
    LspAfter(Height),
    /// The LSP alone so many blocks after confirmation (stocks).
    LspDelayed(Blocks),
}

impl ScriptLeaf {
    /// The script, if there is one.
    #[must_use]
    pub fn script(self, lsp: XOnlyPublicKey) -> Option<ScriptBuf> {
        let builder = ScriptBuf::builder();
        let locked = match self {
            Self::None => return None,
            Self::LspAfter(height) => builder.push_int(height.0.into()).push_opcode(OP_CLTV),
            Self::LspDelayed(blocks) => builder.push_int(blocks.0.into()).push_opcode(OP_CSV),
        };
        let script = locked
            .push_opcode(OP_DROP)
            .push_x_only_key(&lsp)
            .push_opcode(OP_CHECKSIG);
        Some(script.into_script())
    }

    /// The BIP-341 merkle root: the leaf's own hash, as there is never more than one leaf.
    #[must_use]
    pub fn merkle_root(self, lsp: XOnlyPublicKey) -> Option<TapNodeHash> {
        let script = self.script(lsp)?;
        Some(TapNodeHash::from_script(&script, LeafVersion::TapScript))
    }
}

/// P2TR of an output key that is already tweaked.
#[must_use]
pub fn taproot(output_key: XOnlyPublicKey) -> ScriptBuf {
    use bitcoin::key::TweakedPublicKey;
    ScriptBuf::new_p2tr_tweaked(TweakedPublicKey::dangerous_assume_tweaked(output_key))
}

/// P2TR of one party's own key, BIP-86.
#[must_use]
pub fn payout<C: Verification>(secp: &Secp256k1<C>, key: XOnlyPublicKey) -> ScriptBuf {
    ScriptBuf::new_p2tr(secp, key, None)
}

/// Pay-to-anchor (BIP-433): spendable by anybody, with an empty witness.
#[must_use]
pub fn anchor_script() -> ScriptBuf {
    let builder = ScriptBuf::builder().push_opcode(OP_PUSHNUM_1);
    builder.push_slice(P2A_PROGRAM).into_script()
}

/// An anchor output of `amount`: 0 where the transaction pays no fee, else [`FUNDED_ANCHOR`].
#[must_use]
pub fn anchor(amount: Amount) -> RoledOutput {
    RoledOutput {
        role: OutputRole::Anchor,
        clients: 0..0,
        txout: TxOut {
            value: amount,
            script_pubkey: anchor_script(),
        },
    }
}

/// BOLT 3's 2-of-2 witness script, keys in lexicographic order.
#[must_use]
pub fn channel_witness_script(a: &PublicKey, b: &PublicKey) -> ScriptBuf {
    use bitcoin::opcodes::all::{OP_CHECKMULTISIG, OP_PUSHNUM_2};
    let (first, second) = if a.serialize() < b.serialize() {
        (a, b)
    } else {
        (b, a)
    };
    ScriptBuf::builder()
        .push_opcode(OP_PUSHNUM_2)
        .push_slice(first.serialize())
        .push_slice(second.serialize())
        .push_opcode(OP_PUSHNUM_2)
        .push_opcode(OP_CHECKMULTISIG)
        .into_script()
}

/// BOLT 3's funding output script: P2WSH of [`channel_witness_script`].
#[must_use]
pub fn channel(a: &PublicKey, b: &PublicKey) -> ScriptBuf {
    channel_witness_script(a, b).to_p2wsh()
}

/// Whether `script` is a P2TR or P2WSH output: the only kinds a tree has beside its anchors.
#[must_use]
pub fn is_tree_script(script: &Script) -> bool {
    script.is_p2tr() || script.is_p2wsh()
}

#[cfg(test)]
mod tests {
    use super::*;
    use bitcoin::key::Keypair;
    use bitcoin::secp256k1::SecretKey;

    fn key(byte: u8) -> PublicKey {
        let secp = Secp256k1::new();
        SecretKey::from_slice(&[byte; 32])
            .unwrap()
            .public_key(&secp)
    }

    #[test]
    fn anchor_is_the_bip433_script() {
        assert_eq!(anchor_script().to_hex_string(), "51024e73");
    }

    #[test]
    fn channel_keys_are_sorted() {
        assert_eq!(channel(&key(1), &key(2)), channel(&key(2), &key(1)));
        assert!(is_tree_script(&channel(&key(1), &key(2))));
        assert!(!is_tree_script(&anchor_script()));
    }

    #[test]
    fn script_leaves_lock_as_stated() {
        let secp = Secp256k1::new();
        let lsp = Keypair::from_secret_key(&secp, &SecretKey::from_slice(&[9; 32]).unwrap())
            .x_only_public_key()
            .0;
        let csv = ScriptLeaf::LspDelayed(Blocks(504)).script(lsp).unwrap();
        assert!(
            csv.to_asm_string()
                .starts_with("OP_PUSHBYTES_2 f801 OP_CSV OP_DROP")
        );
        let cltv = ScriptLeaf::LspAfter(Height(800_000)).script(lsp).unwrap();
        assert!(cltv.to_asm_string().contains("OP_CLTV OP_DROP"));
        assert_eq!(cltv.len(), 40);
        assert!(ScriptLeaf::None.merkle_root(lsp).is_none());
    }
}
