//! What every command needs: the data directory, and what is in it.

use std::io::{IsTerminal, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use bitcoin::Network;
use chain::{BitcoindRpc, ChainSource};
use factory_tree::ids::FactoryId;
use keystore::{Passphrase, PassphraseError};
use serde::Serialize;
use tokio::sync::OnceCell;

use super::CliError;
use super::args::Args;
use crate::client::{ClientParts, SignerClient};
use crate::config::Config;
use crate::error::Error;
use crate::keys::ClientKeys;
use crate::lock::{self, DataDirLock, LockError, Occupant};
use crate::store::{Answer, Request, SharedStore, SqliteStore};

/// Digits of an id that name it, if they are not ambiguous: what cannot be taken back is not done by a slip.
const LEAST_ID: usize = 4;

const PASSPHRASE_VARIABLE: &str = "SUPERSCALAR_PASSPHRASE_FILE";
/// How long a running process may take to answer.
const PATIENCE: Duration = Duration::from_secs(30);
const LOOK: Duration = Duration::from_millis(50);
/// How long to wait for a command that has the data directory and answers nothing.
const TURN: Duration = Duration::from_secs(10);

/// The data directory and how to report.
#[derive(Debug)]
pub(super) struct Context {
    pub(super) dir: PathBuf,
    pub(super) json: bool,
    pub(super) passphrase_file: Option<PathBuf>,
    /// The directory as it was given.
    named_dir: Option<PathBuf>,
    /// Opened once, closed at the end.
    store: OnceCell<SharedStore>,
}

/// Who works on the data directory.
pub(super) enum Holder {
    /// Another process, which can be asked.
    Other(Occupant),
    /// This one, from now on.
    Us(DataDirLock),
}

impl Context {
    pub(super) fn new(args: &Args) -> Result<Self, CliError> {
        let dir = match (&args.data_dir, std::env::home_dir()) {
            (Some(dir), _) => dir.clone(),
            (None, Some(home)) => home.join(".superscalar").join("client"),
            (None, None) => {
                let hint = "there is no home directory; name one with --data-dir";
                return Err(CliError::Usage(hint.to_owned()));
            }
        };
        Ok(Self {
            dir,
            json: args.json,
            passphrase_file: args.passphrase_file.clone(),
            named_dir: args.data_dir.clone(),
            store: OnceCell::new(),
        })
    }

    pub(super) fn config_path(&self) -> PathBuf {
        self.dir.join("client.toml")
    }

    pub(super) fn seed_path(&self) -> PathBuf {
        self.dir.join("seed.json")
    }

    pub(super) fn store_path(&self) -> PathBuf {
        self.dir.join("client.sqlite")
    }

    pub(super) fn config(&self) -> Result<Config, CliError> {
        Ok(Config::load(&self.config_path())?)
    }

    pub(super) async fn store(&self) -> Result<SharedStore, CliError> {
        let open = || async {
            let store = SqliteStore::open(self.store_path()).await?;
            Ok::<SharedStore, CliError>(Arc::new(store))
        };
        self.store.get_or_try_init(open).await.cloned()
    }

    /// Writes out what is in the database's log.
    pub(super) async fn close(&self) {
        if let Some(store) = self.store.get() {
            store.close().await;
        }
    }

    /// Takes the data directory for a command, unless another process has it that can be asked. One
    /// that cannot is waited for, for a while.
    pub(super) async fn holder(&self, command: &'static str) -> Result<Holder, CliError> {
        let deadline = tokio::time::Instant::now() + TURN;
        loop {
            let by = match DataDirLock::take(&self.dir, command) {
                Ok(lock) => return Ok(Holder::Us(lock)),
                Err(LockError::Held { by, .. }) => by,
                Err(error) => return Err(error.into()),
            };
            match by {
                Some(by) if by.serves => return Ok(Holder::Other(by)),
                by if tokio::time::Instant::now() > deadline => return Err(busy(by.as_ref())),
                _ => tokio::time::sleep(LOOK).await,
            }
        }
    }

    /// Who has the data directory now and can be asked, or is waited for.
    pub(super) fn occupant(&self) -> Result<Option<Occupant>, CliError> {
        Ok(lock::holder(&self.dir)?.flatten())
    }

    /// Whether nobody has the data directory any more.
    pub(super) fn is_left(&self) -> Result<bool, CliError> {
        Ok(lock::holder(&self.dir)?.is_none())
    }

    /// How to call this wallet again, for hints.
    pub(super) fn again(&self, command: &str) -> String {
        match &self.named_dir {
            Some(dir) => format!("signer-client --data-dir {} {command}", dir.display()),
            None => format!("signer-client {command}"),
        }
    }

    /// From the flag, the environment, the configuration, or the terminal; in this order.
    pub(super) fn passphrase(
        &self,
        config: Option<&Config>,
        new: bool,
    ) -> Result<Passphrase, CliError> {
        if let Some(path) = &self.passphrase_file {
            return Ok(Passphrase::from_file(path)?);
        }
        if std::env::var_os(PASSPHRASE_VARIABLE).is_some_and(|path| !path.is_empty()) {
            return Ok(Passphrase::from_env_file(PASSPHRASE_VARIABLE)?);
        }
        if let Some(path) = config.and_then(|config| config.passphrase_file.as_ref()) {
            return Ok(Passphrase::from_file(path)?);
        }
        let asked = if new {
            Passphrase::prompt_new("New passphrase: ")
        } else {
            Passphrase::prompt("Passphrase: ")
        };
        match asked {
            Err(PassphraseError::NoTerminal { .. }) => Err(CliError::NoTerminal),
            asked => Ok(asked?),
        }
    }

    /// The wallet as an object; the caller holds the data directory.
    pub(super) async fn client(&self, config: Config) -> Result<SignerClient, CliError> {
        let passphrase = self.passphrase(Some(&config), false)?;
        let (path, network) = (self.seed_path(), config.network);
        let keys = tokio::task::spawn_blocking(move || {
            let seed = keystore::Seed::open(&path, &passphrase)?;
            refuse_weak(&path, &seed, network)?;
            Ok::<_, CliError>(ClientKeys::new(&seed, network)?)
        })
        .await
        .map_err(|error| Error::Task(error.to_string()))??;
        let chain: Arc<dyn ChainSource> = Arc::new(BitcoindRpc::new(config.bitcoind()?)?);
        let store = self.store().await?;
        let parts = ClientParts {
            config,
            keys: Arc::new(keys),
            store,
            chain,
            channels: self.dir.join("channels.sqlite"),
        };
        Ok(SignerClient::open(parts).await?)
    }

    /// Asks the running process.
    pub(super) async fn ask(
        &self,
        store: &SharedStore,
        request: Request,
    ) -> Result<serde_json::Value, CliError> {
        let id = store.ask(&request).await?;
        let answered = tokio::time::timeout(PATIENCE, async {
            loop {
                if let Some(answer) = store.take_answer(id).await? {
                    return Ok::<_, CliError>(answer);
                }
                if self.is_left()? {
                    store.withdraw(id).await?;
                    let text = "the signer-client that ran here has ended; try again";
                    return Err(CliError::Busy(text.to_owned()));
                }
                tokio::time::sleep(LOOK).await;
            }
        });
        match answered.await {
            Ok(Ok(Answer::Done(value))) => Ok(value),
            Ok(Ok(Answer::Failed { why, exit_code })) => {
                Err(Error::Answered { why, exit_code }.into())
            }
            Ok(Err(error)) => Err(error),
            Err(_) => {
                store.withdraw(id).await?;
                Err(CliError::Busy(format!(
                    "the running signer-client did not answer within {} s",
                    PATIENCE.as_secs()
                )))
            }
        }
    }

    /// Finds a factory by its id or an unambiguous beginning of it.
    pub(super) async fn factory(
        &self,
        store: &SharedStore,
        text: &str,
    ) -> Result<FactoryId, CliError> {
        if let Ok(id) = text.parse() {
            return Ok(id);
        }
        let rows = store.factories().await?;
        let ids = rows.iter().map(|row| row.factory);
        unambiguous(text, ids, "factory", "factories")
    }

    /// Prints a result: as JSON, or as this text.
    pub(super) fn print(&self, value: &impl Serialize, text: &str) -> Result<(), CliError> {
        let mut out = std::io::stdout().lock();
        if self.json {
            let json = serde_json::to_string_pretty(value).map_err(std::io::Error::other)?;
            writeln!(out, "{json}")?;
        } else {
            writeln!(out, "{}", text.trim_end())?;
        }
        Ok(())
    }

    /// Whether a person can be asked something.
    pub(super) fn interactive(&self) -> bool {
        std::io::stdin().is_terminal() && std::io::stderr().is_terminal()
    }
}

/// The one of these ids that begins with `text`; `list` is the command that lists them.
pub(super) fn unambiguous<T: ToString>(
    text: &str,
    ids: impl Iterator<Item = T>,
    what: &str,
    list: &str,
) -> Result<T, CliError> {
    let wanted = text.to_ascii_lowercase();
    if wanted.len() < LEAST_ID {
        return Err(CliError::Usage(format!(
            "{text:?} is too short for a {what}'s id; write at least {LEAST_ID} digits of it"
        )));
    }
    let mut found = ids.filter(|id| id.to_string().starts_with(&wanted));
    match (found.next(), found.next()) {
        (Some(id), None) => Ok(id),
        (None, _) => Err(CliError::Refused(format!(
            "no {what}'s id begins with {text:?}; `{list}` lists those this wallet holds"
        ))),
        (Some(_), Some(_)) => Err(CliError::Usage(format!(
            "more than one {what}'s id begins with {text:?}; write more of it"
        ))),
    }
}

fn busy(by: Option<&Occupant>) -> CliError {
    CliError::Busy(match by {
        Some(by) => format!(
            "a {} is running in this wallet (pid {}); wait for it or stop it",
            by.command, by.pid
        ),
        None => {
            "another signer-client is running in this wallet; wait for it or stop it".to_owned()
        }
    })
}

/// A quick seed file is for tests: it must never guard real money.
fn refuse_weak(path: &Path, seed: &keystore::Seed, network: Network) -> Result<(), CliError> {
    if network == Network::Bitcoin && seed.kdf_cost() == keystore::KdfCost::Light {
        return Err(CliError::Refused(format!(
            "{} was made for test networks: its passphrase is quick to guess; make a new wallet for mainnet",
            path.display()
        )));
    }
    Ok(())
}
