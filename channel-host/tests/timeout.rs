//! A channel's timeout, from both sides' keys to a witness checked as a node would.

use bitcoin::absolute::LockTime;
use bitcoin::hashes::Hash;
use bitcoin::secp256k1::{Message, PublicKey, Secp256k1, ecdsa};
use bitcoin::sighash::{EcdsaSighashType, SighashCache};
use bitcoin::transaction::Version;
use bitcoin::{Amount, OutPoint, ScriptBuf, Sequence, Transaction, TxIn, TxOut, Witness};
use channel_host::{LeafKeys, TimeoutError, funding_redeem_script, lsp_channel_id};

const AMOUNT: Amount = Amount::from_sat(600_000);
const EXPIRY: u32 = 900_000;

/// Both sides of one leaf, and its timeout.
struct Leaf {
    lsp: LeafKeys,
    lsp_id: u128,
    client: LeafKeys,
    client_id: u128,
    script: ScriptBuf,
    output: TxOut,
    tx: Transaction,
}

impl Leaf {
    fn new() -> Self {
        let (lsp, client) = (
            LeafKeys::new(&rand::random()),
            LeafKeys::new(&rand::random()),
        );
        let leaf_id: [u8; 16] = rand::random();
        let (lsp_id, client_id) = (
            lsp_channel_id(leaf_id, rand::random()),
            u128::from_be_bytes(leaf_id),
        );
        let script = funding_redeem_script(
            &lsp.funding_pubkey(lsp_id),
            &client.funding_pubkey(client_id),
        );
        let output = TxOut {
            value: AMOUNT,
            script_pubkey: script.to_p2wsh(),
        };
        let leaf_tx = Transaction {
            version: Version(3),
            lock_time: LockTime::ZERO,
            input: vec![TxIn::default()],
            output: vec![output.clone()],
        };
        let payout = TxOut {
            value: AMOUNT,
            script_pubkey: ScriptBuf::from_bytes(vec![0x51, 0x20, 9]),
        };
        let tx = Transaction {
            version: Version(3),
            lock_time: LockTime::from_height(EXPIRY).unwrap(),
            input: vec![TxIn {
                previous_output: OutPoint::new(leaf_tx.compute_txid(), 0),
                sequence: Sequence::ENABLE_RBF_NO_LOCKTIME,
                ..TxIn::default()
            }],
            output: vec![payout],
        };
        Self {
            lsp,
            lsp_id,
            client,
            client_id,
            script,
            output,
            tx,
        }
    }

    fn lsp_key(&self) -> PublicKey {
        self.lsp.funding_pubkey(self.lsp_id)
    }

    fn sign(&self) -> Result<ecdsa::Signature, TimeoutError> {
        self.lsp
            .sign_timeout(self.lsp_id, &self.tx, 0, &self.script, AMOUNT)
    }

    fn client_checks(&self, signature: &ecdsa::Signature) -> Result<(), TimeoutError> {
        self.client.verify_timeout_signature(
            &self.lsp_key(),
            signature,
            &self.tx,
            0,
            &self.script,
            AMOUNT,
        )
    }
}

/// What OP_CHECKMULTISIG does with a 2-of-2: the first signature for the first key, the second for the second.
fn spends(witness: &Witness, tx: &Transaction, output: &TxOut) {
    let [dummy, first, second, script] = witness.iter().collect::<Vec<_>>()[..] else {
        panic!("a 2-of-2 has four witness elements");
    };
    assert!(dummy.is_empty(), "NULLDUMMY (BIP-147)");
    let script = ScriptBuf::from_bytes(script.to_vec());
    assert_eq!(script.to_p2wsh(), output.script_pubkey);
    let sighash = SighashCache::new(tx)
        .p2wsh_signature_hash(0, &script, output.value, EcdsaSighashType::All)
        .unwrap();
    let message = Message::from_digest(sighash.to_byte_array());
    let secp = Secp256k1::verification_only();
    for (signature, key) in [(first, 2..35), (second, 36..69)] {
        let signature = bitcoin::ecdsa::Signature::from_slice(signature).unwrap();
        assert_eq!(signature.sighash_type, EcdsaSighashType::All);
        let key = PublicKey::from_slice(&script.as_bytes()[key]).unwrap();
        secp.verify_ecdsa(&message, &signature.signature, &key)
            .unwrap();
    }
}

#[test]
fn both_halves_spend_the_channel() {
    for _ in 0..10 {
        let leaf = Leaf::new();
        let lsp_half = leaf.sign().unwrap();
        leaf.client_checks(&lsp_half).unwrap();
        let client_half = leaf
            .client
            .sign_timeout(leaf.client_id, &leaf.tx, 0, &leaf.script, AMOUNT)
            .unwrap();

        let (lsp_key, client_key) = (leaf.lsp_key(), leaf.client.funding_pubkey(leaf.client_id));
        let mut halves = [
            (lsp_key.serialize(), lsp_half),
            (client_key.serialize(), client_half),
        ];
        halves.sort_by_key(|(key, _)| *key);
        let mut witness = Witness::new();
        witness.push([]);
        for (_, half) in halves {
            witness.push_ecdsa_signature(&bitcoin::ecdsa::Signature::sighash_all(half));
        }
        witness.push(&leaf.script);
        spends(&witness, &leaf.tx, &leaf.output);
    }
}

#[test]
fn a_half_is_good_for_one_timeout_only() {
    let leaf = Leaf::new();
    let half = leaf.sign().unwrap();
    let bad = |result| {
        assert!(
            matches!(result, Err(TimeoutError::BadSignature { .. })),
            "{result:?}"
        )
    };

    let check = |tx: &Transaction, amount| {
        leaf.client
            .verify_timeout_signature(&leaf.lsp_key(), &half, tx, 0, &leaf.script, amount)
    };
    check(&leaf.tx, AMOUNT).unwrap();
    bad(check(&leaf.tx, AMOUNT - Amount::ONE_SAT));
    let altered = |alter: fn(&mut Transaction)| {
        let mut tx = leaf.tx.clone();
        alter(&mut tx);
        check(&tx, AMOUNT)
    };
    bad(altered(|tx| tx.output[0].value -= Amount::ONE_SAT));
    bad(altered(|tx| {
        tx.lock_time = LockTime::from_height(EXPIRY - 1).unwrap()
    }));
    bad(altered(|tx| tx.input[0].previous_output.vout = 1));
    bad(altered(|tx| tx.input[0].sequence = Sequence::ZERO));
    bad(altered(|tx| tx.version = Version::TWO));

    // Another leaf's key, or the client's own, made it.
    let other = Leaf::new();
    let theirs = other
        .lsp
        .sign_timeout(other.lsp_id, &leaf.tx, 0, &leaf.script, AMOUNT)
        .unwrap();
    bad(leaf.client_checks(&theirs));
    let own = leaf
        .client
        .sign_timeout(leaf.client_id, &leaf.tx, 0, &leaf.script, AMOUNT)
        .unwrap();
    bad(leaf.client_checks(&own));
}

#[test]
fn a_key_outside_the_script_is_refused() {
    let leaf = Leaf::new();
    let stranger = Leaf::new();
    let half = stranger
        .lsp
        .sign_timeout(stranger.lsp_id, &leaf.tx, 0, &leaf.script, AMOUNT)
        .unwrap();
    let signer = stranger.lsp_key();
    let refused = Err(TimeoutError::ForeignKey { signer });
    let check = |script: &ScriptBuf| {
        leaf.client
            .verify_timeout_signature(&signer, &half, &leaf.tx, 0, script, AMOUNT)
    };
    assert_eq!(check(&leaf.script), refused);
    // The stranger's key is in there, but the script is not a channel's.
    let client = leaf.client.funding_pubkey(leaf.client_id);
    let mut one_of_two = funding_redeem_script(&signer, &client).into_bytes();
    one_of_two[0] = 0x51;
    assert_eq!(check(&ScriptBuf::from_bytes(one_of_two)), refused);
    assert_eq!(check(&ScriptBuf::new()), refused);
}

#[test]
fn malleated_signatures_are_refused() {
    // n - s is as valid a signature to consensus, but nodes do not relay it.
    let leaf = Leaf::new();
    let half = leaf.sign().unwrap();
    let order = "fffffffffffffffffffffffffffffffebaaedce6af48a03bbfd25e8cd0364141";
    let order: [u8; 32] = hex::decode(order).unwrap().try_into().unwrap();
    let mut compact = half.serialize_compact();
    let mut borrow = 0;
    for (byte, n) in compact[32..].iter_mut().zip(order).rev() {
        let difference = i16::from(n) - i16::from(*byte) - borrow;
        borrow = i16::from(difference < 0);
        *byte = difference.rem_euclid(256) as u8;
    }
    let high = ecdsa::Signature::from_compact(&compact).unwrap();
    assert!(matches!(
        leaf.client_checks(&high),
        Err(TimeoutError::BadSignature { .. })
    ));
    let mut low = high;
    low.normalize_s();
    assert_eq!(low, half);
    leaf.client_checks(&low).unwrap();
}

#[test]
fn only_a_timeout_is_signed() {
    let mut leaf = Leaf::new();
    let good = leaf.tx.clone();
    let half = leaf.sign().unwrap();
    let mut refused = |alter: &dyn Fn(&mut Transaction)| {
        leaf.tx = good.clone();
        alter(&mut leaf.tx);
        let error = leaf.sign().unwrap_err();
        assert_eq!(
            leaf.client_checks(&half),
            Err(error.clone()),
            "both sides refuse alike"
        );
        error
    };
    let at_once = refused(&|tx| tx.lock_time = LockTime::ZERO);
    assert!(matches!(
        at_once,
        TimeoutError::NotLocked { lock_time: 0, .. }
    ));
    let by_clock = refused(&|tx| tx.lock_time = LockTime::from_time(1_800_000_000).unwrap());
    assert!(matches!(by_clock, TimeoutError::NotLocked { .. }));
    let final_input = refused(&|tx| tx.input[0].sequence = Sequence::MAX);
    assert!(matches!(
        final_input,
        TimeoutError::NotLocked {
            sequence: u32::MAX,
            ..
        }
    ));
    let two = refused(&|tx| tx.input.push(TxIn::default()));
    assert_eq!(two, TimeoutError::NotOneInput { inputs: 2 });
    assert_eq!(
        refused(&|tx| tx.input.clear()),
        TimeoutError::NotOneInput { inputs: 0 }
    );

    leaf.tx = good;
    let beyond = leaf
        .lsp
        .sign_timeout(leaf.lsp_id, &leaf.tx, 1, &leaf.script, AMOUNT);
    assert_eq!(beyond, Err(TimeoutError::NoSuchInput { index: 1 }));
}
