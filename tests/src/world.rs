//! A whole little world: a Bitcoin node, a coordinator and wallets, each a process of its own.

use std::fs;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::Arc;

use anyhow::{Context, Result, ensure};
use bitcoin::address::NetworkUnchecked;
use bitcoin::{Address, Amount, Network, ScriptBuf, Txid};
use serde_json::Value;

use crate::binaries;
use crate::bitcoind::{Bitcoind, Options, free_port};
use crate::crowd::Crowd;
use crate::event::Event;
use crate::export::Export;
use crate::ledger::{Known, Ledger};
use crate::service::{Installation, Service};
use crate::wallets;
use crate::watcher::{Watch, Watcher};

/// Milliseconds between two looks of a service at the chain: tests do not want to wait.
const POLL_MS: i64 = 25;

/// A calendar that fits into a minute: short life, short dying days. Delays of the transactions
/// (slots, `q`, the timeouts' locks) stay those of the profile.
pub const COMPRESSED: &[(&str, u32)] = &[
    ("active", 36),
    ("dying", 60),
    ("expiry_margin", 150),
    ("late_margin", LATE_MARGIN),
];

/// Blocks before the expiry by which everything published is spent, in that calendar.
pub const LATE_MARGIN: u32 = 6;

/// What the coordinator of a scenario has at first.
pub const COORDINATOR_COINS: Amount = Amount::from_sat(100_000_000);

/// A node, a coordinator, wallets.
#[derive(Debug)]
pub struct World {
    /// The Bitcoin node.
    pub node: Arc<Bitcoind>,
    /// The coordinator.
    pub coordinator: Service,
    /// The wallets.
    pub clients: Vec<Service>,
    watcher: Watcher,
    client_settings: Vec<(String, toml::Value)>,
    known: Known,
    connection: String,
    plain: bool,
    home: PathBuf,
    logs: PathBuf,
}

/// A factory that was created.
#[derive(Clone, Debug)]
pub struct Created {
    /// Its id, hex.
    pub factory: String,
    /// Its funding transaction.
    pub funding: Txid,
}

impl World {
    /// A node and a coordinator that runs and has coins; no wallets yet.
    ///
    /// What everybody says goes to `<target>/scenarios/<name>`, and so does their data.
    pub fn start(name: &str) -> Result<Self> {
        Self::start_with(name, |_| Ok(()))
    }

    /// The same with a coordinator that is configured further.
    pub fn start_with(name: &str, configure: impl FnOnce(&Service) -> Result<()>) -> Result<Self> {
        let mut world = Self::prepare(&Self::directory(name)?, Options::default())?;
        configure(&world.coordinator)?;
        world.coordinator.start()?;
        world.coordinator.wait_for("ready")?;
        world.fund_coordinator(COORDINATOR_COINS)?;
        Ok(world)
    }

    /// Where a scenario keeps everything.
    pub fn directory(name: &str) -> Result<PathBuf> {
        Ok(binaries::target()?.join("scenarios").join(name))
    }

    /// A node and an initialised coordinator that does not run yet, below an emptied directory.
    pub fn prepare(directory: &Path, options: Options) -> Result<Self> {
        if directory.exists() {
            fs::remove_dir_all(directory)?;
        }
        let (home, logs) = (directory.join("data"), directory.join("logs"));
        fs::create_dir_all(&home)?;
        fs::create_dir_all(&logs)?;
        let node = Arc::new(Bitcoind::start_with(options)?);
        let coordinator = Service::new(Installation {
            name: "coordinator",
            program: binaries::coordinator()?,
            config: "coordinator.toml",
            home: &home,
            logs: &logs,
        })?;
        coordinator.configure("network", "regtest")?;
        coordinator.configure("kdf", "light")?;
        coordinator.configure("listen", format!("127.0.0.1:{}", free_port()?))?;
        coordinator.configure("lightning_listen", format!("127.0.0.1:{}", free_port()?))?;
        coordinator.configure("chain.rpc_url", node.rpc_url())?;
        coordinator.configure("chain.rpc_cookie", path_text(&node.cookie_file())?)?;
        coordinator.configure("chain.poll_ms", POLL_MS)?;
        coordinator.configure("chain.fallback_feerate", 2)?;
        let made = coordinator.json(&["init"])?;
        let mut known = Known {
            coordinator: coordinator.name().to_owned(),
            ..Known::default()
        };
        known.wallets.extend(wallets::scripts(&coordinator)?);
        Ok(Self {
            connection: text(&made, "connection")?,
            plain: false,
            node,
            coordinator,
            clients: Vec::new(),
            watcher: Watcher::start()?,
            client_settings: Vec::new(),
            known,
            home,
            logs,
        })
    }

    /// What a wallet is given to reach the coordinator.
    pub fn connection(&self) -> &str {
        &self.connection
    }

    /// Gives wallets to come another connection string than `init` printed.
    pub fn use_connection(&mut self, connection: &str, plain: bool) {
        connection.clone_into(&mut self.connection);
        self.plain = plain;
    }

    /// Looks away from a wallet whose store is going to be damaged.
    pub fn stop_watching(&self, client: &Service) {
        self.watcher.forget(client.name());
    }

    /// Fails if there ever was a wallet without a complete exit for its balance; what it is not asked for it says in the end.
    pub fn exits_were_complete(&mut self) -> Result<Watch> {
        self.watcher.finish()
    }

    /// Where everybody's data directories are.
    pub fn home(&self) -> &Path {
        &self.home
    }

    // ---- wallets -----------------------------------------------------------------------------------------------

    /// Sets a key of the configuration of all wallets to come.
    pub fn configure_clients(&mut self, key: &str, value: impl Into<toml::Value>) {
        self.client_settings.push((key.to_owned(), value.into()));
    }

    /// A wallet that is initialised and does not run; it is not yet one of [`Self::clients`].
    pub fn new_client(&mut self, name: &str) -> Result<Service> {
        let client = Service::new(Installation {
            name,
            program: binaries::signer_client()?,
            config: "client.toml",
            home: &self.home,
            logs: &self.logs,
        })?;
        let cookie = path_text(&self.node.cookie_file())?;
        let url = self.node.rpc_url();
        let mut words = vec![
            "init",
            "--coordinator",
            &self.connection,
            "--network",
            "regtest",
            "--rpc-url",
            &url,
            "--rpc-cookie",
            &cookie,
        ];
        if self.plain {
            words.push("--allow-plain");
        }
        let made = client.json(&words)?;
        client.configure("chain.poll_ms", POLL_MS)?;
        client.configure("chain.fallback_sat_per_vb", 2)?;
        client.configure("connection.reconnect_min_ms", 50)?;
        client.configure("connection.reconnect_max_ms", 400)?;
        // The least that LDK takes: who closes waits no longer than it must.
        client.configure(
            "lightning.to_self_delay",
            i64::from(crate::mining::TO_SELF_DELAY),
        )?;
        for (key, value) in &self.client_settings {
            client.configure(key, value.clone())?;
        }
        self.known
            .clients
            .insert(text(&made, "node_id")?, name.to_owned());
        self.known.wallets.extend(wallets::scripts(&client)?);
        let store = client.data().join("client.sqlite");
        self.watcher.watch(client.name(), &store);
        Ok(client)
    }

    /// Adds wallets that run and are connected.
    pub fn add_clients(&mut self, count: usize) -> Result<()> {
        let first = self.clients.len();
        for _ in 0..count {
            self.add_client_with(&[])?;
        }
        let mut added = self.clients.iter().skip(first);
        added.try_for_each(|client| client.wait_for("connected").map(drop))
    }

    /// Adds wallets that run in one process, and are connected.
    pub fn add_crowd(&mut self, count: usize) -> Result<()> {
        let first = self.clients.len();
        let mut added = Vec::new();
        for index in first..first + count {
            added.push(self.new_client(&format!("client-{index}"))?);
        }
        Crowd::start(&format!("crowd-{first}"), &mut added, &self.logs)?;
        for client in &added {
            client.wait_for("connected")?;
        }
        self.clients.append(&mut added);
        Ok(())
    }

    /// Adds a wallet that runs with more in its environment: a fault point, a misbehaviour.
    pub fn add_client_with(&mut self, environment: &[(&str, &str)]) -> Result<usize> {
        let index = self.clients.len();
        let mut client = self.new_client(&format!("client-{index}"))?;
        client.start_with(environment)?;
        self.clients.push(client);
        Ok(index)
    }

    /// Mutable access to one of the wallets: to kill it, to start it again.
    pub fn client_mut(&mut self, index: usize) -> Result<&mut Service> {
        self.clients
            .get_mut(index)
            .with_context(|| format!("no client {index}"))
    }

    /// The id by which coordinator and exports know a wallet.
    pub fn id_of(&self, client: &Service) -> Result<&str> {
        let mut known = self.known.clients.iter();
        let found = known.find(|(_, name)| *name == client.name());
        found
            .map(|(id, _)| id.as_str())
            .context("not a client of this world")
    }

    // ---- money -------------------------------------------------------------------------------------------------

    /// Gives the coordinator confirmed coins, and waits until it knows.
    pub fn fund_coordinator(&mut self, amount: Amount) -> Result<()> {
        let script = address_of(&self.coordinator.json(&["wallet", "address"])?)?;
        self.known
            .gifts
            .insert(script.clone(), self.coordinator.name().to_owned());
        self.node.fund(&script, amount)?;
        self.coordinator_sees(self.node.height()?)
    }

    /// Gives running wallets a confirmed coin each, and waits until they know.
    pub fn fund_clients(&mut self, which: &[usize], amount: Amount) -> Result<()> {
        let mut outputs = Vec::new();
        for index in which {
            let client = self.client(*index)?;
            let script = address_of(&client.json(&["address"])?)?;
            self.known
                .gifts
                .insert(script.clone(), client.name().to_owned());
            outputs.push(bitcoin::TxOut {
                value: amount,
                script_pubkey: script,
            });
        }
        self.node.send_many(&outputs)?;
        self.mine(1)?;
        let height = self.node.height()?;
        which
            .iter()
            .try_for_each(|index| self.client_sees(*index, height))
    }

    /// One of the wallets.
    pub fn client(&self, index: usize) -> Result<&Service> {
        self.clients
            .get(index)
            .with_context(|| format!("no client {index}"))
    }

    /// Whose coins a script's are, for the balance sheet.
    pub fn know(&mut self, script: ScriptBuf, name: &str) {
        self.known.gifts.insert(script, name.to_owned());
    }

    /// The chain, told as who owns what.
    pub fn ledger(&self, factories: Vec<Export>) -> Result<Ledger> {
        Ledger::read(&self.node, self.known.clone(), factories)
    }

    // ---- blocks ------------------------------------------------------------------------------------------------

    /// Mines blocks with what is in the mempool.
    pub fn mine(&self, blocks: u32) -> Result<()> {
        self.node.mine(blocks).map(drop)
    }

    /// Waits until the coordinator has followed the chain to a height.
    pub fn coordinator_sees(&self, height: u32) -> Result<()> {
        let seen = |event: &Event| {
            let at = event.number("height").max(event.number("at_height"));
            at >= Some(height.into())
        };
        self.coordinator
            .wait(&format!("height {height}"), seen)
            .map(drop)
    }

    /// Waits until the coordinator has followed the chain to its tip.
    pub fn coordinator_sees_tip(&self) -> Result<()> {
        self.coordinator_sees(self.node.height()?)
    }

    /// Waits until a wallet has followed the chain to a height.
    pub fn client_sees(&self, index: usize, height: u32) -> Result<()> {
        let seen =
            |event: &Event| event.is("synced") && event.number("height") >= Some(height.into());
        self.client(index)?
            .wait(&format!("block {height}"), seen)
            .map(drop)
    }

    /// Waits until all wallets that run have followed the chain to a height.
    pub fn wallets_see(&self, height: u32) -> Result<()> {
        let mut running = self.clients.iter().filter(|client| client.runs());
        running.try_for_each(|client| client.follows(height))
    }

    // ---- factories ---------------------------------------------------------------------------------------------

    /// Lets these wallets ask for a place in the next factory, and waits until the coordinator knows.
    pub fn join(&self, which: &[usize]) -> Result<()> {
        for index in which {
            self.client(*index)?.json(&["join"])?;
        }
        self.interested(which)
    }

    /// Waits until this run of the coordinator knows that these wallets want a place.
    pub fn interested(&self, which: &[usize]) -> Result<()> {
        for index in which {
            let id = self.id_of(self.client(*index)?)?;
            let interested =
                |event: &Event| event.is("client_interested") && event.text("client") == id;
            self.coordinator
                .wait(&format!("interest of client {index}"), interested)?;
        }
        Ok(())
    }

    /// Asks for a factory of all who are interested, with the compressed calendar; gives the ceremony's id.
    pub fn begin(&self, more: &[&str]) -> Result<String> {
        let set: Vec<String> = COMPRESSED
            .iter()
            .map(|(name, value)| format!("{name}={value}"))
            .collect();
        let mut words = vec!["factory", "create"];
        for value in &set {
            words.extend(["--set", value]);
        }
        words.extend(more);
        text(&self.coordinator.json(&words)?, "ceremony")
    }

    /// Waits until the funding of the next factory after a mark is broadcast.
    pub fn funded_after(&self, mark: usize) -> Result<Created> {
        let event = self
            .coordinator
            .wait_after(mark, "a funding", |event| event.is("funding_broadcast"))?;
        Ok(Created {
            factory: event.text("factory").to_owned(),
            funding: event.text("txid").parse()?,
        })
    }

    /// Builds, funds and confirms a factory of all who are interested.
    pub fn create(&self, more: &[&str]) -> Result<Created> {
        let mark = self.coordinator.mark()?;
        self.begin(more)?;
        let created = self.funded_after(mark)?;
        self.confirm(&created)?;
        Ok(created)
    }

    /// Mines the funding of a factory, and waits until the coordinator uses it.
    pub fn confirm(&self, created: &Created) -> Result<()> {
        self.mine(1)?;
        self.coordinator.wait("a usable factory", |event| {
            event.is("factory_usable") && event.text("factory") == created.factory
        })?;
        Ok(())
    }

    /// Waits until these wallets use a factory.
    pub fn usable_for(&self, created: &Created, which: &[usize]) -> Result<()> {
        for index in which {
            self.client(*index)?.wait("a usable factory", |event| {
                event.is("factory_usable") && event.text("factory") == created.factory
            })?;
        }
        Ok(())
    }

    /// The coordinator's export of a factory.
    pub fn export(&self, created: &Created) -> Result<Export> {
        Export::parse(
            &self
                .coordinator
                .json(&["factory", "export", &created.factory])?,
        )
    }

    /// A wallet's export of its path.
    pub fn client_export(&self, index: usize, created: &Created) -> Result<Export> {
        Export::parse(&self.client(index)?.json(&["export", &created.factory])?)
    }

    /// The capacity of a wallet in a factory.
    pub fn capacity(&self, export: &Export, index: usize) -> Result<Amount> {
        let id = self.id_of(self.client(index)?)?;
        let mut members = export.clients();
        let member = members
            .find(|member| member.id == id)
            .context("not a member")?;
        Ok(Amount::from_sat(
            member.capacity_sat.context("a client has a capacity")?,
        ))
    }
}

/// A text field of an answer.
pub fn text(answer: &Value, field: &str) -> Result<String> {
    let found = answer[field].as_str().map(str::to_owned);
    found.with_context(|| format!("no {field} in {answer}"))
}

/// A number field of an answer.
pub fn number(answer: &Value, field: &str) -> Result<u64> {
    answer[field]
        .as_u64()
        .with_context(|| format!("no number {field} in {answer}"))
}

fn address_of(answer: &Value) -> Result<ScriptBuf> {
    let address = Address::<NetworkUnchecked>::from_str(&text(answer, "address")?)?;
    Ok(address.require_network(Network::Regtest)?.script_pubkey())
}

/// A path as configuration files have it.
pub fn path_text(path: &Path) -> Result<String> {
    let text = path
        .to_str()
        .context("a path of this machine is not text")?;
    ensure!(!text.is_empty(), "an empty path");
    Ok(text.to_owned())
}
