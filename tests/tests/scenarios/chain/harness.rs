//! The node harness itself: what other tests take for granted.

use std::time::Instant;

use anyhow::Result;
use bitcoin::{Amount, ScriptBuf};
use scenarios::bitcoind::Bitcoind;

fn script(n: u8) -> ScriptBuf {
    ScriptBuf::new_p2wsh(&bitcoin::WScriptHash::from_raw_hash(
        bitcoin::hashes::Hash::hash(&[n]),
    ))
}

#[test]
fn a_node_mines_pays_reorgs_and_restarts() -> Result<()> {
    let started = Instant::now();
    let node = Bitcoind::start()?;
    println!("up in {:?}", started.elapsed());
    assert_eq!(node.height()?, 111);
    let paid = node.fund(&script(1), Amount::from_sat(50_000))?;
    assert_eq!(node.balance_of(&script(1))?, Amount::from_sat(50_000));
    assert_eq!(node.coins_of(&script(1))?[0].outpoint, paid);

    node.reorg(1, 2)?;
    assert_eq!(
        (node.height()?, node.balance_of(&script(1))?),
        (113, Amount::ZERO)
    );
    assert_eq!(node.mempool()?, vec![paid.txid]);
    node.mine(1)?;
    assert_eq!(node.balance_of(&script(1))?, Amount::from_sat(50_000));

    node.restart()?;
    assert_eq!(node.height()?, 114);
    node.kill()?;
    node.start_again()?;
    // Rewards of the invalidated branch are gone; the harness must notice.
    for n in 2..40 {
        node.send_to(&script(n), Amount::from_sat(10_000))?;
    }
    node.mine(1)?;
    assert_eq!(node.balance_of(&script(39))?, Amount::from_sat(10_000));
    Ok(())
}

#[test]
fn long_waits_are_mined_quickly() -> Result<()> {
    let node = Bitcoind::start()?;
    let started = Instant::now();
    node.mine_until(3_000)?;
    println!("2889 blocks in {:?}", started.elapsed());
    assert_eq!(node.height()?, 3_000);
    let outputs: Vec<_> = (0..=200)
        .map(|n| bitcoin::TxOut {
            value: Amount::from_sat(1_000),
            script_pubkey: script(n),
        })
        .collect();
    node.send_many(&outputs)?;
    node.mine(1)?;
    assert_eq!(node.balance_of(&script(200))?, Amount::from_sat(1_000));
    Ok(())
}
