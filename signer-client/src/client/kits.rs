//! Exit kits in memory, read from the store once, and verified when they are.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use factory_tree::ids::FactoryId;
use factory_tree::kit::{ExitKit, KitError};
use tokio::sync::Mutex;

use crate::error::{Error, Result};
use crate::store::{SharedStore, StoreError};

/// Kits by factory.
#[derive(Debug)]
pub(crate) struct KitCache {
    store: SharedStore,
    kits: Mutex<HashMap<FactoryId, Arc<ExitKit>>>,
    version: AtomicU64,
    /// Factories whose kit is no good, so that it is told once and not read again.
    damaged: Mutex<HashSet<FactoryId>>,
}

impl KitCache {
    pub(crate) fn new(store: SharedStore) -> Self {
        Self {
            store,
            kits: Mutex::default(),
            version: AtomicU64::new(0),
            damaged: Mutex::default(),
        }
    }

    /// Grows when a kit is added.
    pub(crate) fn version(&self) -> u64 {
        self.version.load(Ordering::Acquire)
    }

    /// Another kit was stored in the place of this factory's.
    pub(crate) async fn replaced(&self, factory: FactoryId) {
        self.kits.lock().await.remove(&factory);
        self.added();
    }

    /// A kit was stored: whoever watches its outpoints must hear of it.
    pub(crate) fn added(&self) {
        self.version.fetch_add(1, Ordering::Release);
    }

    /// The kit of a factory, as it is on the disk.
    pub(crate) async fn get(&self, factory: FactoryId) -> Result<Arc<ExitKit>> {
        let mut kits = self.kits.lock().await;
        if let Some(kit) = kits.get(&factory) {
            return Ok(Arc::clone(kit));
        }
        let kit = Arc::new(self.read(factory).await?);
        kits.insert(factory, Arc::clone(&kit));
        Ok(kit)
    }

    /// The kit of a factory, or nothing if it is no good: whoever looks after all factories must
    /// not stop at one.
    pub(crate) async fn sound(&self, factory: FactoryId) -> Result<Option<Arc<ExitKit>>> {
        if self.damaged.lock().await.contains(&factory) {
            return Ok(None);
        }
        match self.get(factory).await {
            Ok(kit) => Ok(Some(kit)),
            Err(error @ (Error::Kit { .. } | Error::Store(StoreError::NoFactory(_)))) => {
                tracing::error!(%error, "this factory cannot be left");
                self.damaged.lock().await.insert(factory);
                Ok(None)
            }
            Err(error) => Err(error),
        }
    }

    /// Reads a kit back from the store and verifies it by itself (rule 16).
    pub(crate) async fn read(&self, factory: FactoryId) -> Result<ExitKit> {
        let bytes = self.store.kit(factory).await?;
        let wrong = move |cause| Error::Kit { factory, cause };
        let verified = tokio::task::spawn_blocking(move || {
            let text = String::from_utf8(bytes).map_err(|e| KitError::Format(e.to_string()))?;
            let kit = ExitKit::from_json(&text)?;
            kit.verify()?;
            Ok::<_, KitError>(kit)
        });
        let kit = verified
            .await
            .map_err(|error| Error::Task(error.to_string()))?
            .map_err(wrong)?;
        if kit.factory_id != factory {
            return Err(wrong(KitError::Format(format!(
                "it is the kit of factory {}",
                kit.factory_id
            ))));
        }
        Ok(kit)
    }
}
