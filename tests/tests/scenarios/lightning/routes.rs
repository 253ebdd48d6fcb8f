//! Payments that are long, large or late.

use anyhow::Result;
use bitcoin::Network;
use channel_host::{ChannelView, Msat, Side};
use factory_tree::params::{FactoryParams, PAYER_LOCK_LIMIT, Profile};

use super::harness::{Member, Unborn, outside, paid_pair, pair, pay_client, until};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_channel_pays_after_2100_blocks_without_its_leaf() -> Result<()> {
    let (node, mut lsp, mut client, _leaf) = paid_pair().await?;
    node.mine(2_100)?;
    lsp.synced().await?;
    client.synced().await?;
    pay_client(&mut lsp, &mut client, 5_000_000).await?;
    let invoice = lsp.plain_invoice(6_000_000)?;
    client.node().pay(&invoice, None)?;
    assert_eq!(lsp.paid().await?, Msat(6_000_000));
    client.sent().await?;

    lsp.crash().await?;
    client.crash().await?;
    lsp.usable(1).await?;
    client.usable(1).await?;
    pay_client(&mut lsp, &mut client, 5_000_000).await?;
    assert!(node.mempool()?.is_empty());
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_payment_larger_than_any_leaf_arrives_in_parts() -> Result<()> {
    let (_node, mut lsp, mut client, _leaf) = paid_pair().await?;
    let mut outside = outside(&mut lsp).await?;
    let second = Unborn::new(&lsp, &client)?;
    for member in [&lsp, &client, &outside] {
        member.synced().await?;
    }
    second.open(&mut lsp, &mut client).await?;
    second.ungate([&lsp, &client])?;

    // More than either leaf has room for: from outside, out again, and from the coordinator itself.
    let invoice = client.invoice(&lsp, 700_000_000)?;
    let fits = |leaf: &ChannelView| leaf.receivable >= Msat(700_000_000);
    assert!(!client.node().channels().iter().any(fits));
    outside.node().pay(&invoice, None)?;
    outside.sent().await?;
    assert_eq!(client.paid().await?, Msat(700_000_000));

    let invoice = outside.invoice(&lsp, 650_000_000)?;
    let fits = |leaf: &ChannelView| leaf.spendable >= Msat(650_000_000);
    assert!(!client.node().channels().iter().any(fits));
    client.node().pay(&invoice, None)?;
    client.sent().await?;
    assert_eq!(outside.paid().await?, Msat(650_000_000));

    until("idle channels", || {
        let channels = lsp.node().channels();
        Ok(channels.iter().all(|channel| channel.pending == 0))
    })
    .await?;
    let invoice = client.plain_invoice(620_000_000)?;
    lsp.node().pay(&invoice, None)?;
    assert_eq!(client.paid().await?, Msat(620_000_000));

    // What fits into one goes by the client's number, wherever there is room.
    let invoice = client.invoice(&lsp, 50_000_000)?;
    outside.node().pay(&invoice, None)?;
    assert_eq!(client.paid().await?, Msat(50_000_000));
    outside.sent().await
}

/// The longest exit that a profile allows, and the blocks it leaves to an outside payer's route.
fn longest(profile: Profile) -> (u32, u32) {
    let params = FactoryParams::profile(profile, Network::Regtest);
    let allowed = (1..100).filter_map(|levels| params.check_exit_delay(levels).ok());
    let longest = allowed.max().map_or(0, |delay| delay.0);
    (longest, params.route_budget)
}

/// LDK keeps so many blocks of a payer's limit for the offset that hides who is paid.
const SHADOW: u32 = 80;

/// A payer with LDK's default limit, as if all its route to the coordinator could ask were asked.
async fn paid_from_afar(profile: Profile) -> Result<()> {
    let (exit_delay, route) = longest(profile);
    assert!(exit_delay > 250, "{exit_delay}");
    let (node, mut lsp, mut client) = pair().await?;
    let leaf = Unborn::with_delay(&lsp, &client, exit_delay)?;
    let mut outside = outside(&mut lsp).await?;
    for member in [&lsp, &client, &outside] {
        member.synced().await?;
    }
    leaf.open(&mut lsp, &mut client).await?;
    leaf.ungate([&lsp, &client])?;
    let invoice = client.invoice(&lsp, 100_000_000)?;
    let lock = PAYER_LOCK_LIMIT - (route - SHADOW);
    outside.node().pay_within(&invoice, None, lock)?;
    assert_eq!(client.paid().await?, Msat(100_000_000));
    outside.sent().await?;

    // Client to client, with the exits of both leaves to wait for.
    let mut other = Member::start(&node, Side::Client, 14).await?;
    other.connect(&lsp).await?;
    let leaf = Unborn::with_delay(&lsp, &other, exit_delay)?;
    for member in [&lsp, &client, &other] {
        member.synced().await?;
    }
    leaf.open(&mut lsp, &mut other).await?;
    leaf.ungate([&lsp, &other])?;
    let invoice = other.invoice(&lsp, 20_000_000)?;
    client.node().pay(&invoice, None)?;
    assert_eq!(other.paid().await?, Msat(20_000_000));
    client.sent().await?;
    let invoice = outside.invoice(&lsp, 20_000_000)?;
    client.node().pay(&invoice, None)?;
    assert_eq!(outside.paid().await?, Msat(20_000_000));
    client.sent().await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_payer_with_default_limits_reaches_a_lite_factory() -> Result<()> {
    paid_from_afar(Profile::Lite).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_payer_with_default_limits_reaches_a_standard_factory() -> Result<()> {
    paid_from_afar(Profile::Standard).await
}
