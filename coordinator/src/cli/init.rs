//! `init`: seed, certificate, configuration.

use std::io::{IsTerminal, Read};
use std::path::Path;

use anyhow::{Context as _, anyhow};
use chain::{BitcoindRpc, ChainSource as _};
use keystore::{KdfCost, Passphrase, Seed, Words};
use proto::NodeId;
use serde_json::{Map, Value, json};
use zeroize::Zeroizing;

use super::args::{Args, InitArgs, NETWORKS};
use super::{Exit, Failure, in_words, outln};
use crate::app;
use crate::config::{Config, Kdf, Overrides};
use crate::config_file;
use crate::datadir::{DataDir, DataDirError};
use crate::keys::NodeKeys;

/// Names a file with the passphrase, where the configuration names none.
pub const PASSPHRASE_VARIABLE: &str = "SUPERSCALAR_PASSPHRASE_FILE";
/// More than 24 words ever take.
const LONGEST_WORDS: u64 = 4096;

pub fn init(args: &Args, init: &InitArgs) -> Result<(), Failure> {
    let data = DataDir::new(args.data_dir.clone())?;
    let config = configuration(args, init, &data)?;
    data.create()?;
    let lock = data.lock()?;
    refuse_second(&data)?;
    let words = init.restore.as_deref().map(read_words).transpose()?;
    let passphrase = new_passphrase(&config)?;
    let written = write_configuration(args, init, &config, &data)?;
    let cost = match config.kdf {
        Kdf::Standard => KdfCost::Standard,
        Kdf::Light => KdfCost::Light,
    };
    let identity = app::identity(&config, &data)?;
    let created = match words {
        Some(words) => {
            Seed::restore(data.seed(), &words, &passphrase, cost).map(|seed| (seed, None))
        }
        None => {
            Seed::create(data.seed(), &passphrase, cost).map(|(seed, words)| (seed, Some(words)))
        }
    };
    if created.is_err() && written {
        // The next try may choose otherwise.
        let _ = std::fs::remove_file(data.config());
    }
    let (seed, new_words) = created?;
    let node_id = NodeKeys::new(&seed, config.network)?.node_id();
    // Behind port 0 or an unspecified address there is nothing to tell yet.
    let connection = app::connection(&config, config.listen, node_id, identity.as_ref()).ok();
    let made = Made {
        node_id,
        connection: connection.map(|connection| connection.to_string()),
        words: new_words.filter(|_| !init.no_words),
        restored: init.restore.is_some(),
    };
    report(args, &config, &data, &made);
    // Whoever runs it need not wait for the node's answer.
    drop(lock);
    warn_of_node(args, &config, &data)
}

/// The node may come later, so this is no failure.
fn warn_of_node(args: &Args, config: &Config, data: &DataDir) -> Result<(), Failure> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    if let Err(error) = runtime.block_on(ask_node(config)) {
        let text = in_words(&error);
        eprintln!(
            "coordinator: the Bitcoin node is not of use yet: {text}\nIf it is named wrongly, correct it under [chain] in {}, before `{} run`.",
            config_path(args, data).display(),
            args.program()
        );
    }
    Ok(())
}

async fn ask_node(config: &Config) -> anyhow::Result<()> {
    let node = BitcoindRpc::new(config.bitcoind()?)?;
    Ok(node.node_info().await?.require_ready(config.network)?)
}

/// What is to be, checked before anything is written: `run` needs a network and a node.
fn configuration(args: &Args, init: &InitArgs, data: &DataDir) -> Result<Config, Failure> {
    refuse_second(data)?;
    let overrides = init.overrides();
    let file = args.config.as_deref();
    if !Config::names_network(data.path(), file, &overrides)? {
        let text = format!("which network? Say --network: {NETWORKS}");
        return Err(Failure::new(Exit::Usage, anyhow!(text)));
    }
    let config = Config::load(data.path(), file, &overrides)?;
    config.bitcoind()?;
    let written = file.map_or_else(|| data.config(), Path::to_owned);
    if init.restore.is_some() && written.exists() {
        // This file is not ours to change.
        let kept = Config::load(data.path(), file, &Overrides::default())?;
        if kept.chain.scan_from_height.is_none() {
            let text = format!(
                "{} must say from which height on to look for the wallet's coins: add scan_from_height = 0 under [chain]",
                written.display()
            );
            return Err(Failure::new(Exit::Usage, anyhow!(text)));
        }
    }
    Ok(config)
}

/// Writes the configuration, unless there is one, which is kept as it is.
fn write_configuration(
    args: &Args,
    init: &InitArgs,
    config: &Config,
    data: &DataDir,
) -> Result<bool, Failure> {
    let mut chosen = init.overrides();
    let kept = config_path(args, data);
    if kept.exists() {
        if chosen != Overrides::default() {
            eprintln!(
                "coordinator: {} is there already and is kept; flags given now are not written into it",
                kept.display()
            );
        }
        return Ok(false);
    }
    // It may come from the environment, which the next command need not have.
    chosen.network = Some(config.network);
    let text = config_file::render(&chosen).context("the configuration cannot be written")?;
    data.write_new(&data.config(), text.as_bytes())?;
    Ok(true)
}

fn refuse_second(data: &DataDir) -> Result<(), DataDirError> {
    if data.seed().exists() {
        return Err(DataDirError::Initialised {
            path: data.path().to_owned(),
        });
    }
    Ok(())
}

fn read_words(path: &Path) -> Result<Zeroizing<String>, Failure> {
    let mut words = Zeroizing::new(String::new());
    if path == Path::new("-") {
        let stdin = std::io::stdin();
        if stdin.is_terminal() {
            eprintln!("The 24 words of the seed, then Ctrl-D:");
        }
        let read = stdin.take(LONGEST_WORDS).read_to_string(&mut words);
        read.context("cannot read the words from standard input")?;
    } else {
        let read = std::fs::File::open(path)
            .and_then(|file| file.take(LONGEST_WORDS).read_to_string(&mut words));
        read.with_context(|| format!("cannot read the words from {}", path.display()))?;
    }
    Ok(words)
}

/// What there is now.
struct Made {
    node_id: NodeId,
    connection: Option<String>,
    words: Option<Words>,
    restored: bool,
}

fn report(args: &Args, config: &Config, data: &DataDir, made: &Made) {
    let words = made.words.as_ref().map(Words::reveal);
    if args.json {
        let mut value = Map::new();
        let mut put = |name: &str, field: Value| value.insert(name.to_owned(), field);
        put("node_id", json!(made.node_id.to_string()));
        put("connection", json!(made.connection));
        put("network", json!(config.network));
        put("data_dir", json!(data.path()));
        put("config", json!(config_path(args, data)));
        if let Some(words) = words {
            put("words", json!(words));
        }
        outln!("{}", Value::Object(value));
        return;
    }
    if let Some(words) = words {
        outln!(
            "The 24 words of the seed. They are shown this once, and are the only backup of the wallet:\n"
        );
        for line in words.split_whitespace().collect::<Vec<_>>().chunks(6) {
            outln!("  {}", line.join(" "));
        }
        outln!("");
    }
    outln!("network     {}", config.network);
    outln!("node id     {}", made.node_id);
    if let Some(connection) = &made.connection {
        outln!("connection  {connection}");
    }
    outln!("data        {}", data.path().display());
    outln!("config      {}", config_path(args, data).display());
    if made.restored {
        outln!(
            "\nRestored from words: the wallet's coins are found when it runs. Factories are not in the words: put back a\n\
             copy of coordinator.sqlite if there is one."
        );
    }
    outln!("\nNext: {} run", args.program());
}

fn config_path(args: &Args, data: &DataDir) -> std::path::PathBuf {
    args.config.clone().unwrap_or_else(|| data.config())
}

fn new_passphrase(config: &Config) -> Result<Passphrase, Failure> {
    match (
        &config.passphrase_file,
        std::env::var_os(PASSPHRASE_VARIABLE),
    ) {
        (Some(path), _) => Ok(Passphrase::from_file(path)?),
        (None, Some(_)) => Ok(Passphrase::from_env_file(PASSPHRASE_VARIABLE)?),
        (None, None) => Ok(Passphrase::prompt_new("Passphrase for the new seed: ")?),
    }
}

/// The passphrase of the seed that is there.
pub fn passphrase(config: &Config) -> Result<Passphrase, Failure> {
    match (
        &config.passphrase_file,
        std::env::var_os(PASSPHRASE_VARIABLE),
    ) {
        (Some(path), _) => Ok(Passphrase::from_file(path)?),
        (None, Some(_)) => Ok(Passphrase::from_env_file(PASSPHRASE_VARIABLE)?),
        (None, None) => Ok(Passphrase::prompt("Passphrase of the seed: ")?),
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;
    use crate::cli::args::Command;

    #[tokio::test]
    async fn a_node_that_cannot_be_asked_is_told_of() {
        let mut config = Config::defaults().unwrap();
        config.chain.rpc_cookie = Some("nowhere/.cookie".into());
        let text = in_words(&ask_node(&config).await.unwrap_err());
        assert!(text.contains("nowhere/.cookie"), "{text}");
    }

    #[test]
    fn a_coordinator_is_made_though_its_node_is_still_to_come() {
        let dir = tempfile::tempdir().unwrap();
        let [data, pass, cookie] = ["lsp", "pass", ".cookie"].map(|name| dir.path().join(name));
        std::fs::write(&pass, "correct horse").unwrap();
        DataDir::restrict(&pass).unwrap();
        let words = format!(
            "coordinator init --network=regtest --light-kdf --data-dir={} --passphrase-file={} --rpc-cookie={}",
            data.display(),
            pass.display(),
            cookie.display()
        );
        let args = Args::try_parse_from(words.split(' ')).unwrap();
        let Command::Init(ref asked) = args.command else {
            panic!("not init");
        };
        init(&args, asked).unwrap();
        assert!(data.join("seed.json").exists());
    }
}
