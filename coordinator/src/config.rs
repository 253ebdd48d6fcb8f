//! The configuration: the shipped defaults, a file, the environment, flags; the later win.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use bitcoin::{Amount, FeeRate, Network};
use factory_tree::ceremony::coordinator::fee_for;
use factory_tree::ladder::{LadderError, LadderParams};
use factory_tree::params::{ExpiryPolicy, FactoryParams, Profile};
use figment::Figment;
use figment::providers::{Env, Format, Serialized, Toml};
use serde::{Deserialize, Serialize};
use zeroize::Zeroizing;

use crate::jit::JitConfig;
use crate::lsps1::Lsps1Config;
use crate::params;
use crate::sales::SalesConfig;

/// The shipped default file: every key, documented.
pub const DEFAULT_FILE: &str = include_str!("../coordinator.default.toml");
/// In front of every environment variable that sets a key.
pub const ENV_PREFIX: &str = "SUPERSCALAR_COORDINATOR_";

/// Everything an operator can set.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// The chain.
    pub network: Network,
    /// Where clients connect to.
    pub listen: SocketAddr,
    /// What clients are told to connect to.
    pub public_address: Option<String>,
    /// Whether the port speaks TLS.
    pub tls: bool,
    /// Where Lightning peers connect to.
    pub lightning_listen: SocketAddr,
    /// Where clients and peers are told that is.
    pub lightning_public_address: Option<String>,
    /// Where the seed's passphrase is.
    pub passphrase_file: Option<PathBuf>,
    /// Cost of guessing the passphrase of a new seed.
    pub kdf: Kdf,
    /// Logging.
    pub log: LogConfig,
    /// The Bitcoin node.
    pub chain: ChainConfig,
    /// What clients get, and at what price.
    pub policy: Policy,
    /// How ceremonies run.
    pub ceremony: CeremonyConfig,
    /// Limits of the server.
    pub server: ServerConfig,
    /// New factories.
    pub factory: FactoryConfig,
    /// The Lightning node.
    pub lightning: LightningConfig,
    /// The ladder.
    pub ladder: LadderConfig,
    /// How clients that are away are woken.
    pub webhooks: WebhooksConfig,
    /// Channels opened when the payment for them is here.
    pub jit: JitConfig,
    /// Channels ordered in advance.
    pub lsps1: Lsps1Config,
    /// Channels sold from stocks.
    pub sales: SalesConfig,
}

/// See `kdf` in the default file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Kdf {
    /// For real money.
    Standard,
    /// For tests.
    Light,
}

/// See `[log]` in the default file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LogConfig {
    /// tracing-subscriber's filter.
    pub filter: String,
    /// How a line looks.
    pub format: LogFormat,
}

/// How a line of the log looks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LogFormat {
    /// For people.
    Pretty,
    /// One JSON object per line.
    Json,
}

/// See `[chain]` in the default file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ChainConfig {
    /// RPC address.
    pub rpc_url: String,
    /// Cookie file.
    pub rpc_cookie: Option<PathBuf>,
    /// RPC user.
    pub rpc_user: Option<String>,
    /// File with the RPC password.
    pub rpc_password_file: Option<PathBuf>,
    /// Polling interval, milliseconds.
    pub poll_ms: u64,
    /// Where a new wallet begins to look for coins; `None`: near the tip.
    pub scan_from_height: Option<u32>,
    /// Confirmation target of our own transactions, blocks.
    pub fee_target_blocks: u16,
    /// sat/vB without an estimate.
    pub fallback_feerate: u32,
    /// sat/vB at most.
    pub max_feerate: u32,
}

/// See `[policy]` in the default file.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Policy {
    /// Least capacity.
    pub capacity_min_sat: u64,
    /// Capacity of those who ask for nothing.
    pub capacity_default_sat: u64,
    /// Largest capacity.
    pub capacity_max_sat: u64,
    /// Price, whatever the capacity.
    pub fee_sat: u64,
    /// Price in parts per million of the capacity.
    pub fee_ppm: u32,
    /// Depth at which a factory is used; `None`: by network.
    pub confirmations: Option<u32>,
    /// Oldest client software served.
    pub min_client_version: String,
    /// Blocks in which a score halves.
    pub score_half_life_blocks: u32,
    /// Score from which a client is not invited.
    pub score_skip_above: f64,
}

impl Policy {
    /// What a month costs a client with this capacity.
    #[must_use]
    pub fn fee_for(&self, capacity: Amount) -> Amount {
        fee_for(Amount::from_sat(self.fee_sat), self.fee_ppm, capacity)
    }
}

/// See `[ceremony]` in the default file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CeremonyConfig {
    /// Seconds to join.
    pub join_seconds: u32,
    /// Seconds for each later step.
    pub step_seconds: u32,
    /// Attempts of one ceremony.
    pub max_attempts: u32,
    /// Least clients of a factory.
    pub min_clients: u32,
    /// Most clients of a factory.
    pub max_clients: u32,
    /// Seconds to wait for interested clients.
    pub gather_seconds: u64,
    /// Ceremonies at once.
    pub max_running: u32,
}

/// See `[server]` in the default file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ServerConfig {
    /// Connections.
    pub max_connections: usize,
    /// Connections per address.
    pub max_connections_per_ip: usize,
    /// Authenticated streams.
    pub max_sessions: usize,
    /// Unauthenticated streams.
    pub max_unauthenticated: usize,
    /// Unauthenticated streams per address.
    pub max_unauthenticated_per_ip: usize,
    /// Seconds for the handshake.
    pub handshake_seconds: u64,
    /// Seconds between heartbeats.
    pub heartbeat_seconds: u32,
    /// Messages that may wait for one client.
    pub queue: usize,
    /// Refused messages before a stream is closed.
    pub max_refusals: u32,
    /// Messages read from one stream per second.
    pub messages_per_second: u32,
}

/// See `[lightning]` in the default file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LightningConfig {
    /// What a forward costs, per payment.
    pub base_fee_msat: u32,
    /// What it costs beside, in millionths of the amount.
    pub fee_ppm: u32,
}

/// See `[ladder]` in the default file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LadderConfig {
    /// Whether a factory is born at every spacing.
    pub enabled: bool,
    /// Factories that are active or dying at once.
    pub rungs: u32,
    /// Blocks between two births.
    pub spacing: u32,
    /// Invitations of a client while its factory dies.
    pub invitations: u8,
    /// How much later than planned a birth may be.
    pub birth_slip: u32,
    /// Blocks a client is given to move.
    pub move_time: u32,
    /// Depth at which old keys may be handed over.
    pub handover_depth: u32,
    /// Depth at which reaped coins are used again.
    pub reap_depth: u32,
    /// Depth at which what is spent is forgotten.
    pub bury_depth: u32,
    /// Blocks before the dying days of the first notice.
    pub early_notice: u32,
}

/// See `[webhooks]` in the default file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct WebhooksConfig {
    /// Webhooks of one client.
    pub max_per_client: usize,
    /// Seconds for one try.
    pub timeout_seconds: u64,
    /// Seconds after which a notification nobody takes is dropped.
    pub give_up_seconds: u64,
    /// Certificates trusted instead of the system's.
    pub ca_file: Option<PathBuf>,
    /// Whether notifications may go to addresses that are not public.
    pub allow_private: bool,
}

/// See `[factory]` in the default file.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FactoryConfig {
    /// Named shape.
    pub profile: Profile,
    /// Expiry policy.
    pub expiry: Expiry,
    /// Single parameters.
    #[serde(default)]
    pub set: BTreeMap<String, serde_json::Value>,
}

/// [`ExpiryPolicy`] as people write it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Expiry {
    /// Pre-signed timeouts pay the clients.
    ClientRefund,
    /// The coordinator sweeps what was not published.
    LspReclaim,
}

impl From<Expiry> for ExpiryPolicy {
    fn from(expiry: Expiry) -> Self {
        match expiry {
            Expiry::ClientRefund => Self::ClientRefund,
            Expiry::LspReclaim => Self::LspReclaim,
        }
    }
}

/// What the command line says; wins over everything else.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Overrides {
    /// `--network`
    #[serde(skip_serializing_if = "Option::is_none")]
    pub network: Option<Network>,
    /// `--listen`
    #[serde(skip_serializing_if = "Option::is_none")]
    pub listen: Option<SocketAddr>,
    /// `--public-address`
    #[serde(skip_serializing_if = "Option::is_none")]
    pub public_address: Option<String>,
    /// `--lightning-listen`
    #[serde(skip_serializing_if = "Option::is_none")]
    pub lightning_listen: Option<SocketAddr>,
    /// `--lightning-public-address`
    #[serde(skip_serializing_if = "Option::is_none")]
    pub lightning_public_address: Option<String>,
    /// `--no-tls`
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tls: Option<bool>,
    /// `--passphrase-file`
    #[serde(skip_serializing_if = "Option::is_none")]
    pub passphrase_file: Option<PathBuf>,
    /// `--light-kdf`
    #[serde(skip_serializing_if = "Option::is_none")]
    pub kdf: Option<Kdf>,
    /// `--rpc-*`
    #[serde(skip_serializing_if = "ChainOverrides::is_empty")]
    pub chain: ChainOverrides,
}

/// The flags of `[chain]`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct ChainOverrides {
    /// `--rpc-url`
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rpc_url: Option<String>,
    /// `--rpc-cookie`
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rpc_cookie: Option<PathBuf>,
    /// `--rpc-user`
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rpc_user: Option<String>,
    /// `--rpc-password-file`
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rpc_password_file: Option<PathBuf>,
    /// `--poll-ms`
    #[serde(skip_serializing_if = "Option::is_none")]
    pub poll_ms: Option<u64>,
    /// `--scan-from`
    #[serde(skip_serializing_if = "Option::is_none")]
    pub scan_from_height: Option<u32>,
}

impl ChainOverrides {
    fn is_empty(&self) -> bool {
        self.rpc_url.is_none()
            && self.rpc_cookie.is_none()
            && self.rpc_user.is_none()
            && self.rpc_password_file.is_none()
            && self.poll_ms.is_none()
            && self.scan_from_height.is_none()
    }
}

/// What is wrong with a configuration.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// A file that is not there.
    #[error(
        "there is no configuration file at {path}; correct --config, or let `coordinator init` write one"
    )]
    Missing {
        /// Where it was looked for.
        path: PathBuf,
    },
    /// An unknown key or a value of the wrong kind; figment names key and source.
    #[error("{0}; the coordinator.toml that `coordinator init` writes lists every key")]
    Invalid(#[from] Box<figment::Error>),
    /// A value that cannot work.
    #[error("{key} = {value}: {problem}")]
    Value {
        /// Which key.
        key: &'static str,
        /// Its value.
        value: String,
        /// Why it cannot be, and what can.
        problem: String,
    },
    /// The parameters of new factories.
    #[error("[factory]: {0}")]
    Factory(#[from] params::ParamError),
    /// Parameters of the ladder that cannot hold, alone or with those of its factories.
    #[error("[ladder]: {0}")]
    Ladder(#[from] LadderError),
}

impl Config {
    /// Reads the configuration: `file` if given (it must exist), else `<data_dir>/coordinator.toml` if it is there.
    ///
    /// # Errors
    /// [`ConfigError`].
    pub fn load(
        data_dir: &Path,
        file: Option<&Path>,
        overrides: &Overrides,
    ) -> Result<Self, ConfigError> {
        let config: Self = Figment::from(Toml::string(DEFAULT_FILE))
            .merge(Self::chosen(data_dir, file, overrides)?)
            .extract()
            .map_err(Box::new)?;
        config.check()?;
        Ok(config)
    }

    /// Whether somebody said which network: there is none that everybody means.
    ///
    /// # Errors
    /// [`ConfigError::Missing`].
    pub fn names_network(
        data_dir: &Path,
        file: Option<&Path>,
        overrides: &Overrides,
    ) -> Result<bool, ConfigError> {
        Ok(Self::chosen(data_dir, file, overrides)?.contains("network"))
    }

    /// What was set over the defaults.
    fn chosen(
        data_dir: &Path,
        file: Option<&Path>,
        overrides: &Overrides,
    ) -> Result<Figment, ConfigError> {
        let own = data_dir.join("coordinator.toml");
        let mut figment = Figment::new();
        match file {
            Some(path) if !path.is_file() => {
                return Err(ConfigError::Missing {
                    path: path.to_owned(),
                });
            }
            Some(path) => figment = figment.merge(Toml::file_exact(path)),
            None if own.is_file() => figment = figment.merge(Toml::file_exact(own)),
            None => {}
        }
        Ok(figment
            .merge(Env::prefixed(ENV_PREFIX).split("__"))
            .merge(Serialized::defaults(overrides)))
    }

    /// The shipped defaults.
    ///
    /// # Errors
    /// [`ConfigError`], never for a released default file: a test reads it.
    pub fn defaults() -> Result<Self, ConfigError> {
        let config: Self = Figment::from(Toml::string(DEFAULT_FILE))
            .extract()
            .map_err(Box::new)?;
        config.check()?;
        Ok(config)
    }

    fn check(&self) -> Result<(), ConfigError> {
        if !self.tls && !self.listen.ip().is_loopback() {
            return Err(wrong(
                "listen",
                self.listen,
                "without TLS only a loopback address is served; use tls = true, or listen on 127.0.0.1",
            ));
        }
        if self.network == Network::Bitcoin && self.kdf == Kdf::Light {
            return Err(wrong(
                "kdf",
                "light",
                "the seed of real money needs kdf = \"standard\"",
            ));
        }
        if self.jit.enabled && self.network != Network::Regtest {
            return Err(wrong(
                "jit.enabled",
                "true",
                "just-in-time channels are for regtest so far: docs/adr/0009 names the ways in which they can still lose money",
            ));
        }
        if self.lsps1.enabled && self.network != Network::Regtest {
            return Err(wrong(
                "lsps1.enabled",
                "true",
                "channels ordered by LSPS1 are for regtest so far: docs/lsps.md names what is missing",
            ));
        }
        if self.sales.enabled && self.network != Network::Regtest {
            return Err(wrong(
                "sales.enabled",
                "true",
                "sales from stocks are for regtest so far: docs/sales.md says what is missing",
            ));
        }
        self.check_policy()?;
        self.check_ceremony()?;
        let server = &self.server;
        positive("server.max_connections", server.max_connections as u64)?;
        positive(
            "server.max_connections_per_ip",
            server.max_connections_per_ip as u64,
        )?;
        positive("server.max_sessions", server.max_sessions as u64)?;
        positive(
            "server.max_unauthenticated",
            server.max_unauthenticated as u64,
        )?;
        positive(
            "server.max_unauthenticated_per_ip",
            server.max_unauthenticated_per_ip as u64,
        )?;
        positive("server.handshake_seconds", server.handshake_seconds)?;
        positive(
            "server.messages_per_second",
            server.messages_per_second.into(),
        )?;
        positive("server.heartbeat_seconds", server.heartbeat_seconds.into())?;
        if server.queue < 8 {
            return Err(wrong(
                "server.queue",
                server.queue,
                "a ceremony needs room for at least 8 messages",
            ));
        }
        positive("chain.poll_ms", self.chain.poll_ms)?;
        positive("chain.fallback_feerate", self.chain.fallback_feerate.into())?;
        if self.chain.max_feerate < self.chain.fallback_feerate {
            return Err(wrong(
                "chain.max_feerate",
                self.chain.max_feerate,
                "must be at least chain.fallback_feerate",
            ));
        }
        positive(
            "webhooks.max_per_client",
            self.webhooks.max_per_client as u64,
        )?;
        positive("webhooks.timeout_seconds", self.webhooks.timeout_seconds)?;
        self.jit.check(self.network)?;
        self.lsps1.check()?;
        self.sales.check()?;
        let factory = self.factory_params(&BTreeMap::new())?;
        if self.ladder.enabled {
            self.ladder_params()
                .validate(&factory, self.ceremony.max_clients)?;
        }
        Ok(())
    }

    fn check_policy(&self) -> Result<(), ConfigError> {
        let policy = &self.policy;
        let least = factory_tree::output::MIN_OUTPUT.to_sat();
        if policy.capacity_min_sat < least {
            return Err(wrong(
                "policy.capacity_min_sat",
                policy.capacity_min_sat,
                format!("no output holds less than {least} sat"),
            ));
        }
        if policy.capacity_max_sat > Amount::MAX_MONEY.to_sat() {
            return Err(wrong(
                "policy.capacity_max_sat",
                policy.capacity_max_sat,
                "there are only 21 million bitcoin",
            ));
        }
        let range = policy.capacity_min_sat..=policy.capacity_max_sat;
        if !range.contains(&policy.capacity_default_sat) {
            return Err(wrong(
                "policy.capacity_default_sat",
                policy.capacity_default_sat,
                "must lie between capacity_min_sat and capacity_max_sat",
            ));
        }
        if policy.fee_sat > Amount::MAX_MONEY.to_sat() {
            return Err(wrong(
                "policy.fee_sat",
                policy.fee_sat,
                "there are only 21 million bitcoin",
            ));
        }
        if policy.confirmations == Some(0) {
            return Err(wrong(
                "policy.confirmations",
                0,
                "a factory is used after at least 1 confirmation",
            ));
        }
        if parse_version(&policy.min_client_version).is_none() {
            return Err(wrong(
                "policy.min_client_version",
                &policy.min_client_version,
                "write it like 0.1.0",
            ));
        }
        positive(
            "policy.score_half_life_blocks",
            policy.score_half_life_blocks.into(),
        )?;
        if policy.score_skip_above.is_nan() || policy.score_skip_above <= 0.0 {
            return Err(wrong(
                "policy.score_skip_above",
                policy.score_skip_above,
                "must be above 0",
            ));
        }
        Ok(())
    }

    fn check_ceremony(&self) -> Result<(), ConfigError> {
        let ceremony = &self.ceremony;
        positive("ceremony.join_seconds", ceremony.join_seconds.into())?;
        positive("ceremony.step_seconds", ceremony.step_seconds.into())?;
        positive("ceremony.max_attempts", ceremony.max_attempts.into())?;
        positive("ceremony.max_running", ceremony.max_running.into())?;
        if ceremony.min_clients < 2 {
            return Err(wrong(
                "ceremony.min_clients",
                ceremony.min_clients,
                "a factory has at least 2 clients",
            ));
        }
        if ceremony.max_clients < ceremony.min_clients {
            return Err(wrong(
                "ceremony.max_clients",
                ceremony.max_clients,
                "must be at least ceremony.min_clients",
            ));
        }
        Ok(())
    }

    /// The parameters of a new factory, `set` winning over the configured ones.
    ///
    /// # Errors
    /// [`params::ParamError`].
    pub fn factory_params(
        &self,
        set: &BTreeMap<String, serde_json::Value>,
    ) -> Result<FactoryParams, params::ParamError> {
        let mut base = FactoryParams::profile(self.factory.profile, self.network);
        base.expiry_policy = self.factory.expiry.into();
        let mut all = self.factory.set.clone();
        all.extend(
            set.iter()
                .map(|(name, value)| (name.clone(), value.clone())),
        );
        params::with(&base, &all)
    }

    /// The numbers of the ladder.
    #[must_use]
    pub fn ladder_params(&self) -> LadderParams {
        let ladder = &self.ladder;
        LadderParams {
            rungs: ladder.rungs,
            spacing: ladder.spacing,
            invitations: ladder.invitations,
            birth_slip: ladder.birth_slip,
            usable_depth: self.confirmations(),
            move_time: ladder.move_time,
            handover_depth: ladder.handover_depth,
            reap_depth: ladder.reap_depth,
            bury_depth: ladder.bury_depth,
            early_notice: ladder.early_notice,
        }
    }

    /// Depth at which a factory is used.
    #[must_use]
    pub fn confirmations(&self) -> u32 {
        let usual = if self.network == Network::Regtest {
            1
        } else {
            3
        };
        self.policy.confirmations.unwrap_or(usual)
    }

    /// Polling interval.
    #[must_use]
    pub const fn poll(&self) -> Duration {
        Duration::from_millis(self.chain.poll_ms)
    }

    /// How to reach the node.
    ///
    /// # Errors
    /// [`ConfigError::Value`] when credentials are missing or their file cannot be read.
    pub fn bitcoind(&self) -> Result<chain::BitcoindConfig, ConfigError> {
        let chain = &self.chain;
        let auth = match (&chain.rpc_cookie, &chain.rpc_user, &chain.rpc_password_file) {
            (Some(cookie), None, None) => chain::RpcAuth::CookieFile(cookie.clone()),
            (None, Some(user), Some(file)) => {
                let text = std::fs::read_to_string(file).map_err(|error| {
                    wrong(
                        "chain.rpc_password_file",
                        file.display(),
                        format!("cannot be read ({error})"),
                    )
                })?;
                let password = Zeroizing::new(text.trim_end_matches(['\r', '\n']).to_owned());
                drop(Zeroizing::new(text));
                chain::RpcAuth::UserPass {
                    user: user.clone(),
                    password,
                }
            }
            _ => {
                return Err(wrong(
                    "chain.rpc_cookie",
                    "(none)",
                    "set chain.rpc_cookie to the node's .cookie file, or chain.rpc_user and chain.rpc_password_file",
                ));
            }
        };
        let mut config = chain::BitcoindConfig::new(chain.rpc_url.clone(), auth);
        config.fallback_fee = FeeRate::from_sat_per_vb_u32(chain.fallback_feerate);
        Ok(config)
    }
}

/// `major.minor.patch` (what follows a `-` or `+` is left out).
#[must_use]
pub fn parse_version(text: &str) -> Option<(u32, u32, u32)> {
    let core = text.split(['-', '+']).next()?;
    let mut parts = core.split('.').map(str::parse::<u32>);
    let version = (
        parts.next()?.ok()?,
        parts.next()?.ok()?,
        parts.next()?.ok()?,
    );
    parts.next().is_none().then_some(version)
}

pub(crate) fn positive(key: &'static str, value: u64) -> Result<(), ConfigError> {
    if value == 0 {
        return Err(wrong(key, 0, "must be at least 1"));
    }
    Ok(())
}

pub(crate) fn wrong(
    key: &'static str,
    value: impl ToString,
    problem: impl Into<String>,
) -> ConfigError {
    ConfigError::Value {
        key,
        value: value.to_string(),
        problem: problem.into(),
    }
}

#[cfg(test)]
#[path = "config_tests.rs"]
mod tests;
