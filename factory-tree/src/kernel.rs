//! Bitcoin Core's consensus code as a judge, for tests.

use bitcoin::consensus::serialize;
use bitcoin::{Transaction, TxOut};
use bitcoinkernel::prelude::*;
use bitcoinkernel::{PrecomputedTransactionData, ScriptPubkey, VERIFY_ALL, verify};

/// Whether every input of `tx` validly spends the output in `prevouts` at its place.
pub(crate) fn accepts(tx: &Transaction, prevouts: &[TxOut]) -> bool {
    let sum_in: u64 = prevouts.iter().map(|out| out.value.to_sat()).sum();
    let sum_out: u64 = tx.output.iter().map(|out| out.value.to_sat()).sum();
    if prevouts.len() != tx.input.len() || sum_out > sum_in {
        return false;
    }
    let spending = bitcoinkernel::Transaction::new(&serialize(tx)).unwrap();
    let spent: Vec<bitcoinkernel::TxOut> = prevouts
        .iter()
        .map(|out| {
            let script = ScriptPubkey::new(out.script_pubkey.as_bytes()).unwrap();
            bitcoinkernel::TxOut::new(&script, out.value.to_sat() as i64)
        })
        .collect();
    let data = PrecomputedTransactionData::new(&spending, &spent).unwrap();
    (0..prevouts.len()).all(|index| {
        let out = &spent[index];
        let (script, amount) = (out.script_pubkey(), Some(out.value()));
        verify(&script, amount, &spending, index, Some(VERIFY_ALL), &data).is_ok()
    })
}
