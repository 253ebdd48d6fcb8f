//! What can go wrong, each with its remedy, and how the command line reports it.

use chain::ChainError;
use chain::wallet::WalletError;
use channel_host::{AskError, NodeError};
use factory_tree::ids::FactoryId;
use factory_tree::kit::KitError;
use keystore::{PassphraseError, SeedError};
use proto::session::ServiceError;

use crate::config::ConfigError;
use crate::jit::JitError;
use crate::lock::LockError;
use crate::lsps1::OrderError;
use crate::sales::SaleError;
use crate::store::StoreError;

/// What this crate returns.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// An error that names the cause and the remedy.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The configuration.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// The data directory.
    #[error(transparent)]
    Lock(#[from] LockError),
    /// The seed.
    #[error(transparent)]
    Seed(#[from] SeedError),
    /// The passphrase.
    #[error(transparent)]
    Passphrase(#[from] PassphraseError),
    /// The database.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The Bitcoin node.
    #[error(transparent)]
    Chain(#[from] ChainError),
    /// The on-chain wallet.
    #[error(transparent)]
    Wallet(#[from] WalletError),
    /// The Lightning node.
    #[error("the Lightning node: {0}")]
    Lightning(#[from] NodeError),
    /// There is no Lightning node now.
    #[error("this wallet's Lightning node does not run: {0}")]
    NoLightning(String),
    /// The coordinator did not answer as asked (LSPS0).
    #[error("the coordinator: {0}")]
    Asked(#[from] AskError),
    /// Nothing was paid, or no invoice made.
    #[error("{0}")]
    PaymentRefused(String),
    /// No channel is ordered for a payment.
    #[error(transparent)]
    Jit(#[from] JitError),
    /// No channel is ordered.
    #[error(transparent)]
    Order(#[from] OrderError),
    /// Nothing is bought.
    #[error(transparent)]
    Sale(#[from] SaleError),
    /// A stored exit kit.
    #[error(
        "the exit kit of factory {factory} is not good any more: {cause}; put a backup of the database back"
    )]
    Kit {
        /// The factory.
        factory: FactoryId,
        /// What is wrong with it.
        cause: KitError,
    },
    /// The coordinator cannot be reached.
    #[error(
        "the coordinator at {address} cannot be reached ({cause}); is it running, and is the connection string right?"
    )]
    Unreachable {
        /// Where.
        address: String,
        /// What the system said.
        cause: String,
    },
    /// The connection to the coordinator ended.
    #[error("the connection to the coordinator ended: {0}")]
    Disconnected(String),
    /// The coordinator refused something.
    #[error("the coordinator refused: {0}")]
    Refused(ServiceError),
    /// The coordinator is not who it should be, or says what it should not.
    #[error("the coordinator's handshake failed: {0}")]
    Handshake(String),
    /// The connection string cannot be used.
    #[error("the connection string cannot be used: {0}")]
    Connection(String),
    /// There is nothing to leave.
    #[error("factory {factory} is {state}: there is nothing to leave")]
    NothingToLeave {
        /// The factory.
        factory: FactoryId,
        /// Its state.
        state: &'static str,
    },
    /// The path can never be published with so little.
    #[error(
        "a budget of {budget_sat} sat (--max-fee) cannot bring the path onto the chain: at 1 sat/vB, the least that nodes relay, it takes {least_sat} sat; `quote-exit` shows what it costs"
    )]
    ExitBudget {
        /// What was given.
        budget_sat: u64,
        /// What it takes at the least.
        least_sat: u64,
    },
    /// There is nothing to sweep.
    #[error("no confirmed payout is worth sweeping")]
    NothingToSweep,
    /// The running process answered that it could not.
    #[error("{why}")]
    Answered {
        /// Why.
        why: String,
        /// What that process would have ended with.
        exit_code: u8,
    },
    /// A task ended in a way it never should.
    #[error("a task of this process failed: {0}; start it again")]
    Task(String),
}

impl Error {
    /// Exit code of the command line: 1 failed, 2 usage, 3 unreachable, 4 refused, or no such thing.
    #[must_use]
    pub fn exit_code(&self) -> u8 {
        match self {
            // There is no wallet, or there is one already.
            Self::Config(ConfigError::Missing { .. } | ConfigError::Exists { .. }) => 4,
            Self::Config(_) | Self::Connection(_) | Self::ExitBudget { .. } => 2,
            Self::Chain(
                ChainError::Unreachable { .. }
                | ChainError::Cookie { .. }
                | ChainError::NotReady { .. },
            )
            | Self::Unreachable { .. }
            | Self::NoLightning(_)
            | Self::Lightning(NodeError::Unreachable { .. })
            | Self::Asked(AskError::Away(_) | AskError::Silent(_))
            | Self::Disconnected(_) => 3,
            Self::Refused(_)
            | Self::Asked(AskError::Refused(_))
            | Self::PaymentRefused(_)
            | Self::Jit(_)
            | Self::Order(_)
            | Self::Lightning(NodeError::Refused(_) | NodeError::NotNow(_))
            | Self::NothingToLeave { .. }
            | Self::NothingToSweep
            | Self::Handshake(_)
            | Self::Lock(LockError::Held { .. })
            | Self::Store(StoreError::NoFactory(_)) => 4,
            Self::Sale(error) => error.exit_code(),
            Self::Answered { exit_code, .. } => *exit_code,
            _ => 1,
        }
    }
}
