//! `init`: a new wallet, or one restored from its words.

use std::fs;
use std::io::Read;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use bitcoin::Network;
use chain::{BitcoindRpc, BlockId, ChainSource};
use keystore::{KdfCost, Seed, Words};
use serde_json::{Map, Value, json};
use zeroize::Zeroizing;

use super::CliError;
use super::args::Init;
use super::context::Context;
use crate::config::{Config, ConfigError};
use crate::error::Error;
use crate::keys::ClientKeys;
use crate::lock::DataDirLock;
use crate::store::Identity;

pub(super) async fn run(context: &Context, options: Init) -> Result<(), CliError> {
    let config = configuration(context, &options)?;
    if context.config_path().exists() {
        return Err(ConfigError::Exists {
            path: context.config_path(),
        }
        .into());
    }
    // Before anything is written: a wallet that cannot see the chain is of no use.
    let tip = tip(&config).await?;
    make_private(context)?;
    let _lock = DataDirLock::take_patiently(&context.dir, "init")?;
    let (keys, words) = seed(context, &options)?;
    let birthday = (!options.restore).then_some(tip);
    let identity = Identity {
        network: config.network,
        node_id: keys.node_id(),
        birthday,
    };
    context.store().await?.claim(&identity).await?;
    // Last: a directory with this file is complete.
    config.write_new(&context.config_path())?;
    report(context, &options, &keys, words.as_ref(), tip)
}

fn configuration(context: &Context, options: &Init) -> Result<Config, CliError> {
    let mut config = Config::new(options.network);
    if let Some(text) = &options.coordinator {
        let parsed: Result<proto::connection::Connection, _> = text.parse();
        let connection = parsed.map_err(|error| Error::Connection(error.to_string()))?;
        let plain = connection.security() == proto::connection::Security::Plain;
        if plain && !options.allow_plain {
            return Err(CliError::Usage(
                "this coordinator is to be reached without TLS; say --allow-plain if that is meant"
                    .to_owned(),
            ));
        }
        config.coordinator = Some(connection.to_string());
    }
    config.allow_plain = options.allow_plain;
    config.chain.rpc_url.clone_from(&options.rpc_url);
    // Whoever reads the file later stands somewhere else.
    config.passphrase_file = absolute(context.passphrase_file.as_deref())?;
    config.chain.rpc_cookie = absolute(options.rpc_cookie.as_deref())?;
    config.chain.rpc_user.clone_from(&options.rpc_user);
    config.chain.rpc_password_file = absolute(options.rpc_password_file.as_deref())?;
    Ok(config)
}

fn absolute(path: Option<&Path>) -> std::io::Result<Option<PathBuf>> {
    path.map(std::path::absolute).transpose()
}

async fn tip(config: &Config) -> Result<BlockId, CliError> {
    let node = BitcoindRpc::new(config.bitcoind()?)?;
    node.node_info().await?.require_ready(config.network)?;
    Ok(node.tip().await?)
}

fn make_private(context: &Context) -> Result<(), CliError> {
    fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(&context.dir)
        .map_err(|source| ConfigError::Io {
            action: "create",
            path: context.dir.clone(),
            source,
        })?;
    Ok(())
}

fn seed(context: &Context, options: &Init) -> Result<(ClientKeys, Option<Words>), CliError> {
    let path = context.seed_path();
    // Quick on regtest, where nothing is at stake and test runs start many wallets.
    let cost = if options.network == Network::Regtest && !options.slow_kdf {
        KdfCost::Light
    } else {
        KdfCost::Standard
    };
    let passphrase = context.passphrase(None, true)?;
    let (seed, words) = if options.restore {
        let mut text = Zeroizing::new(String::new());
        std::io::stdin().take(4096).read_to_string(&mut text)?;
        (Seed::restore(&path, &text, &passphrase, cost)?, None)
    } else {
        let (seed, words) = Seed::create(&path, &passphrase, cost)?;
        (seed, Some(words))
    };
    Ok((ClientKeys::new(&seed, options.network)?, words))
}

fn report(
    context: &Context,
    options: &Init,
    keys: &ClientKeys,
    words: Option<&Words>,
    tip: BlockId,
) -> Result<(), CliError> {
    let words = words.filter(|_| !options.no_words);
    let mut value = Map::new();
    value.insert("node_id".to_owned(), json!(keys.node_id()));
    value.insert("network".to_owned(), json!(options.network));
    value.insert("data_dir".to_owned(), json!(context.dir));
    value.insert("height".to_owned(), json!(tip.height));
    let mut text = format!(
        "Wallet {} on {} in {}\n",
        keys.node_id(),
        options.network,
        context.dir.display()
    );
    if let Some(words) = words {
        let shown = words.reveal();
        value.insert("words".to_owned(), json!(shown));
        text.push_str(
            "\nWrite these words down and keep them safe. They are the only backup of the seed, and are not shown again.\n\
             They do not bring back exit kits: keep copies of client.sqlite as well.\n\n",
        );
        for line in shown.split_whitespace().collect::<Vec<_>>().chunks(6) {
            text.push_str(&format!("  {}\n", line.join(" ")));
        }
        text.push('\n');
    }
    if options.restore {
        text.push_str(
            "Restored from words. Factories joined before are not known here: put back client.sqlite if there is a copy of it.\n",
        );
    }
    text.push_str(&format!("Next: {}", context.again("run")));
    context.print(&Value::Object(value), &text)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::args::{Args, Command};
    use clap::Parser;

    #[test]
    fn paths_are_kept_for_whoever_stands_elsewhere() {
        let args = Args::try_parse_from([
            "signer-client",
            "--data-dir",
            "w",
            "--passphrase-file",
            "pass",
            "init",
            "--network",
            "regtest",
            "--rpc-url",
            "http://127.0.0.1:1",
            "--rpc-cookie",
            "node/.cookie",
        ])
        .unwrap();
        let context = Context::new(&args).unwrap();
        let Command::Init(options) = args.command else {
            panic!("not init");
        };
        let config = configuration(&context, &options).unwrap();
        let here = std::env::current_dir().unwrap();
        assert_eq!(config.passphrase_file, Some(here.join("pass")));
        assert_eq!(config.chain.rpc_cookie, Some(here.join("node/.cookie")));
        assert_eq!(context.again("run"), "signer-client --data-dir w run");
    }
}
