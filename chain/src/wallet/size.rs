//! Sizes of the transactions we build, known before they are signed.

use bitcoin::{Transaction, TxIn, Weight, Witness};

/// A key-path signature with the default sighash type: one element of 64 bytes.
const SIGNATURE: [u8; 64] = [0; 64];

/// The weight that a transaction will have when each of its inputs that `is_signed` tells has a taproot key-path signature.
pub(super) fn signed_weight(
    transaction: &Transaction,
    is_signed: impl Fn(&TxIn) -> bool,
) -> Weight {
    let mut signed = transaction.clone();
    for input in &mut signed.input {
        if is_signed(input) {
            input.witness = Witness::from_slice(&[SIGNATURE]);
        }
    }
    signed.weight()
}

/// Virtual bytes of it, as the node counts them.
pub(super) fn signed_vsize(transaction: &Transaction, is_signed: impl Fn(&TxIn) -> bool) -> u64 {
    signed_weight(transaction, is_signed).to_vbytes_ceil()
}
