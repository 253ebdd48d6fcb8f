//! What is signed in a channel's timeout: the transaction that pays the whole channel to its client at the factory's expiry,
//! and needs both funding keys.

use bitcoin::absolute::LockTime;
use bitcoin::secp256k1::{Message, PublicKey};
use bitcoin::sighash::{EcdsaSighashType, SighashCache};
use bitcoin::{Amount, Script, ScriptBuf, Transaction};
use lightning::ln::chan_utils::make_funding_redeemscript;
use thiserror::Error;

/// Why a channel timeout is not signed, or its signature not accepted.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum TimeoutError {
    /// LDK notices the spend of a channel output only in a transaction with this one input, and would go on paying over a dead
    /// channel.
    #[error("a channel timeout has exactly one input, this one has {inputs}")]
    NotOneInput {
        /// How many it has.
        inputs: usize,
    },
    /// The input to sign is not there.
    #[error("there is no input {index}")]
    NoSuchInput {
        /// The input asked for.
        index: usize,
    },
    /// Without a height to wait for it could be spent at once.
    #[error(
        "a channel timeout waits for a block height, this one does not (nLockTime {lock_time}, nSequence {sequence:#x})"
    )]
    NotLocked {
        /// Its nLockTime, as on the wire.
        lock_time: u32,
        /// Its input's nSequence, as on the wire.
        sequence: u32,
    },
    /// Signed by a key the output does not ask for.
    #[error("{signer} is not one of the two keys of the channel output")]
    ForeignKey {
        /// The key in question.
        signer: PublicKey,
    },
    /// The signature does not verify.
    #[error("the signature of {signer} does not fit this timeout")]
    BadSignature {
        /// Whose signature it was to be.
        signer: PublicKey,
    },
}

/// The witness script of a channel output, keys in BOLT 3's order, whatever the order given. Its P2WSH is the output's script.
pub fn funding_redeem_script(a: &PublicKey, b: &PublicKey) -> ScriptBuf {
    make_funding_redeemscript(a, b)
}

/// The message both keys sign: BIP-143, SIGHASH_ALL.
pub(crate) fn message(
    tx: &Transaction,
    input_index: usize,
    redeem_script: &Script,
    amount: Amount,
) -> Result<Message, TimeoutError> {
    let [input] = tx.input.as_slice() else {
        return Err(TimeoutError::NotOneInput {
            inputs: tx.input.len(),
        });
    };
    let waits = matches!(tx.lock_time, LockTime::Blocks(height) if height.to_consensus_u32() > 0);
    if !waits || !input.sequence.enables_absolute_lock_time() {
        let (lock_time, sequence) = (
            tx.lock_time.to_consensus_u32(),
            input.sequence.to_consensus_u32(),
        );
        return Err(TimeoutError::NotLocked {
            lock_time,
            sequence,
        });
    }
    SighashCache::new(tx)
        .p2wsh_signature_hash(input_index, redeem_script, amount, EcdsaSighashType::All)
        .map(|sighash| Message::from_digest(bitcoin::hashes::Hash::to_byte_array(sighash)))
        .map_err(|_| TimeoutError::NoSuchInput { index: input_index })
}

/// Whether `key` is one of the two keys of BOLT 3's `2 <key> <key> 2 OP_CHECKMULTISIG`.
pub(crate) fn has_key(redeem_script: &Script, key: &PublicKey) -> bool {
    let key = key.serialize();
    match redeem_script.as_bytes() {
        [0x52, 0x21, keys @ .., 0x52, 0xae] if keys.len() == 67 && keys[33] == 0x21 => {
            keys[..33] == key || keys[34..] == key
        }
        _ => false,
    }
}
