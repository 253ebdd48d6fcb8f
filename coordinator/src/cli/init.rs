//! `init`: seed, certificate, configuration.

use anyhow::Context as _;
use keystore::{KdfCost, Passphrase, Seed};
use proto::NodeId;
use serde_json::json;

use super::Failure;
use super::args::{Args, InitArgs};
use crate::app;
use crate::config::{Config, Kdf};
use crate::datadir::{DataDir, DataDirError};

/// Names a file with the passphrase, where the configuration names none.
pub const PASSPHRASE_VARIABLE: &str = "SUPERSCALAR_PASSPHRASE_FILE";

pub fn init(args: &Args, init: &InitArgs) -> Result<(), Failure> {
    let data = DataDir::new(args.data_dir.clone())?;
    data.create()?;
    let _lock = data.lock()?;
    if data.seed().exists() {
        return Err(DataDirError::Initialised {
            path: data.path().to_owned(),
        }
        .into());
    }
    let overrides = init.config.overrides();
    let config = Config::load(data.path(), args.config.as_deref(), &overrides)?;
    let passphrase = new_passphrase(&config)?;
    if args.config.is_none() && !data.config().exists() {
        let text = toml::to_string(&overrides).context("the configuration cannot be written")?;
        let head = "# Written by `coordinator init`. Every key is documented in coordinator.default.toml.\n";
        data.write_new(&data.config(), format!("{head}{text}").as_bytes())?;
    }
    let cost = match config.kdf {
        Kdf::Standard => KdfCost::Standard,
        Kdf::Light => KdfCost::Light,
    };
    let identity = app::identity(&config, &data)?;
    let (seed, words) = Seed::create(data.seed(), &passphrase, cost)?;
    let node_id = NodeId::of(&seed.keys(config.network)?.node_key());
    // Behind port 0 or an unspecified address there is nothing to tell yet.
    let connection = app::connection(&config, config.listen, node_id, identity.as_ref()).ok();
    let connection = connection.map(|connection| connection.to_string());
    if !init.no_words {
        // To the terminal, not into the pipe the JSON goes to.
        eprintln!(
            "The 24 words of the seed. They are shown this once, and are the only backup of the wallet:\n"
        );
        eprintln!("  {}\n", words.reveal());
    }
    if args.json {
        println!(
            "{}",
            json!({ "node_id": node_id.to_string(), "connection": connection })
        );
    } else {
        println!("node id     {node_id}");
        if let Some(connection) = connection {
            println!("connection  {connection}");
        }
        println!("data        {}", data.path().display());
        println!(
            "start it with: coordinator --data-dir {} run",
            data.path().display()
        );
    }
    Ok(())
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
