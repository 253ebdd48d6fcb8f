//! Sales, and people who would rather have what was sold twice, or back.

use std::path::Path;

use anyhow::{Context, Result, ensure};
use bitcoin::consensus::encode::serialize_hex;
use bitcoin::{OutPoint, Transaction};
use scenarios::event::Event;
use scenarios::export::{Export, Exported};
use scenarios::ledger::OnChain;
use scenarios::world::{Created, World, number, text};
use serde_json::json;
use sqlx::sqlite::SqliteConnectOptions;
use sqlx::{ConnectOptions, Connection};

use crate::sales::{BALANCE, FEE, FEE_COIN, begin, buy, ends, leaf_alone, town, town_of};

/// A client looks this often (protocol.md section 6).
const LOOKS: u32 = 60;
/// Sales of one stock.
const SALES: u64 = 4;

/// The poisons that a client has now.
fn poisons(world: &World, index: usize, created: &Created) -> Result<Vec<Transaction>> {
    let export = world.client_export(index, created)?;
    let all = export.transactions.iter().filter(|tx| tx.kind == "poison");
    all.map(Exported::transaction).collect()
}

/// What a client is sure of if it looks.
fn sure_of(world: &World, index: usize) -> Result<u64> {
    let shown = world.client(index)?.json(&["limit", "show"])?;
    number(&shown["coverage"], "awake_sat")
}

/// All that is a client's.
fn total(world: &World, index: usize) -> Result<u64> {
    number(&world.client(index)?.json(&["balance"])?, "total_sat")
}

/// Of four sales, the first of them to a mate that is the coordinator's friend, the coordinator, which is gone, has published only so many, and
/// none of the wallets can. Whoever uses an older poison, which pays the mate more, is too late: the newest one comes first, and before the
/// coordinator's own branch. The buyer of the others, which looks every sixty blocks, has what it is sure of.
fn breaks_off(name: &str, there: usize) -> Result<()> {
    // Without coins for fees the buyer can publish nothing that does not pay for itself.
    let (mut world, created) = town_of(name, 2, &[1], |_| Ok(()))?;
    let mut older = Vec::new();
    for sale in 1..=SALES {
        let buyer = usize::from(sale == 1);
        buy(&world, buyer)?;
        if buyer == 1 {
            // The next one is bought from what this one left.
            world.client(0)?.wait_for("sale_stored")?;
        }
        if sale < SALES {
            older.extend(poisons(&world, 0, &created)?);
        }
    }
    let sure = sure_of(&world, 0)?;
    let export = world.export(&created)?;
    let mut published = chain(&world.client_export(0, &created)?)?;
    let withheld = published.split_off(there);
    let (stock, _) = withheld.first().context("something is withheld")?;
    leaf_alone(&mut world, &created)?;
    let leaf = world.node.height()?;
    if !published.is_empty() {
        let published: Vec<_> = published.into_iter().map(|(_, sale)| sale).collect();
        world.node.mine_with(&published)?;
    }
    let newest = looks_until_spent(&mut world, &export, (stock, leaf), |world| {
        for _ in 0..LOOKS {
            publish_any(world, &older)?;
            world.mine(1)?;
        }
        Ok(())
    })?;
    let is_newest = |tx: &Transaction| tx.compute_txid() == newest.txid;
    let own = poisons(&world, 0, &created)?;
    ensure!(own.iter().any(is_newest), "no poison: {newest:?}");
    ensure!(!older.iter().any(is_newest), "an older poison was first");
    world.mine_until(&export, |world| world.all_done(&created, &[0]))?;
    let has = total(&world, 0)?;
    ensure!(has >= sure, "it has {has} of {sure}");
    Ok(())
}

/// The buyer looks, and is away while `time` passes, until somebody has spent this stock of a leaf that confirmed at that height: who.
fn looks_until_spent(
    world: &mut World,
    export: &Export,
    (stock, leaf): (&OutPoint, u32),
    time: impl Fn(&World) -> Result<()>,
) -> Result<OnChain> {
    loop {
        world.client_mut(0)?.start()?;
        world.client_sees(0, world.node.height()?)?;
        let poisoned = |event: &Event| event.is("exit_published") && event.text("kind") == "poison";
        if world.client(0)?.events()?.iter().any(poisoned) {
            world.mine(1)?;
        }
        if let Some(spender) = world.ledger(vec![export.clone()])?.spender(stock) {
            return Ok(spender.clone());
        }
        ensure!(
            world.node.height()? < leaf + export_number(export, "q")?,
            "the coordinator may take it now"
        );
        world.client_mut(0)?.kill()?;
        time(world)?;
    }
}

/// A coordinator that is up all the time and knows of no sale, so that it takes the stock of a leaf that is published when its own branch opens,
/// unless the buyer looks every sixty blocks. The buyer cannot publish what was sold, and has what it is sure of when the coordinator is gone then.
fn forgets(name: &str, looks: bool) -> Result<()> {
    let (mut world, created) = town_of(name, 2, &[1], |_| Ok(()))?;
    buy(&world, 0)?;
    world.client(1)?.wait_for("sale_stored")?;
    let sure = sure_of(&world, 0)?;
    let export = world.export(&created)?;
    let sold = chain(&world.client_export(0, &created)?)?;
    let (stock, _) = sold.first().context("a sale")?;
    leaf_alone(&mut world, &created)?;
    let leaf = world.node.height()?;
    forget_sales(&world.coordinator.data().join("coordinator.sqlite"))?;
    world.coordinator.start()?;
    world.coordinator_sees_tip()?;
    if looks {
        let first = looks_until_spent(&mut world, &export, (stock, leaf), |world| {
            world.mine(LOOKS)?;
            world.coordinator_sees_tip()
        })?;
        let mut own = poisons(&world, 0, &created)?.into_iter();
        let is_poison = own.any(|poison| poison.compute_txid() == first.txid);
        ensure!(is_poison, "no poison: {first:?}");
        world.coordinator.kill()?;
        world.client_mut(1)?.start()?;
        world.mine_until(&export, |world| world.all_done(&created, &[0, 1]))?;
        let has = total(&world, 0)?;
        ensure!(has >= sure, "the buyer has {has} of {sure}");
        // The mate left by itself: with its balance, and with its share of the stock, which is more than its way out costs.
        let (has, least) = (total(&world, 1)?, FEE_COIN.to_sat() + BALANCE);
        ensure!(has > least, "the mate has {has}, no more than {least}");
        return Ok(());
    }
    // The next block may have it.
    let due = leaf + export_number(&export, "q")? - 1;
    world.node.mine_until(due)?;
    let swept = world.coordinator.wait_for("sweep_broadcast")?;
    world.mine(1)?;
    let ledger = world.ledger(vec![export])?;
    let spender = ledger.spender(stock).context("it is spent")?;
    ensure!(
        spender.txid.to_string() == swept.text("txid"),
        "{spender:?}"
    );
    Ok(())
}

#[test]
fn a_poison_is_before_a_coordinator_that_sits_out_its_delay() -> Result<()> {
    forgets("sale_sat_out", true)
}

/// What the other test is about: it does take it.
#[test]
fn who_never_looks_leaves_the_stock_to_the_coordinator() -> Result<()> {
    forgets("sale_not_looked", false)
}

/// What was sold from one stock: what each spends, and the transaction.
pub fn chain(export: &Export) -> Result<Vec<(OutPoint, Transaction)>> {
    let sales = || {
        export
            .transactions
            .iter()
            .filter(|tx| tx.kind == "stock_chain")
    };
    let spent = |tx: &Exported| tx.spends().context("it spends a stock");
    let mut chain = Vec::new();
    let mut next = sales().find(|tx| {
        let parent = tx.spends().map(|spent| spent.txid);
        sales().all(|other| Some(other.txid) != parent)
    });
    while let Some(sale) = next {
        chain.push((spent(sale)?, sale.transaction()?));
        next = sales().find(|tx| tx.spends().is_some_and(|spent| spent.txid == sale.txid));
    }
    Ok(chain)
}

fn export_number(export: &Export, name: &str) -> Result<u32> {
    let value = export.params.get(name).context("a parameter")?;
    Ok(u32::try_from(value.as_u64().context("a number")?)?)
}

/// Tries to have them mined; that of none is possible is what is tested.
fn publish_any(world: &World, transactions: &[Transaction]) -> Result<()> {
    for transaction in transactions {
        let raw = serialize_hex(transaction);
        let _ = world.node.rpc("sendrawtransaction", json!([raw]));
    }
    ensure!(
        world.node.mempool()?.is_empty(),
        "an older poison is possible"
    );
    Ok(())
}

#[test]
fn nothing_of_the_chain_is_published() -> Result<()> {
    breaks_off("sale_broken_0", 0)
}

#[test]
fn only_the_first_sale_is_published() -> Result<()> {
    breaks_off("sale_broken_1", 1)
}

#[test]
fn only_the_first_two_sales_are_published() -> Result<()> {
    breaks_off("sale_broken_2", 2)
}

#[test]
fn the_last_sale_is_not_published() -> Result<()> {
    breaks_off("sale_broken_3", 3)
}

/// The coordinator has sold from a stock, and sells the same coins again, to a mate that plays along: one that knows nothing of the first sale any
/// more. The first buyer does not sign, and says so.
#[test]
fn one_stock_is_not_sold_twice() -> Result<()> {
    let (mut world, created) = town("sale_twice", 2)?;
    world.client_mut(1)?.terminate()?;
    let kits = world.client(1)?.data().join("client.sqlite");
    let before = std::fs::read(&kits)?;
    world.client_mut(1)?.start()?;
    world.client(1)?.wait_for("lightning_connected")?;
    buy(&world, 0)?;
    world.client_mut(1)?.terminate()?;
    std::fs::write(&kits, before)?;
    world.coordinator.terminate()?;
    forget_sales(&world.coordinator.data().join("coordinator.sqlite"))?;
    world.coordinator.start()?;
    world.client_mut(1)?.start()?;
    world.client(1)?.wait_for("lightning_connected")?;
    let mark = world.client(0)?.mark()?;
    begin(&world, 1)?;
    let refused = |event: &Event| event.is("refused") && event.text("rule") == "sale_number";
    let what = "a refusal";
    world.client(0)?.process()?.wait_from(mark, what, refused)?;
    ends(&world, 1, "cancelled")?;
    let told = world.coordinator.wait_for("sale_attempt_failed")?;
    ensure!(told.text("reason").contains("sale_number"), "{told:?}");
    world.lightning_becomes(1, BALANCE * 1_000)?;
    world.lightning_becomes(0, (BALANCE - FEE) * 1_000)?;
    let kit = world.client_export(0, &created)?;
    let sales = kit
        .transactions
        .iter()
        .filter(|tx| tx.kind == "stock_chain");
    ensure!(sales.count() == 1, "the first sale stands");
    // Its user is told whenever they look, of a wallet that was restarted too; the mate knows of no other sale.
    world.client_mut(0)?.terminate()?;
    world.client_mut(0)?.start()?;
    let status = world.client(0)?.json(&["status"])?;
    let refused = status["account"]["double_sales"].as_array();
    let refused = refused.context("a list")?;
    ensure!(refused.len() == 1, "{status}");
    ensure!(refused[0]["factory"] == created.factory, "{status}");
    let words = text(&refused[0], "words")?;
    ensure!(words.contains("Leave this factory"), "{words}");
    let shown = world.client(0)?.command(&["status"])?;
    ensure!(shown.stdout.contains(&words), "{shown}");
    let status = world.client(1)?.json(&["status"])?;
    ensure!(status["account"]["double_sales"] == json!([]), "{status}");
    Ok(())
}

fn forget_sales(store: &Path) -> Result<()> {
    tokio::runtime::Runtime::new()?.block_on(async {
        let mut store = SqliteConnectOptions::new()
            .filename(store)
            .connect()
            .await?;
        let done = sqlx::query("DELETE FROM sale").execute(&mut store).await?;
        ensure!(done.rows_affected() == 1, "one sale");
        Ok(store.close().await?)
    })
}

/// Two buyers, each from the stock of its own sub-factory, at once.
#[test]
fn two_sub_factories_at_once() -> Result<()> {
    let (world, created) = town("sale_two_stocks", 4)?;
    let export = world.export(&created)?;
    let stocks = export
        .transactions
        .iter()
        .flat_map(|tx| tx.outputs_of("stock"));
    let mut shares = stocks.map(|(_, stock)| &stock.clients);
    let id = |index: usize| world.id_of(world.client(index)?);
    let own = id(0)?.to_owned();
    let own = shares
        .find(|clients| clients.contains(&own))
        .context("its stock")?;
    let others = (1..4).map(|index| Ok((index, id(index)?.to_owned())));
    let others = others.collect::<Result<Vec<_>>>()?;
    let other = others.iter().find(|(_, id)| !own.contains(id));
    let (other, _) = other.context("another sub-factory")?;
    let buyers = [0, *other];
    for buyer in buyers {
        begin(&world, buyer)?;
    }
    for buyer in buyers {
        ends(&world, buyer, "settled")?;
        world.lightning_becomes(buyer, (BALANCE - FEE) * 1_000)?;
    }
    Ok(())
}
