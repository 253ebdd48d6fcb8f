//! An old state on the chain, and what that costs.

use std::fs;
use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context, Result, ensure};
use bitcoin::{Amount, Txid};
use scenarios::process::PATIENCE;
use scenarios::world::{World, number};
use serde_json::json;

use crate::build::Factory;
use crate::screen::{grouped, short};
use crate::stage::{FEE_COIN, Stage};

/// Blocks for which a client that closes alone cannot touch its balance, so that the coordinator can answer.
const LOCKED: u32 = 144;

/// A wallet as it was, before it spent something.
pub(crate) struct Old {
    index: usize,
    copy: PathBuf,
    had_msat: u64,
}

impl Old {
    /// Whether this wallet is meant.
    pub(crate) fn is_of(&self, index: usize) -> bool {
        self.index == index
    }
}

/// The first leaf mate of client 0, whose leaf comes to the chain without its doing.
pub(crate) fn mate(stage: &Stage, factory: &Factory) -> Result<usize> {
    let leaf = |index: usize| -> Result<Txid> {
        let id = stage.world.id_of(stage.world.client(index)?)?;
        let mut clients = factory.export.clients();
        let client = clients.find(|client| client.id == id);
        let leaf = client.and_then(|client| client.path.last());
        leaf.copied().context("a client has a leaf")
    };
    let ours = leaf(0)?;
    for index in stage.everybody().into_iter().skip(1) {
        if leaf(index)? == ours {
            return Ok(index);
        }
    }
    anyhow::bail!("client 0 has no leaf mate")
}

/// Copies a wallet's whole data directory while it is stopped.
pub(crate) fn remember(stage: &mut Stage, index: usize) -> Result<Old> {
    let had_msat = stage.world.lightning_msat(index)?;
    let copy = stage.directory.join(format!("client-{index}.old"));
    let client = stage.world.client_mut(index)?;
    client.terminate()?;
    let copied = Command::new("cp")
        .arg("-r")
        .arg(client.data())
        .arg(&copy)
        .status()?;
    ensure!(copied.success(), "cannot copy {}", client.data().display());
    client.start()?;
    client.wait_for("connected")?;
    let deadline = std::time::Instant::now() + PATIENCE;
    loop {
        let channels = client.json(&["channels"])?;
        let channels = channels["channels"].as_array();
        if channels.is_some_and(|all| all.iter().any(|channel| channel["usable"] == true)) {
            break;
        }
        ensure!(
            std::time::Instant::now() < deadline,
            "client-{index}'s channel does not come back"
        );
        std::thread::sleep(std::time::Duration::from_millis(50));
    }
    Ok(Old {
        index,
        copy,
        had_msat,
    })
}

/// While the coordinator is down, the wallet publishes what it had then; back again, the coordinator takes all of it.
pub(crate) fn publish(stage: &mut Stage, factory: &Factory, old: &Old) -> Result<()> {
    let name = format!("client-{}", old.index);
    stage.screen.heading(&format!(
        "{name} tries an old state, in which it had {} sat; the coordinator is away",
        grouped(old.had_msat / 1_000)
    ));
    stage.world.fund_clients(&[old.index], FEE_COIN)?;
    stage.world.client_mut(old.index)?.terminate()?;
    stage.world.coordinator.kill()?;
    let data = stage.world.client(old.index)?.data().to_owned();
    fs::rename(&data, data.with_extension("new"))?;
    fs::rename(&old.copy, &data)?;
    stage.world.client_mut(old.index)?.start()?;
    let height = stage.world.node.height()?;
    stage.world.client_sees(old.index, height)?;
    let client = stage.world.client(old.index)?;
    client.json(&["exit", &factory.created.factory, "--yes", "--background"])?;
    stage.world.mine_until(&factory.export, |world| {
        Ok(spent(world, old.index)?.is_some())
    })?;
    let commitment = spent(&stage.world, old.index)?.context("it is spent")?;
    stage.screen.say(&format!(
        "{name}'s old commitment {} is in a block; its balance is locked for {LOCKED} more",
        short(&commitment.0.to_string())
    ));

    stage.world.coordinator.start()?;
    stage.world.coordinator.wait_for("ready")?;
    let published = stage.world.node.height()?;
    let had = Amount::from_sat(old.had_msat / 1_000);
    stage.world.mine_until(&factory.export, |world| {
        Ok(taken(world, commitment, had)? || world.node.height()? > published + LOCKED)
    })?;
    let blocks = stage.world.node.height()?.saturating_sub(published);
    ensure!(
        blocks < LOCKED && taken(&stage.world, commitment, had)?,
        "the old state is not punished"
    );
    let line = stage.screen.good(&format!(
        "✓ back again, the coordinator took it all, {blocks} block later"
    ));
    stage.screen.say(&line);
    let coins = number(
        &stage.world.client(old.index)?.json(&["balance"])?,
        "confirmed_sat",
    )?;
    let text = format!("{name} has nothing of it, only what is left of its fee coin: {coins} sat");
    stage.screen.say(&text);
    Ok(())
}

/// A transaction, and the height of its block.
type Mined = (Txid, u32);

/// What closed a wallet's channel, once that is in a block.
fn spent(world: &World, index: usize) -> Result<Option<Mined>> {
    let events = world.client(index)?.events()?;
    let Some(spent) = events.iter().find(|event| event.is("channel_spent")) else {
        return Ok(None);
    };
    let height = spent.number("height").context("it says where")?;
    Ok(Some((spent.text("txid").parse()?, u32::try_from(height)?)))
}

/// Whether a commitment's output of this value is spent.
fn taken(world: &World, (txid, height): Mined, value: Amount) -> Result<bool> {
    let block = world.node.block_hash(height)?;
    let raw = world
        .node
        .rpc("getrawtransaction", json!([txid, true, block]))?;
    let outputs = raw["vout"]
        .as_array()
        .context("a transaction has outputs")?;
    let of_value = outputs
        .iter()
        .position(|output| output["value"].as_f64().map(Amount::from_btc) == Some(Ok(value)));
    let vout = of_value.with_context(|| format!("{txid} has no output of {value}"))?;
    let coin = world.node.rpc("gettxout", json!([txid, vout, false]))?;
    Ok(coin.is_null())
}
