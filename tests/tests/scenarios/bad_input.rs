//! Mistakes of operators and users, and machines that fail: each has a clear error, and the rest goes on.

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};
use bitcoin::TxMerkleNode;
use bitcoin::block::Header;
use bitcoin::consensus::encode::{deserialize_hex, serialize_hex};
use bitcoin::hashes::Hash;
use scenarios::service::Service;
use scenarios::world::{COORDINATOR_COINS, World};
use serde_json::json;

use crate::money;

const FAILED: i32 = 1;
const USAGE: i32 = 2;
const UNREACHABLE: i32 = 3;
const REFUSED: i32 = 4;

#[test]
fn amounts_out_of_range_are_refused() -> Result<()> {
    let mut world = World::start("bad_amounts")?;
    world.add_clients(2)?;
    let client = world.client(0)?;
    // Under the dust limit, under the operator's minimum, over its maximum, over 21 million bitcoin.
    for amount in ["100", "19999", "10000001", "2100000000000001"] {
        let answer = client.command(&["join", "--capacity", amount, "--json"])?;
        ensure!([REFUSED, USAGE].contains(&answer.code), "{answer}");
    }
    let answer = client.command(&["join", "--capacity", "many", "--json"])?;
    answer.refused(USAGE, &["many"])?;
    ensure!(answer.printed()?["exit_code"] == USAGE, "{answer}");
    for (name, value, words) in [
        ("k", "9", ["k"]),
        ("stock_share_ppm", "4000001", ["stock_share_ppm"]),
        ("no_such_parameter", "1", ["no_such_parameter"]),
    ] {
        let set = format!("{name}={value}");
        let answer = world
            .coordinator
            .command(&["factory", "create", "--set", &set])?;
        ensure!([REFUSED, USAGE, FAILED].contains(&answer.code), "{answer}");
        answer.refused(answer.code, &words)?;
    }
    // Nobody was harmed.
    world.join(&[0, 1])?;
    let created = world.create(&[])?;
    world.usable_for(&created, &[0, 1])?;
    let export = world.export(&created)?;
    money::funded(&world, &[export], COORDINATOR_COINS)
}

/// More than the coordinator has: no factory, nothing pinned, a clear reason.
#[test]
fn not_enough_coins() -> Result<()> {
    let mut world = World::start("bad_funds")?;
    world.add_clients(12)?;
    let everybody: Vec<usize> = (0..12).collect();
    for index in &everybody {
        world
            .client(*index)?
            .json(&["join", "--capacity", "9000000"])?;
    }
    for index in &everybody {
        let id = world.id_of(world.client(*index)?)?;
        world.coordinator.wait("the interest", |event| {
            event.is("client_interested") && event.text("client") == id
        })?;
    }
    let answer = world
        .coordinator
        .command(&["factory", "create", "--json"])?;
    if answer.code == 0 {
        let failed = world.coordinator.wait_for("ceremony_failed")?;
        ensure!(failed.text("reason") == "no_funds", "{failed}");
    } else {
        answer.refused(REFUSED, &["needed", "wallet"])?;
    }
    let balance = world.coordinator.json(&["wallet", "balance"])?;
    ensure!(
        balance["confirmed_sat"] == COORDINATOR_COINS.to_sat(),
        "{balance}"
    );
    money::funded(&world, &[], COORDINATOR_COINS)
}

#[test]
fn wrong_networks_are_named() -> Result<()> {
    let mut world = World::start("bad_network")?;
    // A wallet of another network than its node.
    let client = world.new_client("client-signet")?;
    client.configure("network", "signet")?;
    let answer = client.command(&["run", "--events", "-"])?;
    answer.refused(answer.code, &["signet", "regtest"])?;
    ensure!(answer.code != 0, "{answer}");
    // A coordinator likewise.
    world.coordinator.terminate()?;
    world.coordinator.configure("network", "signet")?;
    let answer = world.coordinator.command(&["run", "--events", "-"])?;
    ensure!(answer.code != 0, "{answer}");
    answer.refused(answer.code, &["signet", "regtest"])?;
    // And back: nothing was lost.
    world.coordinator.configure("network", "regtest")?;
    world.coordinator.start()?;
    world.coordinator.wait_for("ready")?;
    world.coordinator_sees_tip()?;
    money::funded(&world, &[], COORDINATOR_COINS)
}

#[test]
fn configuration_mistakes_are_named() -> Result<()> {
    let mut world = World::start("bad_config")?;
    world.coordinator.terminate()?;
    for (key, value, word) in [
        ("no_such_key", "1", "no_such_key"),
        ("policy.capacity_min_sat", "lots", "capacity_min_sat"),
    ] {
        let before = fs::read_to_string(world.coordinator.config())?;
        world.coordinator.configure(key, value)?;
        let answer = world.coordinator.command(&["run"])?;
        ensure!(answer.code != 0, "{answer}");
        answer.refused(answer.code, &[word])?;
        fs::write(world.coordinator.config(), before)?;
    }
    let answer = world
        .coordinator
        .command(&["wallet", "balance", "--json"])?;
    answer.refused(UNREACHABLE, &["run"])?;
    let answer = world.coordinator.command(&["no-such-command"])?;
    ensure!(answer.code == USAGE, "{answer}");
    // A seed for the wrong passphrase.
    let wrong = world.home().join("wrong.passphrase");
    fs::write(&wrong, "not this\n")?;
    fs::set_permissions(&wrong, std::os::unix::fs::PermissionsExt::from_mode(0o600))?;
    let wrong = wrong.display().to_string();
    let answer = world
        .coordinator
        .command_in(&["run"], &[("SUPERSCALAR_PASSPHRASE_FILE", &wrong)])?;
    ensure!(answer.code != 0, "{answer}");
    answer.refused(answer.code, &["passphrase"])
}

#[test]
fn a_second_coordinator_on_the_same_data_is_refused() -> Result<()> {
    let world = World::start("bad_second")?;
    let answer = world.coordinator.command(&["run", "--events", "-"])?;
    ensure!(answer.code != 0, "{answer}");
    answer.refused(answer.code, &["another coordinator"])?;
    // The first is not disturbed.
    world.coordinator.json(&["info"])?;
    let again = world.coordinator.command(&["init"])?;
    ensure!(
        again.code != 0,
        "a second init overwrote the first: {again}"
    );
    world.coordinator.json(&["wallet", "balance"]).map(drop)
}

fn corrupt(service: &mut Service, file: &str) -> Result<()> {
    service.terminate()?;
    let path = service.data().join(file);
    for suffix in ["-wal", "-shm"] {
        let _ = fs::remove_file(service.data().join(format!("{file}{suffix}")));
    }
    let healthy = fs::read(&path)?;
    let mut damaged = healthy.clone();
    let damage = damaged.iter_mut().take(4096);
    damage.for_each(|byte| *byte = !*byte);
    fs::write(&path, damaged)?;
    let answer = service.command(&["run", "--events", "-"])?;
    ensure!(answer.code != 0, "it runs on a corrupt database: {answer}");
    answer.refused(answer.code, &[file])?;
    fs::write(&path, healthy)?;
    service.start()
}

#[test]
fn corrupt_databases_are_named() -> Result<()> {
    let mut world = World::start("bad_database")?;
    world.add_clients(2)?;
    world.join(&[0, 1])?;
    let created = world.create(&[])?;
    world.usable_for(&created, &[0, 1])?;
    let export = world.export(&created)?;
    corrupt(&mut world.coordinator, "coordinator.sqlite")?;
    world.coordinator.wait_for("ready")?;
    world.stop_watching(world.client(0)?);
    corrupt(world.client_mut(0)?, "client.sqlite")?;
    world.client(0)?.wait_for("connected")?;
    // With the healthy files back, nothing was lost.
    ensure!(
        !world.client_export(0, &created)?.transactions.is_empty(),
        "the kit is gone"
    );
    world.coordinator_sees_tip()?;
    money::funded(&world, &[export], COORDINATOR_COINS)
}

/// Away: what can be served is served; back: it goes on.
#[test]
fn the_node_goes_away_and_comes_back() -> Result<()> {
    let mut world = World::start("bad_node_away")?;
    world.add_clients(2)?;
    world.join(&[0, 1])?;
    let mark = world.coordinator.mark()?;
    world.node.stop()?;
    world
        .coordinator
        .wait_after(mark, "the node missed", |event| {
            event.is("chain_unavailable")
        })?;
    world.coordinator.json(&["info"])?;
    world.coordinator.json(&["wallet", "balance"])?;
    let answer = world
        .coordinator
        .command(&["factory", "create", "--json"])?;
    if answer.code == 0 {
        let failed = world.coordinator.wait_for("ceremony_failed")?;
        ensure!(!failed.text("detail").is_empty(), "{failed}");
    } else {
        answer.refused(answer.code, &["node"])?;
    }
    world.node.start_again()?;
    world.mine(1)?;
    world.coordinator_sees_tip()?;
    world.join(&[0, 1])?;
    let created = world.create(&[])?;
    world.usable_for(&created, &[0, 1])?;
    let export = world.export(&created)?;
    money::funded(&world, &[export], COORDINATOR_COINS)
}

/// A node that knows of blocks it has not seen is waited for, not believed.
#[test]
fn the_node_is_still_syncing() -> Result<()> {
    let mut world = World::start("bad_node_syncing")?;
    world.add_clients(2)?;
    world.join(&[0, 1])?;
    world.coordinator.terminate()?;
    announce_headers(&world, 6)?;
    world.coordinator.start()?;
    let event = world.coordinator.wait_for("chain_unavailable")?;
    ensure!(
        event.text("problem").to_lowercase().contains("sync"),
        "{event}"
    );
    // Its own chain gets longer than what it heard of.
    world.mine(8)?;
    world.coordinator_sees_tip()?;
    world.coordinator.wait_for("chain_available")?;
    world.join(&[0, 1])?;
    let created = world.create(&[])?;
    world.usable_for(&created, &[0, 1])?;
    let export = world.export(&created)?;
    money::funded(&world, &[export], COORDINATOR_COINS)
}

/// Tells the node of blocks that it will never get.
fn announce_headers(world: &World, count: u32) -> Result<()> {
    let tip = world
        .node
        .rpc("getblockheader", json!([world.node.tip()?, false]))?;
    let mut header: Header = deserialize_hex(tip.as_str().context("a header")?)?;
    for _ in 0..count {
        header.prev_blockhash = header.block_hash();
        header.merkle_root = TxMerkleNode::all_zeros();
        header.time += 1;
        while header.validate_pow(header.target()).is_err() {
            header.nonce = header.nonce.wrapping_add(1);
        }
        world
            .node
            .rpc("submitheader", json!([serialize_hex(&header)]))?;
    }
    Ok(())
}

/// A small file system of its own; nothing where that is not permitted.
struct SmallDisk(PathBuf);

impl SmallDisk {
    fn mount(path: &Path) -> Result<Option<Self>> {
        fs::create_dir_all(path)?;
        let mounted = Command::new("mount")
            .args(["-t", "tmpfs", "-o", "size=3m,mode=700", "tmpfs"])
            .arg(path)
            .output();
        let mounted = mounted.context("cannot run mount")?;
        if mounted.status.success() {
            return Ok(Some(Self(path.to_owned())));
        }
        println!(
            "skipped: no file system may be mounted here: {}",
            String::from_utf8_lossy(&mounted.stderr).trim()
        );
        Ok(None)
    }

    fn ballast(&self) -> PathBuf {
        self.0.join("ballast")
    }

    fn fill(&self) -> Result<()> {
        let mut file = fs::File::create(self.ballast())?;
        // Until there is not a byte left.
        for size in [4096, 1] {
            while file.write_all(&vec![0; size]).is_ok() {}
        }
        Ok(())
    }

    fn empty(&self) -> Result<()> {
        Ok(fs::remove_file(self.ballast())?)
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        // Lazily: a process may still be in it.
        let _ = Command::new("umount").arg("-l").arg(&self.0).status();
    }
}

/// A wallet whose disk is full does not join, says so, and spoils nothing for the others.
#[test]
fn a_wallets_disk_is_full() -> Result<()> {
    let mut world = World::start_with("bad_disk_client", |coordinator| {
        coordinator.configure("ceremony.join_seconds", 8)?;
        coordinator.configure("ceremony.step_seconds", 8)
    })?;
    let Some(disk) = SmallDisk::mount(&world.home().join("client-0"))? else {
        return Ok(());
    };
    world.add_clients(3)?;
    world.join(&[0, 1, 2])?;
    disk.fill()?;
    let created = world.create(&[])?;
    world.usable_for(&created, &[1, 2])?;
    let export = world.export(&created)?;
    ensure!(
        export.clients().count() == 2,
        "{} members",
        export.clients().count()
    );
    disk.empty()?;
    // With room again it takes part again.
    world.client_mut(0)?.terminate()?;
    world.client_mut(0)?.start()?;
    world.client(0)?.wait_for("connected")?;
    let mark = world.coordinator.mark()?;
    world.join(&[0, 1])?;
    world.begin(&["--clients", "2"])?;
    let second = world.funded_after(mark)?;
    world.confirm(&second)?;
    world.usable_for(&second, &[0])?;
    let exports = [export, world.export(&second)?];
    money::funded(&world, &exports, COORDINATOR_COINS)
}

/// A coordinator whose disk is full builds nothing, says why, and goes on when there is room.
#[test]
fn the_coordinators_disk_is_full() -> Result<()> {
    let directory = World::directory("bad_disk_coordinator")?;
    let Some(disk) = SmallDisk::mount(&directory.join("disk"))? else {
        return Ok(());
    };
    let mut world = World::start("bad_disk_coordinator_world")?;
    world.coordinator.terminate()?;
    world.coordinator.move_to(&directory.join("disk"))?;
    world.coordinator.start()?;
    world.coordinator.wait_for("ready")?;
    world.add_clients(2)?;
    world.join(&[0, 1])?;
    disk.fill()?;
    let answer = world
        .coordinator
        .command(&["factory", "create", "--json"])?;
    if answer.code == 0 {
        world.coordinator.wait("a failure of the store", |event| {
            event.is("store_failed") || event.is("ceremony_failed")
        })?;
    } else {
        answer.refused(answer.code, &["disk"])?;
    }
    disk.empty()?;
    world.coordinator.terminate()?;
    world.coordinator.start()?;
    world.coordinator.wait_for("ready")?;
    world.coordinator_sees_tip()?;
    world.join(&[0, 1])?;
    let created = world.create(&[])?;
    world.usable_for(&created, &[0, 1])?;
    let export = world.export(&created)?;
    money::funded(&world, &[export], COORDINATOR_COINS)
}
