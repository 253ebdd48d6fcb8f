//! Sales that were signed before a restart, and those that a kit has already: their finals are still taken, and acknowledged again.

use std::sync::Arc;

use factory_tree::ids::{Attempt, FactoryId, SaleId};
use factory_tree::kit::ExitKit;
use factory_tree::sale::CoSigner;
use factory_tree::sale::cosigner::PendingSale;
use factory_tree::sale::message::SaleRound;

use super::Driver;
use crate::ceremony::blocking;
use crate::error::Result;
use crate::store::FactoryRow;

impl Driver {
    /// The machine of a sale that was signed before a restart, or is in a kit already. Its signatures are of the terms, whichever attempt
    /// they were made in.
    pub(super) async fn resumed(&self, round: SaleRound) -> Result<Option<(FactoryId, CoSigner)>> {
        let pending = self.client.store.pending_sales().await?;
        let pending = pending
            .into_iter()
            .find(|(_, pending)| pending.sale.id == round.sale);
        let found = match pending {
            Some((factory, pending)) => self.sound(factory).await?.map(|kit| (kit, pending)),
            None => self.kept(round.sale).await?,
        };
        let Some((kit, pending)) = found else {
            return Ok(None);
        };
        let (factory, pending) = (kit.factory_id, PendingSale { round, ..pending });
        let secrets = self.secrets(&kit);
        let kit = ExitKit::clone(&kit);
        match blocking(move || CoSigner::resume(pending, kit, secrets)).await? {
            Ok(machine) => Ok(Some((factory, machine))),
            Err(error) => {
                tracing::warn!(%error, "a sale that was signed is not the next any more");
                Ok(None)
            }
        }
    }

    /// The kit of a factory that is still ours.
    pub(super) async fn sound(&self, factory: FactoryId) -> Result<Option<Arc<ExitKit>>> {
        let row = self.client.store.factory(factory).await?;
        if !is_ours(&row) {
            return Ok(None);
        }
        self.client.kits.sound(factory).await
    }

    /// The kit that has this sale.
    async fn kept(&self, sale: SaleId) -> Result<Option<(Arc<ExitKit>, PendingSale)>> {
        for row in self.client.store.factories().await? {
            if !is_ours(&row) {
                continue;
            }
            let Some(kit) = self.client.kits.sound(row.factory).await? else {
                continue;
            };
            let held = kit.sales.iter().find(|held| held.id == sale).cloned();
            if let Some(sale) = held {
                let pending = PendingSale {
                    round: SaleRound {
                        sale: sale.id,
                        attempt: Attempt(0),
                    },
                    sale,
                    channel_signature: None,
                };
                return Ok(Some((kit, pending)));
            }
        }
        Ok(None)
    }
}

/// Whether what is signed in a factory is ours to use.
fn is_ours(row: &FactoryRow) -> bool {
    row.is_live() && !row.is_given_away()
}
