//! Following a real chain through reorgs.

use std::time::Duration;

use anyhow::Result;
use bitcoin::BlockHash;
use chain::{ChainEvent, Follower};
use scenarios::bitcoind::Bitcoind;

use super::support::{foreign_script, sat, source};

/// Takes every step there is; a plus for each block that joined, a minus for each that left.
async fn steps(follower: &mut Follower) -> Result<Vec<(char, u32, BlockHash)>> {
    let mut steps = Vec::new();
    while let Some(event) = follower.next().await? {
        steps.push(match event {
            ChainEvent::Connected { height, block } => ('+', height, block.block_hash()),
            ChainEvent::Disconnected(id) => ('-', id.height, id.hash),
        });
    }
    Ok(steps)
}

#[tokio::test]
async fn reorgs_of_any_depth_come_newest_off_and_oldest_on() -> Result<()> {
    let node = Bitcoind::start()?;
    let source = source(&node)?;
    let mut follower = Follower::new(source.clone(), vec![source.tip().await?])?;
    let old = node.mine(3)?;
    let joined = steps(&mut follower).await?;
    assert_eq!(
        joined,
        vec![('+', 112, old[0]), ('+', 113, old[1]), ('+', 114, old[2])]
    );

    // A block replaced by another of the same height.
    let other = node.reorg(1, 1)?;
    assert_eq!(
        steps(&mut follower).await?,
        vec![('-', 114, old[2]), ('+', 114, other[0])]
    );

    // A longer branch from deeper down.
    let longer = node.reorg(3, 4)?;
    let expected = [
        ('-', 114, other[0]),
        ('-', 113, old[1]),
        ('-', 112, old[0]),
        ('+', 112, longer[0]),
        ('+', 113, longer[1]),
        ('+', 114, longer[2]),
        ('+', 115, longer[3]),
    ];
    assert_eq!(steps(&mut follower).await?, expected);

    // A chain that only became shorter, and the same blocks back again.
    node.invalidate(longer[2])?;
    let gone = vec![('-', 115, longer[3]), ('-', 114, longer[2])];
    assert_eq!(steps(&mut follower).await?, gone);
    node.reconsider(longer[2])?;
    assert_eq!(
        steps(&mut follower).await?,
        vec![('+', 114, longer[2]), ('+', 115, longer[3])]
    );
    Ok(())
}

#[tokio::test]
async fn a_follower_that_was_away_goes_on_from_an_older_checkpoint() -> Result<()> {
    let node = Bitcoind::start()?;
    let source = source(&node)?;
    let start = source.tip().await?;
    let old = node.mine(2)?;
    let tip = source.tip().await?;
    assert_eq!(tip.hash, old[1]);
    node.reorg(2, 3)?;
    let mut follower = Follower::new(source.clone(), vec![start, tip])?;
    let seen = steps(&mut follower).await?;
    assert_eq!(seen[0], ('-', 113, old[1]));
    assert_eq!(
        seen[1..].iter().map(|step| step.1).collect::<Vec<_>>(),
        vec![112, 113, 114]
    );
    assert_eq!(follower.position(), source.tip().await?);
    Ok(())
}

#[tokio::test]
async fn waiting_ends_with_the_next_block_also_one_of_the_same_height() -> Result<()> {
    let node = Bitcoind::start()?;
    let source = source(&node)?;
    let mut follower = Follower::new(source.clone(), vec![source.tip().await?])?;
    let poll = Duration::from_millis(5);
    let waits =
        tokio::time::timeout(Duration::from_millis(50), follower.wait_for_change(poll)).await;
    assert!(waits.is_err(), "nothing has changed yet");
    node.mine(1)?;
    tokio::time::timeout(Duration::from_secs(10), follower.wait_for_change(poll)).await??;
    steps(&mut follower).await?;
    node.reorg(1, 1)?;
    tokio::time::timeout(Duration::from_secs(10), follower.wait_for_change(poll)).await??;
    Ok(())
}

#[tokio::test]
async fn blocks_headers_and_coins_are_what_the_node_has() -> Result<()> {
    let node = Bitcoind::start()?;
    let source = source(&node)?;
    let paid = node.fund(&foreign_script(1), sat(30_000))?;
    let tip = source.tip().await?;
    let header = source.header(tip.hash).await?.expect("known");
    assert_eq!(
        (header.height, header.active, header.header.block_hash()),
        (tip.height, true, tip.hash)
    );
    assert_eq!(source.block(tip.hash).await?.txdata.len(), 2);
    assert_eq!(source.block_hash(tip.height).await?, Some(tip.hash));
    assert_eq!(source.block_hash(tip.height + 1).await?, None);

    node.mine(2)?;
    let coin = source.coin(paid).await?.expect("unspent");
    assert_eq!(
        (coin.txout.value, coin.height, coin.coinbase),
        (sat(30_000), tip.height, false)
    );
    let unconfirmed = node.send_to(&foreign_script(2), sat(5_000))?;
    assert_eq!(source.coin(unconfirmed).await?, None);
    let entry = source
        .mempool_entry(unconfirmed.txid)
        .await?
        .expect("in the mempool");
    assert_eq!((entry.fee, entry.depends.len()), (entry.descendant_fee, 0));
    let transaction = source
        .raw_mempool_transaction(unconfirmed.txid)
        .await?
        .expect("in the mempool");
    assert_eq!(
        source
            .mempool_spender(transaction.input[0].previous_output)
            .await?,
        Some(unconfirmed.txid)
    );
    assert_eq!(source.mempool_spender(paid).await?, None);
    assert_eq!(source.raw_mempool_transaction(paid.txid).await?, None);

    node.reorg(3, 4)?;
    assert_eq!(source.coin(paid).await?, None, "its block was reorged out");
    assert!(!source.header(tip.hash).await?.expect("still known").active);
    Ok(())
}
