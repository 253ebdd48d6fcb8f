//! Inbound liquidity sold from the stock of a leaf.

use anyhow::{Context, Result, ensure};
use bitcoin::Amount;
use channel_host::NodeEvent;
use scenarios::bitcoind::Options;
use scenarios::event::Event;
use scenarios::export::Export;
use scenarios::ladder::Ladder;
use scenarios::ledger::{Ledger, OnChain, Owner};
use scenarios::outside::Outside;
use scenarios::service::Service;
use scenarios::webhook::Webhook;
use scenarios::world::{COORDINATOR_COINS, Created, World, number, path_text};
use serde_json::Value;

use crate::jit_wallet::becomes;
use crate::ladder_births::SHORT;
use crate::ladder_clients::{self, all_hand_over, stop_births, town_in};
use crate::money;
use crate::sales_cheats::chain;

/// What each has to pay with, in satoshi.
pub const BALANCE: u64 = 40_000;
/// What a purchase is for, in [`BEGIN`] too.
pub const BOUGHT: u64 = 30_000;
/// What one is for that is as large as the channel there is.
const MUCH: u64 = 150_000;
/// A fixed price.
pub const FEE: u64 = 1_000;
/// What a client needs for its own way out.
pub const FEE_COIN: Amount = Amount::from_sat(80_000);

fn sells(coordinator: &Service) -> Result<()> {
    coordinator.configure("sales.enabled", true)?;
    coordinator.configure("sales.base_fee_sat", i64::try_from(FEE)?)?;
    coordinator.configure("sales.fee_ppm", 0)?;
    coordinator.configure("sales.fee_ppm_per_day", 0)?;
    coordinator.configure("sales.min_fee_sat", 1)?;
    coordinator.configure("sales.min_sat", 10_000)
}

/// Clients that share one stock, each with a balance, and fee coins.
pub fn town_with(
    name: &str,
    clients: usize,
    configure: impl FnOnce(&Service) -> Result<()>,
) -> Result<(World, Created)> {
    let all: Vec<usize> = (0..clients).collect();
    town_of(name, clients, &all, configure)
}

/// As [`town_with`], but only these have fee coins.
pub fn town_of(
    name: &str,
    clients: usize,
    rich: &[usize],
    configure: impl FnOnce(&Service) -> Result<()>,
) -> Result<(World, Created)> {
    let mut world = World::start_with(name, |coordinator| {
        sells(coordinator)?;
        configure(coordinator)
    })?;
    let everybody: Vec<usize> = (0..clients).collect();
    world.add_clients(clients)?;
    world.fund_clients(rich, FEE_COIN)?;
    world.join(&everybody)?;
    // A life in which nobody leaves meanwhile, and stocks for several sales.
    let created = world.create(&["--set", "active=900", "--set", "stock_share_ppm=2000000"])?;
    world.usable_for(&created, &everybody)?;
    world.coordinator_pays(&everybody, BALANCE)?;
    Ok((world, created))
}

pub fn town(name: &str, clients: usize) -> Result<(World, Created)> {
    town_with(name, clients, |_| Ok(()))
}

/// Buys, and waits until the channel stands.
pub fn buy(world: &World, index: usize) -> Result<Value> {
    buy_much(world, index, BOUGHT)
}

fn buy_much(world: &World, index: usize, sat: u64) -> Result<Value> {
    let sat = sat.to_string();
    let words = ["limit", "upgrade", &sat, "--yes", "--accept-uncovered"];
    let bought = world.client(index)?.json(&words)?;
    ensure!(bought["state"] == "settled", "{bought}");
    Ok(bought)
}

/// Orders and pays, and does not wait.
const BEGIN: [&str; 6] = [
    "limit",
    "upgrade",
    "30000",
    "--yes",
    "--accept-uncovered",
    "--no-wait",
];

pub fn begin(world: &World, index: usize) -> Result<Value> {
    world.client(index)?.json(&BEGIN)
}

/// The end of this client's newest purchase.
pub fn ends(world: &World, index: usize, state: &str) -> Result<()> {
    let event = format!("purchase_{state}");
    let client = world.client(index)?;
    client.wait_for(&event)?;
    let list = client.json(&["limit", "purchases"])?;
    let list = list["purchases"].as_array().context("a list")?;
    ensure!(
        list.iter().any(|one| one["state"] == state),
        "no purchase is {state}: {list:?}"
    );
    Ok(())
}

pub fn channels(world: &World, index: usize) -> Result<Vec<Value>> {
    let answer = world.client(index)?.json(&["channels"])?;
    Ok(answer["channels"].as_array().context("a list")?.clone())
}

/// Room to receive, in satoshi.
pub fn room(world: &World, index: usize) -> Result<u64> {
    let balance = world.client(index)?.json(&["balance"])?;
    Ok(number(&balance, "lightning_receivable_msat")? / 1_000)
}

/// What is listed as sold.
pub fn ledger(world: &World) -> Result<Vec<Value>> {
    let books = world.coordinator.json(&["liquidity", "sales"])?;
    Ok(books["sales"].as_array().context("a list")?.clone())
}

/// What the first client is told that [`MUCH`] costs.
fn quoted(world: &World) -> Result<u64> {
    let sat = MUCH.to_string();
    let quote = world.client(0)?.json(&["limit", "quote", &sat])?;
    number(&quote["quote"], "fee_msat")
}

/// `coordinator liquidity prices ..`
fn prices(world: &World, words: &[&str]) -> Result<Value> {
    let words = [&["liquidity", "prices"], words].concat();
    world.coordinator.json(&words)
}

/// The operator sets the first client a price of its own, and takes it back: both hold at once.
fn dearer_until_unset(world: &World) -> Result<()> {
    let id = world.id_of(world.client(0)?)?;
    prices(world, &["set", "--client", id, "--base-fee-sat", "3000"])?;
    ensure!(quoted(world)? == 3_000_000);
    let shown = prices(world, &["show"])?;
    let set = &shown["set"][0];
    ensure!(
        set["client"] == id && set["said"]["base_fee_sat"] == 3_000,
        "{shown}"
    );
    // The other's, and what was not said, is as configured.
    ensure!(shown["configured"]["base_fee_sat"] == FEE, "{shown}");
    ensure!(set["price"]["fee_ppm"] == 0, "{shown}");
    let words = "liquidity prices set --min-fee-sat 10 --max-fee-sat 9";
    let words: Vec<&str> = words.split(' ').collect();
    let answer = world.coordinator.command(&words)?;
    answer.refused(answer.code, &["less than the least"])?;
    prices(world, &["unset", "--client", id])?;
    ensure!(quoted(world)? == FEE * 1_000);
    Ok(())
}

/// Both mates are awake: the buyer pays exactly the price, has a second channel, and is paid by somebody outside more than either carries.
#[test]
fn a_client_buys_room() -> Result<()> {
    let (mut world, _) = town("sale_awake", 2)?;
    let before = room(&world, 0)?;
    ensure!(quoted(&world)? == FEE * 1_000);
    dearer_until_unset(&world)?;
    buy_much(&world, 0, MUCH)?;
    world.lightning_becomes(0, (BALANCE - FEE) * 1_000)?;
    ensure!(channels(&world, 0)?.len() == 2);
    let after = room(&world, 0)?;
    // All of the new channel, and what was paid; nothing is kept back on the coordinator's side but its own reserve.
    ensure!(
        after > before + MUCH + FEE - 3_000,
        "{before} sat, then {after}"
    );
    ensure!(channels(&world, 1)?.len() == 1, "the mate got nothing");
    let sold = ledger(&world)?;
    ensure!(sold.len() == 1 && sold[0]["state"] == "settled", "{sold:?}");
    ensure!(number(&sold[0], "taken_msat")? == FEE * 1_000, "{sold:?}");
    let words = ["liquidity", "revenue", "--csv"];
    let csv = world.coordinator.command(&words)?;
    let mut lines = csv.stdout.lines();
    let header = "day,sales_msat,jit_msat,lsps1_msat,routing_msat,onchain_sat,net_msat,bonus_sat";
    ensure!(lines.next() == Some(header), "{csv}");
    let msat = FEE * 1_000;
    let day = format!(",{msat},0,0,0,0,{msat},0");
    let one = lines.next().is_some_and(|line| line.ends_with(&day));
    ensure!(one && lines.next().is_none(), "{csv}");

    // A payer learns nothing of sizes from an invoice (BOLT 11): it halves what does not go through.
    let much = after * 7 / 10;
    for channel in channels(&world, 0)? {
        ensure!(
            number(&channel, "receivable_msat")? < much * 1_000,
            "{channel}"
        );
    }
    let outside = Outside::start(&mut world)?;
    let ours = outside.pay(&world.invoice(0, much)?)?;
    world.lightning_becomes(0, (BALANCE - FEE + much) * 1_000)?;
    // What the payer paid for the way is the coordinator's, for each part.
    let paid = outside.event("the payment's fee", |event| match event {
        NodeEvent::PaymentSent { hash, fee, .. } if *hash == ours => Some(fee.0),
        _ => None,
    })?;
    ensure!(paid > 0, "the way costs nothing");
    becomes("the routing fees", || {
        let revenue = world.coordinator.json(&["liquidity", "revenue"])?;
        let days = revenue["days"].as_array().context("a list")?.iter();
        let earned: Result<u64> = days.map(|day| number(day, "routing_msat")).sum();
        Ok(earned? == paid)
    })
}

/// What the operator asks for of what the chain would take, in parts per million.
const CHAIN_PPM: u64 = 123_457;
/// A sale's transaction and its fee child, as docs/sales.md has it.
const CHAIN_VBYTES: u64 = 320;

/// The fixed price and the chain's part at so many sat/vB, in msat.
fn with_chain(sat_per_vb: u64) -> u64 {
    let chain = CHAIN_VBYTES * sat_per_vb * 1_000;
    FEE * 1_000 + (chain * CHAIN_PPM).div_ceil(1_000_000)
}

/// The price goes with feerates, up to the most; who was quoted a price before the operator set another pays exactly the one it was quoted.
#[test]
fn the_chains_part_of_a_price_goes_with_feerates() -> Result<()> {
    let (mut world, _) = town("sale_onchain", 2)?;
    let shown = prices(&world, &["set", "--onchain-ppm", &CHAIN_PPM.to_string()])?;
    ensure!(
        shown["set"][0]["price"]["onchain_ppm"] == CHAIN_PPM,
        "{shown}"
    );
    // The Bitcoin node has no estimate: the feerate of the configuration counts.
    ensure!(quoted(&world)? == with_chain(2));

    // Then it takes nothing below 3 sat/vB.
    world.node.restart_with(Options {
        arguments: vec!["-minrelaytxfee=0.00003000".into()],
        ..Options::default()
    })?;
    world.mine(1)?;
    world.coordinator_sees_tip()?;
    world.client_sees(0, world.node.height()?)?;
    let promised = with_chain(3);
    becomes("a dearer chain", || Ok(quoted(&world)? == promised))?;

    // The wallet has its quote, and the coordinator hears of the purchase only when another price is set.
    world.client_mut(0)?.terminate()?;
    world
        .client_mut(0)?
        .start_with(&[("SUPERSCALAR_FAULT", "purchase_stored")])?;
    back(&world, 0)?;
    world.client(0)?.command(&BEGIN)?;
    world.client_mut(0)?.wait_until_ended()?;
    let most = 1_100_000;
    prices(&world, &["set", "--max-fee-sat", "1100"])?;
    world.client_mut(0)?.start()?;
    ends(&world, 0, "settled")?;
    world.lightning_becomes(0, BALANCE * 1_000 - promised)?;

    // From the next quote on, the most.
    ensure!(with_chain(3) > most && with_chain(2) < most);
    ensure!(quoted(&world)? == most);
    buy(&world, 0)?;
    world.lightning_becomes(0, BALANCE * 1_000 - promised - most)?;
    let sold = ledger(&world)?;
    ensure!(sold.len() == 2, "{sold:?}");
    for (sale, msat) in sold.iter().zip([most, promised]) {
        ensure!(sale["state"] == "settled", "{sale}");
        ensure!(number(sale, "fee_msat")? == msat, "{sale}");
        ensure!(number(sale, "taken_msat")? == msat, "{sale}");
    }
    let revenue = world.coordinator.json(&["liquidity", "revenue"])?;
    let days = revenue["days"].as_array().context("a list")?.iter();
    let earned: Result<u64> = days.map(|day| number(day, "sales_msat")).sum();
    ensure!(earned? == promised + most, "{revenue}");
    Ok(())
}

/// Four in a row; then the coordinator is gone for good, and the buyer leaves with what it has in all its channels.
#[test]
fn four_in_a_row_and_out() -> Result<()> {
    let (mut world, created) = town("sale_four", 2)?;
    for _ in 0..4 {
        buy(&world, 0)?;
    }
    ensure!(channels(&world, 0)?.len() == 5);
    let outside = Outside::start(&mut world)?;
    let much = room(&world, 0)? * 8 / 10;
    outside.pay(&world.invoice(0, much)?)?;
    let has = BALANCE - 4 * FEE + much;
    world.lightning_becomes(0, has * 1_000)?;
    let export = world.export(&created)?;
    world.coordinator.kill()?;
    world
        .client(0)?
        .json(&["exit", &created.factory, "--yes", "--background"])?;
    world.mine_until(&export, |world| world.all_done(&created, &[0]))?;
    let ledger = money::sheet(&world, std::slice::from_ref(&export))?;
    has_come_out(&ledger, 0, has)
}

/// The mate sleeps, is woken, and signs.
#[test]
fn a_mate_that_sleeps_is_woken() -> Result<()> {
    let directory = tempfile::tempdir()?;
    let webhook = Webhook::start(directory.path())?;
    let (mut world, _) = town_with("sale_woken", 2, |coordinator| {
        coordinator.configure("webhooks.ca_file", path_text(webhook.ca_file())?)?;
        coordinator.configure("webhooks.allow_private", true)
    })?;
    let url = webhook.url("token");
    world.client(1)?.json(&["webhook", "set", "push", &url])?;
    webhook.wait(0, "lsps5.webhook_registered")?;
    world.client_mut(1)?.terminate()?;
    begin(&world, 0)?;
    webhook.wait(1, "lsps5.liquidity_management_request")?;
    world.client_mut(1)?.start()?;
    ends(&world, 0, "settled")?;
    world.lightning_becomes(0, (BALANCE - FEE) * 1_000)
}

/// The mate never comes: nobody is charged.
#[test]
fn a_mate_that_never_comes() -> Result<()> {
    let (mut world, _) = town_with("sale_refund", 2, |coordinator| {
        coordinator.configure("sales.wake_seconds", 2)
    })?;
    world.client_mut(1)?.terminate()?;
    begin(&world, 0)?;
    ends(&world, 0, "cancelled")?;
    world.lightning_becomes(0, BALANCE * 1_000)?;
    ensure!(channels(&world, 0)?.len() == 1);
    // It is there again, and the next one goes through.
    world.client_mut(1)?.start()?;
    world.client(1)?.wait_for("lightning_connected")?;
    buy(&world, 0)?;
    world.lightning_becomes(0, (BALANCE - FEE) * 1_000)
}

/// The mate never comes, and the coordinator dies before it has sent the payment back: it does so when it is there again.
#[test]
fn dies_when_nothing_came_of_it() -> Result<()> {
    let (mut world, _) = town_with("sale_lsp_sale_cancelled", 2, |coordinator| {
        coordinator.configure("sales.wake_seconds", 2)
    })?;
    world.coordinator.terminate()?;
    world
        .coordinator
        .start_with(&[("SUPERSCALAR_FAULT", "sale_cancelled")])?;
    for index in [0, 1] {
        back(&world, index)?;
    }
    world.client_mut(1)?.terminate()?;
    world.client(0)?.command(&BEGIN)?;
    world.coordinator.wait_until_ended()?;
    world.coordinator.start()?;
    ends(&world, 0, "cancelled")?;
    world.lightning_becomes(0, BALANCE * 1_000)?;
    ensure!(channels(&world, 0)?.len() == 1);
    Ok(())
}

/// A sale in a town of two whose coordinator dies at `point`, and comes again.
pub fn coordinator_dies_in(mut world: World, point: &str) -> Result<World> {
    world.coordinator.terminate()?;
    world
        .coordinator
        .start_with(&[("SUPERSCALAR_FAULT", point)])?;
    for index in [0, 1] {
        back(&world, index)?;
    }
    // It may die before it answers.
    world.client(0)?.command(&BEGIN)?;
    world.coordinator.wait_until_ended()?;
    world.coordinator.start()?;
    is_bought(&world)?;
    Ok(world)
}

fn coordinator_dies(point: &str) -> Result<()> {
    let (world, _) = town(&format!("sale_lsp_{point}"), 2)?;
    coordinator_dies_in(world, point).map(drop)
}

/// The first client has what it bought, at the price.
fn is_bought(world: &World) -> Result<()> {
    ends(world, 0, "settled")?;
    world.lightning_becomes(0, (BALANCE - FEE) * 1_000)?;
    ensure!(channels(world, 0)?.len() == 2);
    Ok(())
}

/// Waits until a client's Lightning node has found the coordinator again.
pub fn back(world: &World, index: usize) -> Result<()> {
    let client = world.client(index)?;
    let deadline = std::time::Instant::now() + scenarios::process::PATIENCE;
    loop {
        let all = channels(world, index)?;
        if !all.is_empty() && all.iter().all(|one| one["usable"] == true) {
            return Ok(());
        }
        ensure!(
            std::time::Instant::now() < deadline,
            "{} has no usable channel: {all:?}",
            client.name()
        );
        std::thread::sleep(std::time::Duration::from_millis(50));
    }
}

deaths! {
    dies_when_it_was_ordered: coordinator_dies("sale_ordered");
    dies_when_it_is_paid: coordinator_dies("sale_held");
    dies_when_an_attempt_has_begun: coordinator_dies("sale_attempt_begun");
    dies_when_it_is_bound: coordinator_dies("sale_bound");
    dies_when_the_chain_is_stored: coordinator_dies("sale_chain_stored");
    dies_when_it_is_sold: coordinator_dies("sale_sold");
    dies_when_the_channel_is_opened: coordinator_dies("sale_channel_opened");
    dies_when_it_has_claimed: coordinator_dies("sale_claimed");
    dies_when_it_has_settled: coordinator_dies("sale_settled");
    the_buyer_dies_when_it_has_ordered: client_dies(0, "purchase_stored");
    the_buyer_dies_before_it_pays: client_dies(0, "purchase_invoice_stored");
    the_buyer_dies_when_it_may_have_paid: client_dies(0, "purchase_paying");
    the_buyer_dies_before_its_payment_is_sent: client_dies(0, "pay_begun");
    the_buyer_dies_when_it_has_paid: client_dies(0, "purchase_paid");
    the_buyer_dies_when_it_has_signed: client_dies(0, "sale_guard_stored");
    the_buyer_dies_with_the_kit: client_dies(0, "sale_kit_stored");
    the_buyer_dies_when_it_has_acked: client_dies(0, "sale_acked");
    the_mate_dies_when_it_has_signed: client_dies(1, "sale_guard_stored");
    the_mate_dies_with_the_kit: client_dies(1, "sale_kit_stored");
    the_mate_dies_when_it_has_acked: client_dies(1, "sale_acked");
}

/// A sale in a town of two whose buyer, or its mate, dies at `point`, and comes again.
pub fn client_dies_in(mut world: World, who: usize, point: &str) -> Result<World> {
    world.client_mut(who)?.terminate()?;
    world
        .client_mut(who)?
        .start_with(&[("SUPERSCALAR_FAULT", point)])?;
    for index in [0, 1] {
        back(&world, index)?;
    }
    world.client(0)?.command(&BEGIN)?;
    world.client_mut(who)?.wait_until_ended()?;
    world.client_mut(who)?.start()?;
    is_bought(&world)?;
    Ok(world)
}

fn client_dies(who: usize, point: &str) -> Result<()> {
    let (world, _) = town(&format!("sale_client{who}_{point}"), 2)?;
    client_dies_in(world, who, point).map(drop)
}

/// The mate leaves and brings the leaf to the chain: the coordinator publishes what it sold from it by itself, the buyer is still paid over what it
/// bought, and in the end everybody has what is its own.
#[test]
fn the_coordinator_publishes_what_it_sold() -> Result<()> {
    let (world, created) = town("sale_published", 2)?;
    buy(&world, 0)?;
    let export = world.export(&created)?;
    world
        .client(1)?
        .json(&["exit", &created.factory, "--yes", "--background"])?;
    world.drive(1, 0, |event| event.is("leaf_confirmed"), |_| {})?;
    let chain = |event: &Event| event.is("tree_published") && event.text("kind") == "stock_chain";
    world.mine_until(&export, |world| {
        Ok(world.coordinator.events()?.iter().any(chain))
    })?;
    ensure!(
        published_sale(&world.coordinator)?,
        "somebody else published it"
    );
    all_is_out(&world, &created, &export)?;
    // Who lost a race to publish finds its coins free at the next block.
    world.mine(2)?;
    let ledger = money::settled(&world, std::slice::from_ref(&export))?;
    for (index, balance) in [(0, BALANCE - FEE), (1, BALANCE)] {
        has_come_out(&ledger, index, balance)?;
    }
    Ok(())
}

/// Brings the leaf of a town that sold something to the chain, with nobody but one client up, and that one only until it has published the leaf.
pub fn leaf_alone(world: &mut World, created: &Created) -> Result<()> {
    world.coordinator.kill()?;
    world.client_mut(0)?.kill()?;
    let mark = world.client(1)?.mark()?;
    world
        .client(1)?
        .json(&["exit", &created.factory, "--yes", "--background"])?;
    let leaf = |event: &Event| event.is("exit_published") && event.text("kind") == "leaf";
    world.drive(1, mark, leaf, |_| {})?;
    world.client_mut(1)?.kill()?;
    world.mine(1)
}

fn is_sale(event: &Event) -> bool {
    event.is("exit_published") && event.text("kind") == "stock_chain"
}

/// Whether this service published what was sold.
fn published_sale(service: &Service) -> Result<bool> {
    Ok(service.events()?.iter().any(is_sale))
}

/// The leaf confirms while nobody is up, and nobody is for a hundred blocks. The stock was sold from four times, so that a poison is final after 144:
/// the coordinator publishes all it sold before that, and nobody loses anything, itself included.
#[test]
fn a_hundred_blocks_without_anybody() -> Result<()> {
    const SALES: u64 = 4;
    let (mut world, created) = town("sale_down", 2)?;
    for _ in 0..SALES {
        buy(&world, 0)?;
    }
    let export = world.export(&created)?;
    let sold = chain(&world.client_export(0, &created)?)?;
    ensure!(sold.len() as u64 == SALES, "{sold:?}");
    // Something is left, and it stays.
    let fifth = world.client(0)?.command(&["limit", "quote", "20000"])?;
    fifth.refused(fifth.code, &["4 sales were made", "no more"])?;
    leaf_alone(&mut world, &created)?;
    world.mine(100)?;
    world.coordinator.start()?;
    for (_, sale) in &sold {
        let txid = sale.compute_txid().to_string();
        let published = |event: &Event| is_sale(event) && event.text("txid") == txid;
        world.coordinator.wait("what was sold", published)?;
        world.mine(1)?;
    }
    for index in [0, 1] {
        world.client_mut(index)?.start()?;
    }
    all_is_out(&world, &created, &export)?;
    world.mine(2)?;
    let ledger = money::settled(&world, std::slice::from_ref(&export))?;
    for (stock, sale) in &sold {
        let spender = ledger.spender(stock).context("a stock is spent")?;
        ensure!(spender.txid == sale.compute_txid(), "a poison: {spender:?}");
    }
    let balances = [BALANCE - SALES * FEE, BALANCE];
    for (index, balance) in balances.into_iter().enumerate() {
        has_come_out(&ledger, index, balance)?;
    }
    coordinator_has_the_rest(&world, &ledger, balances.iter().sum())
}

/// The coordinator has all it was given, but for what is the clients', and for the fees that no client paid.
fn coordinator_has_the_rest(world: &World, ledger: &Ledger, clients: u64) -> Result<()> {
    let name = world.coordinator.name();
    let by_client = |tx: &OnChain| {
        let by = tx.by.as_deref();
        by.is_some_and(|by| by.starts_with("client-"))
    };
    let all = ledger.onchain().iter();
    let others = all.filter(|tx| tx.kind != "gift" && !by_client(tx));
    let fees: u64 = others.map(|tx| tx.fee_sat).sum();
    let due = ledger.start_of(name) - Amount::from_sat(clients + fees);
    let has = ledger.has(name);
    ensure!(has == due, "{name} has {has}, not {due}");
    Ok(())
}

/// The coordinator withholds what it sold: the buyer, who does not leave, publishes it long before a poison is final, and has not less than its
/// balance in the end.
#[test]
fn the_buyer_publishes_what_is_withheld() -> Result<()> {
    let (mut world, created) = town("sale_withheld", 2)?;
    buy(&world, 0)?;
    let export = world.export(&created)?;
    leaf_alone(&mut world, &created)?;
    world.client_mut(0)?.start()?;
    // A quarter of the first poison's delay is the coordinator's.
    world.mine(80)?;
    world.client_sees(0, world.node.height()?)?;
    ensure!(!published_sale(world.client(0)?)?, "it had no patience");
    world.mine(20)?;
    world.client(0)?.wait("what was sold", is_sale)?;
    world.mine_until(&export, |world| world.all_done(&created, &[0]))?;
    let has = number(&world.client(0)?.json(&["balance"])?, "total_sat")?;
    // The timeouts of a coordinator that is gone pay whole channels.
    ensure!(has > FEE_COIN.to_sat() + BALANCE + BOUGHT, "it has {has}");
    Ok(())
}

/// Mines until nothing is left in the factory or on the way out of a channel, and all have what is theirs.
pub fn all_is_out(world: &World, created: &Created, export: &Export) -> Result<()> {
    world.mine_until(export, |world| {
        if !world.all_done(created, &[0, 1])? || world.left_in(export)? > 0 {
            return Ok(false);
        }
        let ledger = world.ledger(vec![export.clone()])?;
        Ok(ledger.sum_of(&Owner::Channel) == Amount::ZERO)
    })
}

/// A client has its balance on the chain, less what it paid for that.
pub fn has_come_out(ledger: &Ledger, index: usize, balance: u64) -> Result<()> {
    let name = format!("client-{index}");
    let own = ledger.onchain().iter();
    let spent: u64 = own
        .filter(|tx| tx.by.as_deref() == Some(&name))
        .map(|tx| tx.fee_sat)
        .sum();
    let due = FEE_COIN + Amount::from_sat(balance) - Amount::from_sat(spent);
    let has = ledger.has(&name);
    ensure!(has == due, "{name} has {has}, not {due}");
    Ok(())
}

/// What was bought is left like everything else: its balance moves to the younger factory, its key is handed over, the coins come back.
#[test]
fn what_was_bought_moves_on() -> Result<()> {
    moves_on("sale_moves", |_| Ok(()), |_| Ok(()), |_| Ok(()))
}

/// `begun` waits for what has to be there before somebody buys, `bought` looks at what there is then.
pub fn moves_on(
    name: &str,
    configure: impl FnOnce(&Service) -> Result<()>,
    begun: impl FnOnce(&World) -> Result<()>,
    bought: impl FnOnce(&World) -> Result<()>,
) -> Result<()> {
    let mut ladder = Ladder::prepare(&World::directory(name)?, SHORT)?;
    sells(&ladder.world.coordinator)?;
    configure(&ladder.world.coordinator)?;
    ladder
        .world
        .coordinator
        .configure("sales.hold_blocks", 24)?;
    ladder.begin(COORDINATOR_COINS)?;
    let (mut ladder, first) = town_in(ladder, 2, |_| Ok(()))?;
    begun(&ladder.world)?;
    buy(&ladder.world, 0)?;
    bought(&ladder.world)?;
    let outside = Outside::start(&mut ladder.world)?;
    let much = room(&ladder.world, 0)? * 8 / 10;
    outside.pay(&ladder.world.invoice(0, much)?)?;
    let has = (ladder_clients::BALANCE - FEE + much) * 1_000;
    ladder.world.lightning_becomes(0, has)?;
    all_hand_over(&mut ladder, &first, &[0, 1])?;
    ladder.world.lightning_becomes(0, has)?;
    ensure!(
        ladder.tally.factories[&first].published.is_empty(),
        "a path was published"
    );
    let export = ladder.export(&first)?.clone();
    ladder.live("nothing is left in the factory", 200, |ladder| {
        Ok(ladder.world.left_in(&export)? == 0)
    })?;
    stop_births(&mut ladder)
}
