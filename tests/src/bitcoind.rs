//! A real Bitcoin node on regtest, of one test's own.

mod miner;
mod template;

use std::fs;
use std::net::{SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail, ensure};
use bitcoin::consensus::encode::serialize_hex;
use bitcoin::{Address, Amount, BlockHash, OutPoint, Script, Transaction, TxOut, Txid};
use bitcoincore_rpc::jsonrpc::{self, simple_http::SimpleHttpTransport};
use bitcoincore_rpc::{Client, RpcApi};
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

use crate::watchdog::Watchdog;
use miner::Miner;

/// How long a node may take to start or to stop before the test fails.
const PATIENCE: Duration = Duration::from_secs(60);

/// Blocks per call when mining many.
const CHUNK: u32 = 250;

/// What a test may want to be different.
#[derive(Clone, Debug, Default)]
pub struct Options {
    /// Listen for other nodes, on loopback.
    pub p2p: bool,
    /// More arguments for bitcoind.
    pub arguments: Vec<String>,
}

/// A running bitcoind on regtest with a data directory and ports of its own; ends with its owner.
///
/// Starts 111 blocks high: a pre-mined chain is copied in, and one fresh block ends the initial block download.
#[derive(Debug)]
pub struct Bitcoind {
    directory: tempfile::TempDir,
    options: Mutex<Options>,
    ports: Ports,
    process: Mutex<Option<Process>>,
    miner: Mutex<Miner>,
    branches: AtomicU32,
}

#[derive(Clone, Copy, Debug)]
struct Ports {
    rpc: u16,
    p2p: u16,
}

#[derive(Debug)]
struct Process {
    child: Child,
    client: Client,
    _watchdog: Watchdog,
}

impl Drop for Process {
    fn drop(&mut self) {
        // Both fail only if the process is gone already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Bitcoind {
    /// Starts a node.
    pub fn start() -> Result<Self> {
        Self::start_with(Options::default())
    }

    /// Starts a node that is not quite like the others.
    pub fn start_with(options: Options) -> Result<Self> {
        let template = template::directory()?;
        let directory = tempfile::Builder::new().prefix("bitcoind-").tempdir()?;
        template::copy(&template, directory.path())?;
        let node = Self::launch(directory, options)?;
        node.mine(1)?;
        Ok(node)
    }

    /// Another process may take a free port before bitcoind does: then others are tried.
    fn launch(directory: tempfile::TempDir, options: Options) -> Result<Self> {
        let mut refused = anyhow!("never started");
        for _ in 0..5 {
            let ports = Ports {
                rpc: free_port()?,
                p2p: free_port()?,
            };
            match spawn(directory.path(), &options, ports) {
                Ok(process) => {
                    let (process, miner) = (Mutex::new(Some(process)), Mutex::default());
                    return Ok(Self {
                        directory,
                        options: Mutex::new(options),
                        ports,
                        process,
                        miner,
                        branches: AtomicU32::new(0),
                    });
                }
                Err(error) => refused = error,
            }
        }
        Err(refused)
    }

    /// Address of the RPC server.
    pub fn rpc_url(&self) -> String {
        format!("http://127.0.0.1:{}", self.ports.rpc)
    }

    /// The RPC cookie; another one after each start.
    pub fn cookie_file(&self) -> PathBuf {
        self.directory.path().join("regtest/.cookie")
    }

    /// Where it listens for other nodes, if it does.
    pub fn p2p_address(&self) -> Option<SocketAddr> {
        self.options()
            .p2p
            .then(|| SocketAddr::from(([127, 0, 0, 1], self.ports.p2p)))
    }

    /// The data directory.
    pub fn directory(&self) -> &Path {
        self.directory.path()
    }

    /// Calls the node; `params` is the list of arguments.
    pub fn rpc(&self, method: &str, params: Value) -> Result<Value> {
        let params = params.as_array().context("arguments come as a list")?;
        let process = self
            .process
            .lock()
            .map_err(|_| anyhow!("a test thread panicked"))?;
        let client = &process.as_ref().context("the node is stopped")?.client;
        client
            .call(method, params)
            .with_context(|| format!("{method} failed"))
    }

    fn typed<T: DeserializeOwned>(&self, method: &str, params: Value) -> Result<T> {
        Ok(serde_json::from_value(self.rpc(method, params)?)?)
    }

    // ---- blocks ------------------------------------------------------------------------------------------------

    /// Height of the best block.
    pub fn height(&self) -> Result<u32> {
        self.typed("getblockcount", json!([]))
    }

    /// Hash of the best block.
    pub fn tip(&self) -> Result<BlockHash> {
        self.typed("getbestblockhash", json!([]))
    }

    /// Hash of the active chain's block at a height.
    pub fn block_hash(&self, height: u32) -> Result<BlockHash> {
        self.typed("getblockhash", json!([height]))
    }

    /// Mines blocks with what is in the mempool; nobody gets the rewards.
    pub fn mine(&self, blocks: u32) -> Result<Vec<BlockHash>> {
        self.mine_to(&self.nobody(), blocks)
    }

    /// Another address each time: with the same one, a block mined instead of an invalidated one could be the very same block.
    fn nobody(&self) -> Address {
        let number = self.branches.fetch_add(1, Ordering::Relaxed);
        miner::nobody(self.ports.rpc, number)
    }

    /// Mines blocks with what is in the mempool; the rewards go to an address.
    pub fn mine_to(&self, address: &Address, blocks: u32) -> Result<Vec<BlockHash>> {
        let mut hashes = Vec::new();
        let mut left = blocks;
        while left > 0 {
            let now = left.min(CHUNK);
            hashes.extend(
                self.typed::<Vec<BlockHash>>(
                    "generatetoaddress",
                    json!([now, address.to_string()]),
                )?,
            );
            left -= now;
        }
        Ok(hashes)
    }

    /// Mines until the chain has this height; does nothing if it has.
    pub fn mine_until(&self, height: u32) -> Result<()> {
        self.mine(height.saturating_sub(self.height()?)).map(drop)
    }

    /// Mines blocks that leave the mempool alone.
    pub fn mine_empty(&self, blocks: u32) -> Result<Vec<BlockHash>> {
        (0..blocks).map(|_| self.generate_block(&[])).collect()
    }

    /// Mines one block with exactly these transactions, which need not be in the mempool.
    pub fn mine_with(&self, transactions: &[Transaction]) -> Result<BlockHash> {
        self.generate_block(&transactions.iter().map(serialize_hex).collect::<Vec<_>>())
    }

    /// Mines one block with exactly these transactions of the mempool.
    pub fn mine_from_mempool(&self, txids: &[Txid]) -> Result<BlockHash> {
        self.generate_block(&txids.iter().map(Txid::to_string).collect::<Vec<_>>())
    }

    fn generate_block(&self, transactions: &[String]) -> Result<BlockHash> {
        let block = self.rpc(
            "generateblock",
            json!([self.nobody().to_string(), transactions]),
        )?;
        Ok(serde_json::from_value(block["hash"].clone())?)
    }

    /// Takes a block and everything above it out of the chain.
    pub fn invalidate(&self, block: BlockHash) -> Result<()> {
        self.rpc("invalidateblock", json!([block])).map(drop)
    }

    /// Lets an invalidated block back in.
    pub fn reconsider(&self, block: BlockHash) -> Result<()> {
        self.rpc("reconsiderblock", json!([block])).map(drop)
    }

    /// Replaces the newest `depth` blocks by `blocks` others, all empty. What they confirmed goes back to the mempool, where it may.
    pub fn reorg(&self, depth: u32, blocks: u32) -> Result<Vec<BlockHash>> {
        let lowest = self
            .height()?
            .checked_sub(depth)
            .context("deeper than the chain is high")?
            + 1;
        self.invalidate(self.block_hash(lowest)?)?;
        self.mine_empty(blocks)
    }

    // ---- coins -------------------------------------------------------------------------------------------------

    /// Pays to a script from the harness's own coins. Unconfirmed until the next block.
    pub fn send_to(&self, script: &Script, amount: Amount) -> Result<OutPoint> {
        let output = TxOut {
            value: amount,
            script_pubkey: script.to_owned(),
        };
        self.send_many(&[output])?
            .pop()
            .context("one output makes one outpoint")
    }

    /// Pays to many scripts in one transaction. Unconfirmed until the next block.
    pub fn send_many(&self, outputs: &[TxOut]) -> Result<Vec<OutPoint>> {
        let mut miner = self
            .miner
            .lock()
            .map_err(|_| anyhow!("a test thread panicked"))?;
        miner.send(self, outputs)
    }

    /// Pays to a script and confirms it in one block.
    pub fn fund(&self, script: &Script, amount: Amount) -> Result<OutPoint> {
        let outpoint = self.send_to(script, amount)?;
        self.mine(1)?;
        Ok(outpoint)
    }

    /// Confirmed coins of a script, with the height of each.
    pub fn coins_of(&self, script: &Script) -> Result<Vec<ScriptCoin>> {
        let found = self.rpc(
            "scantxoutset",
            json!(["start", [format!("raw({})", script.to_hex_string())]]),
        )?;
        let unspents = found["unspents"].as_array().context("no list of coins")?;
        unspents
            .iter()
            .map(|coin| ScriptCoin::parse(coin).with_context(|| format!("not a coin: {coin}")))
            .collect()
    }

    /// Confirmed balance of a script.
    pub fn balance_of(&self, script: &Script) -> Result<Amount> {
        Ok(self.coins_of(script)?.iter().map(|coin| coin.value).sum())
    }

    /// Transactions of the mempool.
    pub fn mempool(&self) -> Result<Vec<Txid>> {
        self.typed("getrawmempool", json!([]))
    }

    // ---- the process -------------------------------------------------------------------------------------------

    /// Stops the node in an orderly way; its data stays.
    pub fn stop(&self) -> Result<()> {
        self.rpc("stop", json!([]))?;
        let mut process = self
            .process
            .lock()
            .map_err(|_| anyhow!("a test thread panicked"))?;
        if let Some(mut process) = process.take() {
            let deadline = Instant::now() + PATIENCE;
            while process.child.try_wait()?.is_none() {
                ensure!(
                    Instant::now() < deadline,
                    "bitcoind did not stop within {PATIENCE:?}"
                );
                std::thread::sleep(Duration::from_millis(10));
            }
        }
        Ok(())
    }

    /// Ends the node at once, as a power cut does.
    pub fn kill(&self) -> Result<()> {
        let process = self
            .process
            .lock()
            .map_err(|_| anyhow!("a test thread panicked"))?
            .take();
        process.map(drop).context("the node is stopped already")
    }

    /// Starts a stopped or killed node again, on the same ports and data.
    pub fn start_again(&self) -> Result<()> {
        let mut process = self
            .process
            .lock()
            .map_err(|_| anyhow!("a test thread panicked"))?;
        ensure!(process.is_none(), "the node is running");
        *process = Some(spawn(self.directory.path(), &self.options(), self.ports)?);
        Ok(())
    }

    fn options(&self) -> Options {
        let options = self.options.lock().unwrap_or_else(PoisonError::into_inner);
        options.clone()
    }

    /// Stops and starts again: a node forgets zero-fee packages then.
    pub fn restart(&self) -> Result<()> {
        self.stop()?;
        self.start_again()
    }

    /// Stops and starts again as another kind of node: with other relay rules, for example.
    pub fn restart_with(&self, options: Options) -> Result<()> {
        self.stop()?;
        *self.options.lock().unwrap_or_else(PoisonError::into_inner) = options;
        self.start_again()
    }
}

/// A confirmed coin of a script.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ScriptCoin {
    /// Where it is.
    pub outpoint: OutPoint,
    /// How much it is.
    pub value: Amount,
    /// Height of its block.
    pub height: u32,
    /// Whether it is a block reward.
    pub coinbase: bool,
}

impl ScriptCoin {
    fn parse(coin: &Value) -> Option<Self> {
        Some(Self {
            outpoint: OutPoint {
                txid: coin["txid"].as_str()?.parse().ok()?,
                vout: u32::try_from(coin["vout"].as_u64()?).ok()?,
            },
            value: Amount::from_btc(coin["amount"].as_f64()?).ok()?,
            height: u32::try_from(coin["height"].as_u64()?).ok()?,
            coinbase: coin["coinbase"].as_bool()?,
        })
    }
}

/// The bitcoind to run: the caller's, or the one that `bin/setup` finds or builds.
pub fn executable() -> Result<PathBuf> {
    if let Some(path) = std::env::var_os("BITCOIND_EXE") {
        return Ok(path.into());
    }
    let setup = Path::new(env!("CARGO_MANIFEST_DIR")).join("../bin/setup");
    let output = Command::new(&setup)
        .arg("--print-bitcoind")
        .stderr(Stdio::inherit())
        .output();
    let output = output.with_context(|| format!("cannot run {}", setup.display()))?;
    ensure!(output.status.success(), "bin/setup found no bitcoind");
    Ok(String::from_utf8(output.stdout)?.trim_end().into())
}

/// A port of 127.0.0.1 that is free at this moment.
pub fn free_port() -> Result<u16> {
    Ok(TcpListener::bind(("127.0.0.1", 0))?.local_addr()?.port())
}

fn spawn(directory: &Path, options: &Options, ports: Ports) -> Result<Process> {
    let cookie = directory.join("regtest/.cookie");
    // One left by a killed node would be taken for the new one's.
    let _ = fs::remove_file(&cookie);
    let mut command = Command::new(executable()?);
    command.arg(format!("-datadir={}", directory.display()));
    command.args([
        "-regtest",
        "-server",
        "-printtoconsole=0",
        "-rpcbind=127.0.0.1",
        "-rpcallowip=127.0.0.1",
    ]);
    command.arg(format!("-rpcport={}", ports.rpc));
    // Real relay rules; none of regtest's own consistency checks, which make long chains slow.
    command.args([
        "-acceptnonstdtxn=0",
        "-checkmempool=0",
        "-checkblockindex=0",
        "-par=1",
        "-rpcthreads=8",
        "-rpcworkqueue=512",
    ]);
    command.args(["-dnsseed=0", "-fixedseeds=0", "-discover=0", "-natpmp=0"]);
    if options.p2p {
        command.arg(format!("-bind=127.0.0.1:{}", ports.p2p));
    } else {
        command.arg("-listen=0");
    }
    command
        .args(&options.arguments)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null());
    let mut child = command.spawn().context("cannot start bitcoind")?;
    let watchdog = Watchdog::of(&child)?;
    match connect(&mut child, &cookie, ports.rpc) {
        Ok(client) => Ok(Process {
            child,
            client,
            _watchdog: watchdog,
        }),
        Err(error) => {
            let _ = child.kill();
            let _ = child.wait();
            let log = fs::read_to_string(directory.join("regtest/debug.log")).unwrap_or_default();
            let tail: Vec<&str> = log.lines().rev().take(10).collect();
            Err(error.context(format!(
                "bitcoind did not start; newest lines of its log first:\n{}",
                tail.join("\n")
            )))
        }
    }
}

/// Waits until the node answers, and returns a connection.
fn connect(child: &mut Child, cookie: &Path, port: u16) -> Result<Client> {
    let deadline = Instant::now() + PATIENCE;
    while Instant::now() < deadline {
        if let Some(status) = child.try_wait()? {
            bail!("it ended at once: {status}");
        }
        if let Ok(cookie) = fs::read_to_string(cookie) {
            let transport = SimpleHttpTransport::builder()
                .url(&format!("127.0.0.1:{port}"))?
                .timeout(PATIENCE * 5);
            let client = Client::from_jsonrpc(jsonrpc::Client::with_transport(
                transport.cookie_auth(cookie).build(),
            ));
            if client.call::<Value>("getblockcount", &[]).is_ok() {
                return Ok(client);
            }
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    bail!("no answer within {PATIENCE:?}")
}
