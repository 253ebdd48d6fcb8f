//! A node that is away, refuses us, or is not the right one.

use std::time::Duration;

use anyhow::Result;
use bitcoin::hashes::Hash;
use bitcoin::{BlockHash, Network};
use chain::{BitcoindConfig, BitcoindRpc, ChainError, ChainSource, RpcAuth};
use scenarios::bitcoind::{Bitcoind, free_port};

use super::support::{config, rate, source};

#[tokio::test]
async fn each_way_of_not_reaching_a_node_has_its_own_error() -> Result<()> {
    let node = Bitcoind::start()?;
    let nowhere = BitcoindConfig {
        url: format!("http://127.0.0.1:{}", free_port()?),
        ..config(&node)
    };
    let error = BitcoindRpc::new(nowhere)?.tip().await;
    assert!(
        matches!(&error, Err(ChainError::Unreachable { .. })),
        "{error:?}"
    );

    let password = RpcAuth::UserPass {
        user: "somebody".to_owned(),
        password: "wrong".to_owned().into(),
    };
    let error = BitcoindRpc::new(BitcoindConfig {
        auth: password,
        ..config(&node)
    })?
    .tip()
    .await;
    assert!(
        matches!(&error, Err(ChainError::Unauthorized { .. })),
        "{error:?}"
    );

    let cookie = RpcAuth::CookieFile(node.directory().join("nothing"));
    let error = BitcoindRpc::new(BitcoindConfig {
        auth: cookie,
        ..config(&node)
    })?
    .tip()
    .await;
    assert!(
        matches!(&error, Err(ChainError::Cookie { .. })),
        "{error:?}"
    );

    let error = BitcoindRpc::new(BitcoindConfig {
        url: "https://127.0.0.1:1".to_owned(),
        ..config(&node)
    });
    assert!(
        matches!(&error, Err(ChainError::BadUrl { .. })),
        "{error:?}"
    );
    Ok(())
}

#[tokio::test]
async fn the_right_node_is_told_from_the_wrong_one() -> Result<()> {
    let node = Bitcoind::start()?;
    let info = source(&node)?.node_info().await?;
    assert_eq!(
        (info.network, info.blocks, info.headers),
        (Network::Regtest, 111, 111)
    );
    assert_eq!(info.require_ready(Network::Regtest), Ok(()));
    let expected = ChainError::WrongNetwork {
        expected: Network::Signet,
        found: Network::Regtest,
    };
    assert_eq!(info.require_ready(Network::Signet), Err(expected));
    Ok(())
}

#[tokio::test]
async fn a_node_that_restarts_is_found_again_with_its_new_cookie() -> Result<()> {
    let node = Bitcoind::start()?;
    let source = source(&node)?;
    let tip = source.tip().await?;
    node.stop()?;
    let away = source.tip().await;
    assert!(
        away.as_ref().is_err_and(ChainError::is_transient),
        "{away:?}"
    );
    node.start_again()?;
    assert_eq!(source.tip().await?, tip);

    // Also with a connection that was kept open across the restart, with the old cookie.
    node.restart()?;
    assert_eq!(source.tip().await?, tip);
    Ok(())
}

#[tokio::test]
async fn what_the_node_does_not_have_is_said_so() -> Result<()> {
    let node = Bitcoind::start()?;
    let source = source(&node)?;
    let hash = BlockHash::from_byte_array([1; 32]);
    assert_eq!(source.block(hash).await, Err(ChainError::NoBlock { hash }));
    assert_eq!(source.header(hash).await?, None);
    assert_eq!(
        source
            .mempool_entry(bitcoin::Txid::from_byte_array([1; 32]))
            .await?,
        None
    );
    Ok(())
}

#[tokio::test]
async fn many_calls_at_once_all_get_their_answer() -> Result<()> {
    let node = Bitcoind::start()?;
    let source = source(&node)?;
    let calls: Vec<_> = (0..200u32)
        .map(|n| {
            let source = source.clone();
            tokio::spawn(async move { source.block_hash(n % 100).await })
        })
        .collect();
    for call in calls {
        assert!(
            tokio::time::timeout(Duration::from_secs(30), call)
                .await??
                .is_ok_and(|hash| hash.is_some())
        );
    }
    Ok(())
}

#[tokio::test]
async fn without_an_estimate_the_fallback_counts() -> Result<()> {
    let node = Bitcoind::start()?;
    let fallback = |n| {
        BitcoindRpc::new(BitcoindConfig {
            fallback_fee: rate(n),
            ..config(&node)
        })
    };
    assert_eq!(fallback(7)?.fee_rate(6).await?, rate(7));
    assert_eq!(
        fallback(0)?.fee_rate(6).await?,
        rate(1),
        "never below 1 sat/vB"
    );
    Ok(())
}
