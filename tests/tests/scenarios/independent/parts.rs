//! What LDK wants from its host, as simply as it can be.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError, RwLock};

use bitcoin::Transaction;
use lightning::chain::Filter;
use lightning::chain::chaininterface::{
    BroadcasterInterface, ConfirmationTarget, FeeEstimator, TransactionType,
};
use lightning::chain::chainmonitor::ChainMonitor;
use lightning::io;
use lightning::ln::channelmanager::ChannelManager;
use lightning::ln::peer_handler::{IgnoringMessageHandler, PeerManager};
use lightning::onion_message::messenger::DefaultMessageRouter;
use lightning::routing::gossip::NetworkGraph;
use lightning::routing::router::DefaultRouter;
use lightning::routing::scoring::{ProbabilisticScorer, ProbabilisticScoringFeeParameters};
use lightning::sign::{InMemorySigner, KeysManager};
use lightning::util::logger::{Level, Logger, Record};
use lightning::util::persist::KVStoreSync;
use lightning_liquidity::LiquidityManagerSync;
use lightning_liquidity::utils::time::DefaultTimeProvider;
use lightning_net_tokio::SocketDescriptor;

pub type Graph = Arc<NetworkGraph<Arc<Log>>>;
pub type Scorer = Arc<RwLock<ProbabilisticScorer<Graph, Arc<Log>>>>;
pub type Router = DefaultRouter<
    Graph,
    Arc<Log>,
    Arc<KeysManager>,
    Scorer,
    ProbabilisticScoringFeeParameters,
    ProbabilisticScorer<Graph, Arc<Log>>,
>;
pub type MessageRouter = DefaultMessageRouter<Graph, Arc<Log>, Arc<KeysManager>>;
pub type Monitors = ChainMonitor<
    InMemorySigner,
    Arc<dyn Filter + Send + Sync>,
    Arc<Sent>,
    Arc<Feerate>,
    Arc<Log>,
    Arc<Memory>,
    Arc<KeysManager>,
>;
pub type Manager = ChannelManager<
    Arc<Monitors>,
    Arc<Sent>,
    Arc<KeysManager>,
    Arc<KeysManager>,
    Arc<KeysManager>,
    Arc<Feerate>,
    Arc<Router>,
    Arc<MessageRouter>,
    Arc<Log>,
>;
pub type Liquidity = LiquidityManagerSync<
    Arc<KeysManager>,
    Arc<KeysManager>,
    Arc<Manager>,
    Arc<Memory>,
    DefaultTime,
    Arc<Sent>,
>;
pub type DefaultTime = Arc<DefaultTimeProvider>;
pub type Peers = PeerManager<
    SocketDescriptor,
    Arc<Manager>,
    Arc<IgnoringMessageHandler>,
    Arc<IgnoringMessageHandler>,
    Arc<Log>,
    Arc<Liquidity>,
    Arc<KeysManager>,
    Arc<Monitors>,
>;

/// Warnings and worse, for who reads why a test failed; and why payments of its own came back, which LDK tells nobody else in full.
#[derive(Debug, Default)]
pub struct Log(pub Mutex<Vec<String>>);

impl Logger for Log {
    fn log(&self, record: Record<'_>) {
        if matches!(record.level, Level::Error | Level::Warn) {
            eprintln!("independent: {} {}", record.module_path, record.args);
        }
        if matches!(record.level, Level::Info) {
            let text = record.args.to_string();
            let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
            all.extend(Some(text).filter(|text| text.starts_with("Onion Error")));
        }
    }
}

/// The least feerate, and no quarrel about others.
#[derive(Debug)]
pub struct Feerate;

impl FeeEstimator for Feerate {
    fn get_est_sat_per_1000_weight(&self, target: ConfirmationTarget) -> u32 {
        match target {
            ConfirmationTarget::MaximumFeeEstimate => 25_000,
            _ => 253,
        }
    }
}

/// What it would have sent to the chain.
#[derive(Debug, Default)]
pub struct Sent(pub Mutex<Vec<Transaction>>);

impl BroadcasterInterface for Sent {
    fn broadcast_transactions(&self, transactions: &[(&Transaction, TransactionType)]) {
        let mut sent = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        sent.extend(transactions.iter().map(|(tx, _)| (*tx).clone()));
    }
}

type Place = (String, String, String);

/// A store in memory.
#[derive(Debug, Default)]
pub struct Memory(Mutex<BTreeMap<Place, Vec<u8>>>);

fn place(primary: &str, secondary: &str, key: &str) -> Place {
    (primary.to_owned(), secondary.to_owned(), key.to_owned())
}

impl KVStoreSync for Memory {
    fn read(&self, primary: &str, secondary: &str, key: &str) -> Result<Vec<u8>, io::Error> {
        let all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        all.get(&place(primary, secondary, key))
            .cloned()
            .ok_or_else(|| io::Error::new(io::ErrorKind::NotFound, "nothing there"))
    }

    fn write(
        &self,
        primary: &str,
        secondary: &str,
        key: &str,
        bytes: Vec<u8>,
    ) -> Result<(), io::Error> {
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        all.insert(place(primary, secondary, key), bytes);
        Ok(())
    }

    fn remove(
        &self,
        primary: &str,
        secondary: &str,
        key: &str,
        _lazy: bool,
    ) -> Result<(), io::Error> {
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        all.remove(&place(primary, secondary, key));
        Ok(())
    }

    fn list(&self, primary: &str, secondary: &str) -> Result<Vec<String>, io::Error> {
        let all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let here = all
            .keys()
            .filter(|(a, b, _)| a == primary && b == secondary);
        Ok(here.map(|(_, _, key)| key.clone()).collect())
    }
}
