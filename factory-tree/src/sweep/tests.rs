use bitcoin::Network;
use bitcoin::secp256k1::All;

use super::*;
use crate::factory::SpentKind;
use crate::kernel::accepts;
use crate::output::OutputRole;
use crate::params::{ExpiryPolicy, FactoryParams, Profile};
use crate::plan;
use crate::testing::{SignedFactory, TestFactory, secret};
use crate::units::Blocks;

fn signed(policy: ExpiryPolicy) -> SignedFactory {
    let mut params = FactoryParams::profile(Profile::Lite, Network::Regtest);
    params.expiry_policy = policy;
    TestFactory::new(5, params, 9).unwrap().sign()
}

fn destination(secp: &Secp256k1<All>) -> ScriptBuf {
    let own = Keypair::from_secret_key(secp, &secret(5, "wallet", 0));
    crate::output::payout(secp, own.x_only_public_key().0)
}

/// Every stock of the factory, as its LSP sweeps it.
fn stocks<'a>(signed: &SignedFactory, lsp: &'a Keypair) -> Vec<SweepInput<'a>> {
    let tree = signed.tree();
    let timeouts = tree
        .txs()
        .iter()
        .filter(|tx| tx.spends.kind == SpentKind::Stock);
    timeouts
        .map(|tx| SweepInput {
            outpoint: tx.spends.outpoint,
            txout: tx.spends.txout.clone(),
            keypair: lsp,
            unlock: Unlock::Leaf {
                leaf: ScriptLeaf::LspDelayed(Blocks(tree.spec().params.q)),
                internal_key: tx.spends.key.as_ref().unwrap().internal,
            },
        })
        .collect()
}

fn accepted(inputs: &[SweepInput<'_>], tx: &Transaction) -> bool {
    let prevouts: Vec<TxOut> = inputs.iter().map(|input| input.txout.clone()).collect();
    accepts(tx, &prevouts)
}

#[test]
fn the_lsp_sweeps_all_stocks_in_one_transaction() {
    let secp = Secp256k1::new();
    let signed = signed(ExpiryPolicy::ClientRefund);
    let lsp = signed.lsp_keypair();
    let inputs = stocks(&signed, &lsp);
    assert!(inputs.len() > 2);
    let tx = sweep(&secp, &inputs, destination(&secp), 7).unwrap();
    assert!(accepted(&inputs, &tx));
    assert!(
        tx.input
            .iter()
            .all(|input| input.sequence.to_consensus_u32() == 504)
    );
    let sum: Amount = inputs.iter().map(|input| input.txout.value).sum();
    assert_eq!(
        sum - tx.output[0].value,
        Amount::from_sat(tx.vsize() as u64 * 7)
    );
    // One block too early is what consensus refuses.
    let mut early = tx.clone();
    early.input[0].sequence = bitcoin::Sequence::from_height(503);
    assert!(!accepted(&inputs, &early));
}

#[test]
fn the_lsp_sweeps_unpublished_outputs_at_expiry() {
    let secp = Secp256k1::new();
    let signed = signed(ExpiryPolicy::LspReclaim);
    let tree = signed.tree();
    let lsp = signed.lsp_keypair();
    let leaf = |kind| plan::script_leaf(&tree.spec().params, tree.schedule(), kind);
    let mut inputs: Vec<SweepInput<'_>> = Vec::new();
    for tx in tree.txs() {
        let kind = tx.spends.kind;
        assert_eq!(leaf(kind) == ScriptLeaf::None, kind == SpentKind::Kickoff);
        if kind != SpentKind::Kickoff {
            inputs.push(SweepInput {
                outpoint: tx.spends.outpoint,
                txout: tx.spends.txout.clone(),
                keypair: &lsp,
                unlock: Unlock::Leaf {
                    leaf: leaf(kind),
                    internal_key: tx.spends.key.as_ref().unwrap().internal,
                },
            });
        }
    }
    let tx = sweep(&secp, &inputs, destination(&secp), 1).unwrap();
    assert_eq!(tx.lock_time.to_consensus_u32(), tree.schedule().expiry.0);
    assert!(accepted(&inputs, &tx));
    let mut early = tx.clone();
    let before = tree.schedule().expiry.0 - 1;
    early.lock_time = bitcoin::absolute::LockTime::from_consensus(before);
    assert!(!accepted(&inputs, &early));
}

#[test]
fn a_client_sweeps_its_payouts() {
    let secp = Secp256k1::new();
    let signed = signed(ExpiryPolicy::ClientRefund);
    let client = Keypair::from_secret_key(&secp, &signed.factory.clients[3].payout);
    let kit = signed.kit(3);
    let payouts = kit.txs.iter().flat_map(|tx| kit.own_outputs(tx));
    let inputs: Vec<SweepInput<'_>> = payouts
        .filter(|(_, output, _)| output.role == OutputRole::Payout)
        .map(|(outpoint, _, txout)| SweepInput {
            outpoint,
            txout: txout.clone(),
            keypair: &client,
            unlock: Unlock::KeyPath,
        })
        .collect();
    assert!(inputs.len() > 2);
    let tx = sweep(&secp, &inputs, destination(&secp), 3).unwrap();
    assert!(accepted(&inputs, &tx));
    assert_eq!(tx.lock_time.to_consensus_u32(), 0);
}

#[test]
fn what_is_not_ours_or_not_worth_it_is_refused() {
    let secp = Secp256k1::new();
    let signed = signed(ExpiryPolicy::ClientRefund);
    let lsp = signed.lsp_keypair();
    let inputs = stocks(&signed, &lsp);
    let to = || destination(&secp);
    assert_eq!(sweep(&secp, &[], to(), 1), Err(SweepError::Nothing));
    let stranger = Keypair::from_secret_key(&secp, &secret(5, "stranger", 0));
    let theirs = stocks(&signed, &stranger);
    let error = sweep(&secp, &theirs, to(), 1).unwrap_err();
    assert!(matches!(error, SweepError::NotOurs { .. }), "{error}");
    let dear = sweep(&secp, &inputs[..1], to(), 1_000_000).unwrap_err();
    assert!(matches!(dear, SweepError::TooLittle { .. }), "{dear}");
    let many = vec![inputs[0].clone(); 2000];
    let large = sweep(&secp, &many, to(), 1).unwrap_err();
    assert!(matches!(large, SweepError::TooLarge { .. }), "{large}");
}

/// From 253 inputs on the count takes three bytes; consensus code agrees on the sighashes.
#[test]
fn many_inputs_are_signed_alike() {
    let secp = Secp256k1::new();
    let signed = signed(ExpiryPolicy::ClientRefund);
    let lsp = signed.lsp_keypair();
    let stock = &stocks(&signed, &lsp)[0];
    let own = Keypair::from_secret_key(&secp, &secret(5, "wallet", 1));
    let inputs: Vec<SweepInput<'_>> = (0..300u32)
        .map(|n| {
            let mut input = stock.clone();
            if n % 3 == 0 {
                input.keypair = &own;
                input.unlock = Unlock::KeyPath;
                input.txout.script_pubkey = crate::output::payout(&secp, own.x_only_public_key().0);
            }
            input.outpoint.vout = n;
            input
        })
        .collect();
    let tx = sweep(&secp, &inputs, destination(&secp), 2).unwrap();
    assert!(accepted(&inputs, &tx));
    let sum: Amount = inputs.iter().map(|input| input.txout.value).sum();
    assert_eq!(
        sum - tx.output[0].value,
        Amount::from_sat(tx.vsize() as u64 * 2)
    );
}

/// Once every owner's keys are handed over, each output of the tree is spent by one signature, without a lock; one key short, it is not.
#[test]
fn what_all_have_handed_over_is_swept_by_keys() {
    let secp = Secp256k1::new();
    for policy in [ExpiryPolicy::ClientRefund, ExpiryPolicy::LspReclaim] {
        let signed = signed(policy);
        let mut pairs = Vec::new();
        let mut spends = Vec::new();
        for tx in signed.tree().txs() {
            let (spent, secrets) = (&tx.spends, signed.factory.secrets(tx));
            // First-stage branches belong to clients alone.
            let Some(key) = spent.key.as_ref().filter(|key| key.owners.with_lsp) else {
                continue;
            };
            let short = &secrets[..secrets.len() - 1];
            assert!(key.keypair(&secp, short).is_err());
            pairs.push(key.keypair(&secp, &secrets).unwrap());
            spends.push((spent.outpoint, spent.txout.clone(), Unlock::Output));
        }
        for (timeout, client) in signed
            .tree()
            .channel_timeouts()
            .iter()
            .zip(&signed.factory.clients)
        {
            let other = Keypair::from_secret_key(&secp, &client.channel);
            pairs.push(Keypair::from_secret_key(&secp, &client.lsp_channel));
            let spent = &timeout.spends;
            spends.push((
                spent.outpoint,
                spent.txout.clone(),
                Unlock::Channel { other },
            ));
        }
        let inputs: Vec<SweepInput<'_>> = pairs
            .iter()
            .zip(spends)
            .map(|(keypair, (outpoint, txout, unlock))| SweepInput {
                outpoint,
                txout,
                keypair,
                unlock,
            })
            .collect();
        for input in &inputs {
            let one = std::slice::from_ref(input);
            let tx = sweep(&secp, one, destination(&secp), 3).unwrap();
            assert!(accepted(one, &tx), "{:?}", input.outpoint);
            let fee = input.txout.value - tx.output[0].value;
            let paid = fee.to_sat() / tx.vsize() as u64;
            assert!((3..=4).contains(&paid), "{fee} for {} vB", tx.vsize());
        }
        let tx = sweep(&secp, &inputs, destination(&secp), 3).unwrap();
        assert!(accepted(&inputs, &tx));
        let mut wrong = inputs[inputs.len() - 1].clone();
        wrong.unlock = Unlock::Channel { other: pairs[0] };
        let error = sweep(&secp, &[wrong], destination(&secp), 3).unwrap_err();
        assert!(matches!(error, SweepError::NotOurs { .. }), "{error}");
    }
}
