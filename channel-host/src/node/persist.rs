//! Monitors on the disk.

use std::collections::HashSet;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use lightning::chain::ChannelMonitorUpdateStatus;
use lightning::chain::chainmonitor::Persist;
use lightning::chain::channelmonitor::{ChannelMonitor, ChannelMonitorUpdate};
use lightning::sign::{InMemorySigner, KeysManager};
use lightning::util::persist::{MonitorName, MonitorUpdatingPersister};

use super::{Broadcaster, FeeCache, Log};
use crate::leaf_keys::LeafKeys;
use crate::store::Store;

pub(super) type Updating = MonitorUpdatingPersister<
    Arc<Store>,
    Log,
    Arc<KeysManager>,
    Arc<LeafKeys>,
    Arc<Broadcaster>,
    Arc<FeeCache>,
>;

/// LDK's persister, but for what happens when the store fails: LDK would panic. We leave the channel waiting for its update instead, for ever,
/// so that nothing is sent that depends on it, and the node stops by itself.
pub(super) struct MonitorStore {
    inner: Updating,
    /// Deleted, though LDK still has them in memory and would write them anew.
    forgotten: Mutex<HashSet<String>>,
}

impl MonitorStore {
    pub(super) fn new(inner: Updating) -> Self {
        Self {
            inner,
            forgotten: Mutex::default(),
        }
    }

    pub(super) fn forget(&self, name: &str) {
        self.lock().insert(name.to_owned());
    }

    fn lock(&self) -> MutexGuard<'_, HashSet<String>> {
        self.forgotten
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }
}

fn or_wait(status: ChannelMonitorUpdateStatus) -> ChannelMonitorUpdateStatus {
    match status {
        ChannelMonitorUpdateStatus::UnrecoverableError => ChannelMonitorUpdateStatus::InProgress,
        status => status,
    }
}

impl Persist<InMemorySigner> for MonitorStore {
    fn persist_new_channel(
        &self,
        name: MonitorName,
        monitor: &ChannelMonitor<InMemorySigner>,
    ) -> ChannelMonitorUpdateStatus {
        or_wait(self.inner.persist_new_channel(name, monitor))
    }

    fn update_persisted_channel(
        &self,
        name: MonitorName,
        update: Option<&ChannelMonitorUpdate>,
        monitor: &ChannelMonitor<InMemorySigner>,
    ) -> ChannelMonitorUpdateStatus {
        if self.lock().contains(&name.to_string()) {
            return ChannelMonitorUpdateStatus::Completed;
        }
        or_wait(self.inner.update_persisted_channel(name, update, monitor))
    }

    fn archive_persisted_channel(&self, name: MonitorName) {
        Persist::<InMemorySigner>::archive_persisted_channel(&self.inner, name);
    }
}
