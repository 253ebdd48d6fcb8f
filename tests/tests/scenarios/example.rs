//! The wallet developer's example (`signer-client/examples/wallet.rs`), against a real coordinator.

use std::io::{BufRead, BufReader};
use std::process::{Command, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::time::Instant;

use anyhow::{Context, Result, ensure};
use scenarios::binaries;
use scenarios::process::PATIENCE;
use scenarios::world::World;

/// What it says until a line begins so; the rest of that line.
fn line(said: &Receiver<String>, beginning: &str) -> Result<String> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        let line = said.recv_timeout(left);
        let line = line.with_context(|| format!("the example did not say {beginning:?}"))?;
        if let Some(rest) = line.strip_prefix(beginning) {
            return Ok(rest.trim().to_owned());
        }
    }
}

#[test]
fn joins_is_paid_and_pays() -> Result<()> {
    let mut world = World::start("example")?;
    world.add_clients(1)?;
    let program = binaries::target()?.join("debug/examples/wallet");
    let mut example = Command::new(&program)
        .arg(world.home().join("example"))
        .arg(world.connection())
        .arg(world.node.rpc_url())
        .arg(world.node.cookie_file())
        .args(["--invoice", "5000"])
        .stdout(Stdio::piped())
        .spawn()
        .with_context(|| format!("{} (cargo build --examples)", program.display()))?;
    let (sender, said) = channel();
    let output = BufReader::new(example.stdout.take().context("piped")?);
    std::thread::spawn(move || {
        for line in output.lines().map_while(Result::ok) {
            if sender.send(line).is_err() {
                break;
            }
        }
    });
    line(&said, "joining")?;
    world.join(&[0])?;
    let mark = world.coordinator.mark()?;
    world.begin(&["--clients", "2", "--set", "active=900"])?;
    let created = world.funded_after(mark)?;
    world.confirm(&created)?;
    let factory = line(&said, "usable")?;
    ensure!(factory == created.factory, "another factory: {factory}");
    let invoice = line(&said, "invoice")?;
    world.coordinator.json(&["node", "pay", &invoice])?;
    ensure!(line(&said, "received")? == "5000000 msat");
    ensure!(line(&said, "balance")? == "5000000 msat");
    ensure!(example.wait()?.success(), "the example failed");
    Ok(())
}
