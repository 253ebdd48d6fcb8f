//! The watcher against stores on the disk: it must see what is wrong, and nothing where all is well.

use anyhow::Result;
use bitcoin::{Amount, Network, OutPoint, Txid, hashes::Hash};
use channel_host::LeafId;
use factory_tree::ceremony::message::Round;
use factory_tree::kit::ExitKit;
use factory_tree::params::{FactoryParams, Profile};
use factory_tree::testing::TestFactory;
use factory_tree::units::Height;
use signer_client::store::{ChannelStore, SqliteStore};
use signer_client::store::{FactoryRow, FactoryStore, Identity, IdentityStore, JoinRow, JoinStore};
use signer_client::{ChannelState, ChannelView};
use sqlx::sqlite::SqliteConnectOptions;
use sqlx::{Connection, SqliteConnection};
use tempfile::TempDir;

use super::*;

const BALANCE: u64 = 50_000_000;

/// A wallet's store with one factory in use, and something on Lightning in it.
struct Wallet {
    room: TempDir,
    store: SqliteStore,
    kit: ExitKit,
}

impl Wallet {
    async fn new() -> Result<Self> {
        let params = FactoryParams::profile(Profile::Lite, Network::Regtest);
        let factory = TestFactory::new(7, params, 3)?;
        let (id, data) = (factory.clients[0].id(), factory.clients[0].join_data());
        let kit = factory.sign().kit(0);
        let room = tempfile::tempdir()?;
        let store = SqliteStore::open(room.path().join("client.sqlite")).await?;
        let identity = Identity {
            network: Network::Regtest,
            node_id: id,
            birthday: None,
        };
        store.claim(&identity).await?;
        let round = Round {
            ceremony: kit.ceremony,
            attempt: kit.attempt,
        };
        let common_pin = OutPoint::new(Txid::all_zeros(), 1);
        store
            .record_join(&JoinRow {
                join_nonce: data.join_nonce,
                round,
                leaf_id: data.leaf_id,
                factory_key: data.factory_key,
                channel_key: data.channel_key,
                payout_script: data.payout_script,
                common_pin,
                capacity: kit.capacity,
            })
            .await?;
        let wallet = Self { room, store, kit };
        wallet
            .factory(&wallet.kit.to_json()?, round, common_pin)
            .await?;
        wallet.balance(BALANCE).await?;
        Ok(wallet)
    }

    async fn factory(&self, kit: &str, round: Round, common_pin: OutPoint) -> Result<()> {
        let row = FactoryRow {
            factory: self.kit.factory_id,
            round,
            join_nonce: self.kit.join_nonce,
            funding: self.kit.funding(),
            common_pin,
            capacity: self.kit.capacity,
            birth: self.kit.birth,
            expiry: self.kit.expiry,
            confirmations: 1,
            fee: Amount::ZERO,
            acked: true,
            failed: false,
            confirmed: None,
            usable: false,
            abandoned: None,
            closed: None,
            handover: None,
        };
        self.store.store_kit(&row, kit.as_bytes()).await?;
        let height = Some(Height(self.kit.birth.0 + 1));
        Ok(self.store.set_confirmed(row.factory, height, true).await?)
    }

    async fn balance(&self, msat: u64) -> Result<()> {
        let view = ChannelView {
            factory: Some(self.kit.factory_id),
            leaf: self.kit.leaf_id.to_string(),
            channel: None,
            state: ChannelState::Open,
            outpoint: self.kit.channel_outpoint().context("a channel")?,
            capacity_sat: self.kit.capacity.to_sat(),
            ours_msat: msat,
            spendable_msat: msat,
            receivable_msat: 0,
            pending: 0,
            usable: true,
            factory_confirmed: true,
            leaf_height: None,
            spent: None,
            closing_sat: 0,
        };
        Ok(self
            .store
            .set_channel(LeafId(self.kit.leaf_id.0), &view)
            .await?)
    }

    fn path(&self) -> PathBuf {
        self.room.path().join("client.sqlite")
    }

    async fn execute(&self, sql: &'static str, values: &[&str]) -> Result<()> {
        let options = SqliteConnectOptions::new().filename(self.path());
        let mut store = SqliteConnection::connect_with(&options).await?;
        let mut query = sqlx::query(sql);
        for value in values {
            query = query.bind(*value);
        }
        query.execute(&mut store).await?;
        Ok(store.close().await?)
    }

    /// What a watcher says at the end of a scenario with this wallet.
    fn watched(&self) -> Result<Watch> {
        let mut watcher = Watcher::start()?;
        watcher.watch("client", &self.path());
        watcher.finish()
    }
}

#[tokio::test]
async fn a_complete_exit_is_complete() -> Result<()> {
    let wallet = Wallet::new().await?;
    let watch = wallet.watched()?;
    assert!(
        watch.looks > 0 && watch.rehearsed == watch.looks,
        "{watch:?}"
    );
    Ok(())
}

#[tokio::test]
async fn a_missing_kit_is_seen() -> Result<()> {
    let wallet = Wallet::new().await?;
    wallet.execute("DELETE FROM kits", &[]).await?;
    let said = wallet.watched().unwrap_err().to_string();
    assert!(said.contains("no exit from factory"), "{said}");
    Ok(())
}

/// One signature of the kit is another's.
#[tokio::test]
async fn a_damaged_kit_is_seen() -> Result<()> {
    let wallet = Wallet::new().await?;
    let mut kit = wallet.kit.clone();
    let other = kit.txs[1].tx.input[0].witness.clone();
    kit.txs[0].tx.input[0].witness = other;
    let text = kit.to_json()?;
    wallet
        .execute("UPDATE kits SET kit = CAST(? AS BLOB)", &[&text])
        .await?;
    let said = wallet.watched().unwrap_err().to_string();
    assert!(said.contains("no exit from factory"), "{said}");
    Ok(())
}

/// A balance that a move has left is none.
#[tokio::test]
async fn keys_given_away_too_early_are_seen() -> Result<()> {
    let wallet = Wallet::new().await?;
    for handover in ["begun", "sent"] {
        wallet
            .execute("UPDATE factories SET handover = ?", &[handover])
            .await?;
        let said = wallet.watched();
        // The gate alone can be opened again.
        assert_eq!(said.is_err(), handover == "sent", "{said:?}");
    }
    wallet.balance(0).await?;
    wallet.watched()?;
    Ok(())
}

/// The factory is over for the wallet, while there is still something in it.
#[tokio::test]
async fn giving_a_factory_up_too_early_is_seen() -> Result<()> {
    let wallet = Wallet::new().await?;
    wallet
        .store
        .set_closed(wallet.kit.factory_id, Some(Height(200)))
        .await?;
    let said = wallet.watched().unwrap_err().to_string();
    assert!(said.contains("50000000 msat"), "{said}");
    wallet.balance(0).await?;
    wallet.watched()?;
    Ok(())
}

/// More than the exit brings.
#[tokio::test]
async fn a_balance_over_the_exit_is_seen() -> Result<()> {
    let wallet = Wallet::new().await?;
    wallet
        .balance(wallet.kit.capacity.to_sat() * 1000 + 1)
        .await?;
    let said = wallet.watched().unwrap_err().to_string();
    assert!(said.contains("holds less"), "{said}");
    Ok(())
}

/// The wallet's process writes all the time, and is killed: what is in the log counts.
#[tokio::test]
async fn what_is_only_in_the_log_is_seen() -> Result<()> {
    let wallet = Wallet::new().await?;
    assert!(wallet.path().with_extension("sqlite-wal").exists());
    let mut watcher = Watcher::start()?;
    watcher.watch("client", &wallet.path());
    for msat in 0..50 {
        wallet.balance(BALANCE - msat).await?;
    }
    wallet
        .store
        .set_closed(wallet.kit.factory_id, Some(Height(200)))
        .await?;
    assert!(watcher.finish().is_err());
    Ok(())
}
