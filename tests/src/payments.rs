//! Payments of wallets and of the coordinator, by their command lines.

use std::net::SocketAddr;

use anyhow::{Context, Result, ensure};
use bitcoin::secp256k1::PublicKey;
use bitcoin::{Amount, ScriptBuf};
use serde_json::Value;

use crate::command::Answer;
use crate::world::{World, number, text};

impl World {
    /// The coordinator's Lightning id, and where it listens.
    pub fn lightning(&self) -> Result<(PublicKey, SocketAddr)> {
        let ready = self.coordinator.wait_for("ready")?;
        Ok((
            ready.text("node_id").parse()?,
            ready.text("lightning").parse()?,
        ))
    }

    /// Gives somebody with a script of its own confirmed coins.
    pub fn give(&mut self, name: &str, script: ScriptBuf, amount: Amount) -> Result<()> {
        self.know(script.clone(), name);
        self.node.fund(&script, amount).map(drop)
    }

    /// A wallet's invoice.
    pub fn invoice(&self, index: usize, sat: u64) -> Result<String> {
        let answer = self.client(index)?.json(&["invoice", &sat.to_string()])?;
        text(&answer, "invoice")
    }

    /// A wallet pays, and it must succeed.
    pub fn pay(&self, index: usize, invoice: &str) -> Result<Value> {
        self.client(index)?.json(&["pay", invoice])
    }

    /// A wallet pays, or not.
    pub fn try_pay(&self, index: usize, invoice: &str) -> Result<Answer> {
        self.client(index)?.command(&["pay", invoice, "--json"])
    }

    /// The coordinator pays wallets this much each, so that they have something to lose.
    pub fn coordinator_pays(&self, which: &[usize], sat: u64) -> Result<()> {
        for index in which {
            let invoice = self.invoice(*index, sat)?;
            self.coordinator.json(&["node", "pay", &invoice])?;
            let client = self.client(*index)?;
            client.wait("a payment", |event| {
                event.is("payment_received") && event.number("amount_msat") == Some(sat * 1_000)
            })?;
        }
        Ok(())
    }

    /// What a wallet has on Lightning, in thousandths of a satoshi: its side of all channels.
    pub fn lightning_msat(&self, index: usize) -> Result<u64> {
        number(&self.client(index)?.json(&["balance"])?, "lightning_msat")
    }

    /// Waits until a wallet has exactly this much on Lightning.
    pub fn lightning_becomes(&self, index: usize, msat: u64) -> Result<()> {
        let deadline = std::time::Instant::now() + crate::process::PATIENCE;
        loop {
            let has = self.lightning_msat(index)?;
            if has == msat {
                return Ok(());
            }
            ensure!(
                std::time::Instant::now() < deadline,
                "client {index} has {has} msat, not {msat}"
            );
            std::thread::sleep(std::time::Duration::from_millis(50));
        }
    }

    /// The hash of a payment, from its invoice's answer.
    pub fn hash_of(answer: &Value) -> Result<String> {
        text(answer, "hash").context("an invoice has a hash")
    }
}
