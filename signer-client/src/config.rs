//! The configuration file: every key of `client.default.toml`.

use std::fs;
use std::io::{self, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use bitcoin::{Amount, FeeRate, Network};
use chain::{BitcoindConfig, RpcAuth};
use factory_tree::units::Blocks;
use factory_tree::verify;
use serde::{Deserialize, Serialize};
use zeroize::Zeroizing;

/// The shipped file, with every key documented.
pub const DEFAULT_TOML: &str = include_str!("../client.default.toml");

/// Why there is no usable configuration.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ConfigError {
    /// No file.
    #[error(
        "there is no configuration at {path}; run `signer-client init` first, or name the right --data-dir"
    )]
    Missing {
        /// Where it was looked for.
        path: PathBuf,
    },
    /// A file already there is never overwritten.
    #[error("there is a configuration at {path} already; edit it, or use another --data-dir")]
    Exists {
        /// Where.
        path: PathBuf,
    },
    /// The file cannot be read or written.
    #[error("cannot {action} {path}: {source}")]
    Io {
        /// What was being done.
        action: &'static str,
        /// To what.
        path: PathBuf,
        /// In the system's words.
        source: io::Error,
    },
    /// Not TOML, or not with our keys.
    #[error("{path} is not a valid configuration: {cause}")]
    Invalid {
        /// Which file.
        path: PathBuf,
        /// Line, column and what is wrong there.
        cause: String,
    },
    /// A value that cannot be.
    #[error("the configuration's {key} is {found}; {remedy}")]
    Value {
        /// Which key.
        key: &'static str,
        /// Its value.
        found: String,
        /// What it should be.
        remedy: &'static str,
    },
}

/// The configuration.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// The network.
    pub network: Network,
    /// The coordinator's connection string.
    pub coordinator: Option<String>,
    /// Accept a plain connection on loopback.
    #[serde(default)]
    pub allow_plain: bool,
    /// Where the passphrase is.
    pub passphrase_file: Option<PathBuf>,
    /// How much is logged.
    #[serde(default = "defaults::log_level")]
    pub log_level: String,
    /// The Bitcoin node.
    #[serde(default)]
    pub chain: ChainConfig,
    /// The connection to the coordinator.
    #[serde(default)]
    pub connection: ConnectionConfig,
    /// What is agreed to without asking.
    #[serde(default)]
    pub limits: LimitsConfig,
    /// Leaving.
    #[serde(default)]
    pub exit: ExitConfig,
    /// Lightning.
    #[serde(default)]
    pub lightning: LightningConfig,
    /// Channels just in time.
    #[serde(default)]
    pub jit: JitConfig,
    /// Inbound liquidity, bought without asking.
    #[serde(default)]
    pub top_up: TopUpConfig,
    /// Signing with others who buy.
    #[serde(default)]
    pub sales: SalesConfig,
    /// From a factory that ends to a younger one.
    #[serde(default)]
    pub migration: MigrationConfig,
}

/// The Bitcoin node.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ChainConfig {
    /// Address of the RPC server.
    pub rpc_url: String,
    /// Cookie file.
    pub rpc_cookie: Option<PathBuf>,
    /// User, instead of a cookie.
    pub rpc_user: Option<String>,
    /// File with that user's password.
    pub rpc_password_file: Option<PathBuf>,
    /// Milliseconds between two looks for a new block.
    pub poll_ms: u64,
    /// Feerate without an estimate.
    pub fallback_sat_per_vb: u64,
}

/// The connection to the coordinator.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ConnectionConfig {
    /// Shortest wait before connecting again.
    pub reconnect_min_ms: u64,
    /// Longest wait.
    pub reconnect_max_ms: u64,
    /// How long one attempt may take.
    pub connect_timeout_ms: u64,
}

/// What is agreed to without asking.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct LimitsConfig {
    /// Least capacity.
    pub min_capacity_sat: u64,
    /// Largest capacity.
    pub max_capacity_sat: u64,
    /// Most a factory may cost.
    pub max_fee_sat: u64,
    /// Accept factories without timeouts.
    pub allow_lsp_reclaim: bool,
    /// Most clients.
    pub max_clients: u32,
    /// Longest exit delay.
    pub max_exit_delay: u32,
    /// Largest path.
    pub max_path_vbytes: u64,
    /// Longest life.
    pub max_lifetime: u32,
    /// Largest difference between the proposed birth and the tip.
    pub max_birth_drift: u32,
    /// Least coverage.
    pub min_coverage_ppm: u32,
    /// Least delay of the coordinator's branch on a stock; `None`: the network's default.
    pub min_stock_delay: Option<u32>,
}

/// Leaving.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ExitConfig {
    /// Publish timeouts unasked.
    pub auto_timeout: bool,
    /// Leave factories without timeouts in time, unasked.
    pub auto_leave: bool,
    /// Most one exit may cost.
    pub max_fee_sat: u64,
    /// Seconds between two checks of what was published.
    pub recheck_seconds: u64,
    /// Depth at which a reorg is no longer expected.
    pub final_depth: u32,
}

/// Lightning.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct LightningConfig {
    /// Blocks the coordinator waits for its own money after it closed a channel alone.
    pub to_self_delay: u16,
}

/// Channels just in time.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct JitConfig {
    /// Most that one may cost.
    pub max_fee_sat: u64,
    /// Accept one that is paid for only after its first payment is taken, and claim what comes over any before its funding is seen.
    pub allow_unfunded: bool,
    /// Bring what lies in them into a factory, and close them.
    pub consolidate: bool,
}

/// Inbound liquidity, bought without asking. What needs the user's consent is never bought like this.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct TopUpConfig {
    /// Whether anything is.
    pub enabled: bool,
    /// Buy when less than this can be received.
    pub below_sat: u64,
    /// How much more to buy.
    pub amount_sat: u64,
    /// Most that one purchase may cost.
    pub max_fee_sat: u64,
    /// Most that all purchases of 30 days may cost.
    pub max_fee_sat_per_month: u64,
    /// Seconds for which too little must be receivable before anything is bought.
    pub settle_seconds: u64,
    /// Least seconds between two questions to the coordinator.
    pub pause_seconds: u64,
}

/// Signing with others who buy from a stock that is shared.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct SalesConfig {
    /// The least that the bonus channel holds for which it is done; 0: it is done for nothing.
    pub least_bonus_sat: u64,
}

/// From a factory that ends to a younger one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct MigrationConfig {
    /// Most that the next month may cost.
    pub max_fee_sat: u64,
    /// Depth of the younger factory's funding at which the keys of the old one are handed over.
    pub handover_depth: u32,
}

mod defaults {
    use super::{
        ChainConfig, ConnectionConfig, ExitConfig, JitConfig, LightningConfig, LimitsConfig,
        MigrationConfig, TopUpConfig,
    };

    pub(super) fn log_level() -> String {
        "info".to_owned()
    }

    impl Default for ChainConfig {
        fn default() -> Self {
            Self {
                rpc_url: "http://127.0.0.1:8332".to_owned(),
                rpc_cookie: None,
                rpc_user: None,
                rpc_password_file: None,
                poll_ms: 1000,
                fallback_sat_per_vb: 5,
            }
        }
    }

    impl Default for ConnectionConfig {
        fn default() -> Self {
            Self {
                reconnect_min_ms: 500,
                reconnect_max_ms: 60_000,
                connect_timeout_ms: 10_000,
            }
        }
    }

    impl Default for LimitsConfig {
        fn default() -> Self {
            Self {
                min_capacity_sat: 10_000,
                max_capacity_sat: 1_000_000_000,
                max_fee_sat: 20_000,
                allow_lsp_reclaim: false,
                max_clients: 4096,
                max_exit_delay: 450,
                max_path_vbytes: 10_000,
                max_lifetime: 8064,
                max_birth_drift: 6,
                min_coverage_ppm: 980_000,
                min_stock_delay: None,
            }
        }
    }

    impl Default for LightningConfig {
        fn default() -> Self {
            Self {
                to_self_delay: 1008,
            }
        }
    }

    impl Default for JitConfig {
        fn default() -> Self {
            Self {
                max_fee_sat: 10_000,
                allow_unfunded: false,
                consolidate: true,
            }
        }
    }

    impl Default for TopUpConfig {
        fn default() -> Self {
            Self {
                enabled: false,
                below_sat: 50_000,
                amount_sat: 100_000,
                max_fee_sat: 2000,
                max_fee_sat_per_month: 6000,
                settle_seconds: 60,
                pause_seconds: 300,
            }
        }
    }

    impl Default for MigrationConfig {
        fn default() -> Self {
            Self {
                max_fee_sat: 5000,
                handover_depth: 12,
            }
        }
    }

    impl Default for ExitConfig {
        fn default() -> Self {
            Self {
                auto_timeout: true,
                auto_leave: true,
                max_fee_sat: 200_000,
                recheck_seconds: 20,
                final_depth: 6,
            }
        }
    }
}

impl Config {
    /// A configuration with defaults everywhere.
    #[must_use]
    pub fn new(network: Network) -> Self {
        Self {
            network,
            coordinator: None,
            allow_plain: false,
            passphrase_file: None,
            log_level: defaults::log_level(),
            chain: ChainConfig::default(),
            connection: ConnectionConfig::default(),
            limits: LimitsConfig::default(),
            exit: ExitConfig::default(),
            lightning: LightningConfig::default(),
            jit: JitConfig::default(),
            top_up: TopUpConfig::default(),
            sales: SalesConfig::default(),
            migration: MigrationConfig::default(),
        }
    }

    /// Reads and checks the file.
    ///
    /// # Errors
    /// [`ConfigError`] names the file, the place and what to do.
    pub fn load(path: &Path) -> Result<Self, ConfigError> {
        let text = fs::read_to_string(path).map_err(|source| match source.kind() {
            io::ErrorKind::NotFound => ConfigError::Missing {
                path: path.to_owned(),
            },
            _ => ConfigError::Io {
                action: "read",
                path: path.to_owned(),
                source,
            },
        })?;
        let config: Self = toml::from_str(&text).map_err(|error| ConfigError::Invalid {
            path: path.to_owned(),
            cause: error.to_string(),
        })?;
        config.check()?;
        Ok(config)
    }

    /// Writes the shipped file with these values in it, for the owner only.
    ///
    /// # Errors
    /// [`ConfigError::Exists`], or the system's.
    pub fn write_new(&self, path: &Path) -> Result<(), ConfigError> {
        let failed = |source: io::Error| match source.kind() {
            io::ErrorKind::AlreadyExists => ConfigError::Exists {
                path: path.to_owned(),
            },
            _ => ConfigError::Io {
                action: "write",
                path: path.to_owned(),
                source,
            },
        };
        // Whole or not at all: a directory with this file counts as complete.
        let dir = path.parent().filter(|dir| !dir.as_os_str().is_empty());
        let dir = dir.unwrap_or(Path::new("."));
        let mut file = tempfile::Builder::new()
            .prefix(".client-")
            .permissions(fs::Permissions::from_mode(0o600))
            .tempfile_in(dir)
            .map_err(failed)?;
        file.write_all(self.render().as_bytes()).map_err(failed)?;
        file.as_file().sync_all().map_err(failed)?;
        file.persist_noclobber(path)
            .map_err(|error| failed(error.error))?;
        fs::File::open(dir)
            .and_then(|dir| dir.sync_all())
            .map_err(failed)
    }

    /// The shipped file with the values that `init` sets.
    fn render(&self) -> String {
        let text = |value: &str| toml::Value::String(value.to_owned()).to_string();
        let path = |value: &PathBuf| text(&value.display().to_string());
        let values = [
            ("", "network", Some(text(&self.network.to_string()))),
            ("", "coordinator", self.coordinator.as_deref().map(text)),
            ("", "allow_plain", Some(self.allow_plain.to_string())),
            (
                "",
                "passphrase_file",
                self.passphrase_file.as_ref().map(path),
            ),
            ("chain", "rpc_url", Some(text(&self.chain.rpc_url))),
            (
                "chain",
                "rpc_cookie",
                self.chain.rpc_cookie.as_ref().map(path),
            ),
            (
                "chain",
                "rpc_user",
                self.chain.rpc_user.as_deref().map(text),
            ),
            (
                "chain",
                "rpc_password_file",
                self.chain.rpc_password_file.as_ref().map(path),
            ),
            ("chain", "poll_ms", Some(self.chain.poll_ms.to_string())),
            (
                "limits",
                "allow_lsp_reclaim",
                Some(self.limits.allow_lsp_reclaim.to_string()),
            ),
        ];
        let mut section = "";
        let mut out = String::with_capacity(DEFAULT_TOML.len());
        for line in DEFAULT_TOML.lines() {
            if let Some(name) = line.strip_prefix('[').and_then(|l| l.strip_suffix(']')) {
                section = name;
            }
            let key = line.trim_start_matches("# ").split(" = ").next();
            let value = values
                .iter()
                .find(|(in_section, name, _)| *in_section == section && key == Some(*name))
                .filter(|_| line.contains(" = "));
            match value {
                Some((_, name, Some(value))) => out.push_str(&format!("{name} = {value}")),
                _ => out.push_str(line),
            }
            out.push('\n');
        }
        out
    }

    fn check(&self) -> Result<(), ConfigError> {
        let value = |key, found: &dyn std::fmt::Display, remedy| ConfigError::Value {
            key,
            found: found.to_string(),
            remedy,
        };
        if self.chain.poll_ms < 10 {
            return Err(value(
                "chain.poll_ms",
                &self.chain.poll_ms,
                "use at least 10",
            ));
        }
        if self.chain.rpc_user.is_some() != self.chain.rpc_password_file.is_some() {
            return Err(ConfigError::Value {
                key: "chain.rpc_user",
                found: "without its password file, or the other way round".to_owned(),
                remedy: "set both rpc_user and rpc_password_file, or neither",
            });
        }
        if !(1..=10_000).contains(&self.chain.fallback_sat_per_vb) {
            return Err(value(
                "chain.fallback_sat_per_vb",
                &self.chain.fallback_sat_per_vb,
                "use 1 to 10000",
            ));
        }
        if self.connection.reconnect_min_ms == 0
            || self.connection.reconnect_min_ms > self.connection.reconnect_max_ms
        {
            return Err(value(
                "connection.reconnect_min_ms",
                &self.connection.reconnect_min_ms,
                "use at least 1 and at most reconnect_max_ms",
            ));
        }
        if self.exit.final_depth == 0 {
            return Err(value("exit.final_depth", &0, "use at least 1"));
        }
        // BOLT 2's smallest useful delay to LDK's largest.
        if !(144..=2016).contains(&self.lightning.to_self_delay) {
            return Err(value(
                "lightning.to_self_delay",
                &self.lightning.to_self_delay,
                "use 144 to 2016",
            ));
        }
        // Keys that are given away do not come back with a reorg (protocol.md section 7.3); a factory dies within weeks.
        if !(1..=144).contains(&self.migration.handover_depth) {
            return Err(value(
                "migration.handover_depth",
                &self.migration.handover_depth,
                "use 1 to 144",
            ));
        }
        if self.exit.recheck_seconds == 0 {
            return Err(value("exit.recheck_seconds", &0, "use at least 1"));
        }
        if self.sales.least_bonus_sat > Amount::MAX_MONEY.to_sat() {
            return Err(value(
                "sales.least_bonus_sat",
                &self.sales.least_bonus_sat,
                "there are only 21 million bitcoin",
            ));
        }
        self.top_up.check(self.network)
    }

    /// The limits as the checks want them.
    #[must_use]
    pub fn limits(&self) -> verify::Limits {
        let limits = &self.limits;
        let defaults = verify::Limits::default_for(self.network);
        verify::Limits {
            network: self.network,
            min_capacity: Amount::from_sat(limits.min_capacity_sat),
            max_capacity: Amount::from_sat(limits.max_capacity_sat),
            max_fee: Amount::from_sat(limits.max_fee_sat),
            allow_lsp_reclaim: limits.allow_lsp_reclaim,
            max_clients: limits.max_clients,
            max_exit_delay: Blocks(limits.max_exit_delay),
            max_path_vbytes: limits.max_path_vbytes,
            max_lifetime: Blocks(limits.max_lifetime),
            max_birth_drift: Blocks(limits.max_birth_drift),
            min_stock_delay: limits
                .min_stock_delay
                .map_or(defaults.min_stock_delay, Blocks),
            min_coverage_ppm: limits.min_coverage_ppm,
        }
    }

    /// How to reach the Bitcoin node.
    ///
    /// # Errors
    /// [`ConfigError`] when neither a cookie nor a password is named, or it cannot be read.
    pub fn bitcoind(&self) -> Result<BitcoindConfig, ConfigError> {
        let chain = &self.chain;
        let auth = match (&chain.rpc_cookie, &chain.rpc_user, &chain.rpc_password_file) {
            (Some(cookie), _, _) => RpcAuth::CookieFile(cookie.clone()),
            (None, Some(user), Some(path)) => RpcAuth::UserPass {
                user: user.clone(),
                password: read_password(path)?,
            },
            _ => {
                return Err(ConfigError::Value {
                    key: "chain.rpc_cookie",
                    found: "missing".to_owned(),
                    remedy: "name the node's cookie file, or rpc_user and rpc_password_file",
                });
            }
        };
        let fallback = FeeRate::from_sat_per_vb(chain.fallback_sat_per_vb)
            .unwrap_or(FeeRate::from_sat_per_vb_u32(5));
        Ok(BitcoindConfig {
            fallback_fee: fallback,
            ..BitcoindConfig::new(chain.rpc_url.clone(), auth)
        })
    }

    /// Time between two looks for a new block.
    #[must_use]
    pub const fn poll_interval(&self) -> Duration {
        Duration::from_millis(self.chain.poll_ms)
    }
}

impl TopUpConfig {
    fn check(&self, network: Network) -> Result<(), ConfigError> {
        let wrong = |key, found: u64, remedy| {
            let found = found.to_string();
            Err(ConfigError::Value { key, found, remedy })
        };
        let most = Amount::MAX_MONEY.to_sat();
        if !(1..=most).contains(&self.below_sat) {
            let remedy = "use at least 1, or switch top_up.enabled off";
            return wrong("top_up.below_sat", self.below_sat, remedy);
        }
        if !(1..=most).contains(&self.amount_sat) {
            return wrong("top_up.amount_sat", self.amount_sat, "use at least 1");
        }
        if self.max_fee_sat == 0 || self.max_fee_sat > self.max_fee_sat_per_month {
            let remedy = "use at least 1 and at most max_fee_sat_per_month";
            return wrong("top_up.max_fee_sat", self.max_fee_sat, remedy);
        }
        if self.max_fee_sat_per_month > most {
            let found = self.max_fee_sat_per_month;
            return wrong("top_up.max_fee_sat_per_month", found, "use less");
        }
        // A coordinator is not asked all the time.
        let least = if network == Network::Regtest { 1 } else { 60 };
        let remedy = "use at least 60, on regtest 1";
        if self.settle_seconds < least {
            return wrong("top_up.settle_seconds", self.settle_seconds, remedy);
        }
        if self.pause_seconds < least {
            return wrong("top_up.pause_seconds", self.pause_seconds, remedy);
        }
        Ok(())
    }
}

fn read_password(path: &Path) -> Result<Zeroizing<String>, ConfigError> {
    let text = Zeroizing::new(fs::read_to_string(path).map_err(|source| ConfigError::Io {
        action: "read",
        path: path.to_owned(),
        source,
    })?);
    Ok(Zeroizing::new(text.trim_end().to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The shipped file with its commented keys switched on.
    fn all_keys() -> String {
        let uncomment = |line: &str| {
            let key = line.strip_prefix("# ").filter(|rest| {
                let name = rest.split(" = ").next().unwrap_or("");
                rest.contains(" = ") && name.chars().all(|c| c.is_ascii_lowercase() || c == '_')
            });
            key.unwrap_or(line).to_owned()
        };
        DEFAULT_TOML
            .lines()
            .map(uncomment)
            .collect::<Vec<_>>()
            .join("\n")
    }

    #[test]
    fn the_shipped_file_is_the_defaults() {
        let shipped: Config = toml::from_str(DEFAULT_TOML).unwrap();
        assert_eq!(shipped, Config::new(Network::Regtest));
        shipped.check().unwrap();
    }

    #[test]
    fn the_shipped_file_shows_every_key() {
        let text = all_keys();
        let shown: toml::Table = toml::from_str(&text).unwrap();
        let config: Config = toml::from_str(&text).unwrap();
        let known = toml::Table::try_from(config).unwrap();
        let keys = |table: &toml::Table| -> Vec<String> {
            let sections = table.iter().flat_map(|(name, value)| match value {
                toml::Value::Table(inner) => {
                    inner.keys().map(|key| format!("{name}.{key}")).collect()
                }
                _ => vec![name.clone()],
            });
            let mut keys: Vec<String> = sections.collect();
            keys.sort();
            keys
        };
        // Every field of `Config` is set in `text`, so a key that is not shown would be missing here.
        let mut full = Config::new(Network::Regtest);
        full.coordinator = Some(String::new());
        full.passphrase_file = Some(PathBuf::new());
        full.chain.rpc_cookie = Some(PathBuf::new());
        full.chain.rpc_user = Some(String::new());
        full.chain.rpc_password_file = Some(PathBuf::new());
        full.limits.min_stock_delay = Some(1);
        let full = toml::Table::try_from(full).unwrap();
        assert_eq!(keys(&shown), keys(&full));
        assert_eq!(keys(&known), keys(&full));
    }

    #[test]
    fn what_init_writes_is_read_back() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("client.toml");
        let mut config = Config::new(Network::Signet);
        config.coordinator = Some("superscalar://02@127.0.0.1:1?plain=1".to_owned());
        config.allow_plain = true;
        config.chain.rpc_cookie = Some(PathBuf::from("/a \"b\"/.cookie"));
        config.chain.poll_ms = 50;
        config.limits.allow_lsp_reclaim = true;
        config.write_new(&path).unwrap();
        assert_eq!(Config::load(&path).unwrap(), config);
        assert!(matches!(
            config.write_new(&path),
            Err(ConfigError::Exists { .. })
        ));
    }

    #[test]
    fn mistakes_are_named() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("client.toml");
        assert!(matches!(
            Config::load(&path),
            Err(ConfigError::Missing { .. })
        ));
        fs::write(&path, "network = \"regtest\"\nmax_fee = 3\n").unwrap();
        let error = Config::load(&path).unwrap_err().to_string();
        assert!(error.contains("max_fee"), "{error}");
        fs::write(&path, "network = \"regtest\"\n[chain]\npoll_ms = 0\n").unwrap();
        let error = Config::load(&path).unwrap_err().to_string();
        assert!(error.contains("poll_ms"), "{error}");
    }

    #[test]
    fn a_top_up_has_bounds() {
        let mistake = |network, change: &dyn Fn(&mut TopUpConfig)| {
            let mut config = Config::new(network);
            change(&mut config.top_up);
            match config.check() {
                Err(ConfigError::Value { key, .. }) => key,
                other => panic!("{other:?}"),
            }
        };
        let regtest = |change: &dyn Fn(&mut TopUpConfig)| mistake(Network::Regtest, change);
        assert_eq!(regtest(&|it| it.below_sat = 0), "top_up.below_sat");
        assert_eq!(regtest(&|it| it.amount_sat = 0), "top_up.amount_sat");
        assert_eq!(regtest(&|it| it.max_fee_sat = 0), "top_up.max_fee_sat");
        let more = regtest(&|it| it.max_fee_sat = it.max_fee_sat_per_month + 1);
        assert_eq!(more, "top_up.max_fee_sat");
        let much = regtest(&|it| it.max_fee_sat_per_month = u64::MAX);
        assert_eq!(much, "top_up.max_fee_sat_per_month");
        assert_eq!(regtest(&|it| it.pause_seconds = 0), "top_up.pause_seconds");
        let hasty = |change: &dyn Fn(&mut TopUpConfig)| mistake(Network::Signet, change);
        assert_eq!(hasty(&|it| it.pause_seconds = 59), "top_up.pause_seconds");
        assert_eq!(hasty(&|it| it.settle_seconds = 1), "top_up.settle_seconds");
    }
}
