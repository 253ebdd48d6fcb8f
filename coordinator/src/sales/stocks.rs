//! A stock as it stands: what was sold from it, who shares it, and what keeps it from being sold from.

use bitcoin::{Amount, OutPoint};
use factory_tree::ids::{ClientId, FactoryId};
use factory_tree::sale::{Sale, Stock, StockError};

use super::channel;
use super::error::{NoSale, SalesError};
use crate::context::Context;
use crate::store::attempts::AttemptState;
use crate::store::factories::{self, FactoryRow};
use crate::store::sales::{self as rows, SaleRow};

/// A stock with everything that was sold from it.
#[derive(Debug)]
pub(crate) struct KnownStock {
    /// Its factory.
    pub factory: FactoryRow,
    /// What is left.
    pub stock: Stock,
    /// Who shares it, in leaf order.
    pub clients: Vec<ClientId>,
    /// Sales that were paid for, or may have been signed, in their order.
    rows: Vec<SaleRow>,
    unsold: Stock,
}

/// The stock that the client at `position` of a factory shares; `None` if it shares none.
pub(crate) async fn known(
    ctx: &Context,
    factory: FactoryId,
    position: u32,
) -> Result<Option<KnownStock>, SalesError> {
    let known = ctx.trees.get(&ctx.store, factory).await?;
    let unsold = match Stock::of_tree(&known.tree, position) {
        Ok(stock) => stock,
        Err(StockError::NoStock(_)) => return Ok(None),
        Err(error) => return Err(error.into()),
    };
    let read = ctx.store.read(async |tx| {
        Ok((
            factories::get(tx, factory).await?,
            rows::of_factory(tx, factory).await?,
        ))
    });
    let (row, mut sales) = read.await?;
    sales.retain(|sale| sale.order.stock == unsold.outpoint());
    let range = unsold.clients();
    let members = known.tree.spec().members.iter();
    let members = members
        .skip(range.start as usize)
        .take(range.len())
        .map(|member| member.client);
    let mut all = KnownStock {
        factory: row.ok_or(NoSale::NoFactory)?,
        clients: members.collect(),
        rows: sales,
        stock: unsold.clone(),
        unsold,
    };
    all.stock = all.before(u8::MAX)?;
    Ok(Some(all))
}

/// Whether a factory is one that something can be sold from.
pub(super) fn stands(row: &FactoryRow) -> Result<(), NoSale> {
    if row.spent || row.forgotten {
        return Err(NoSale::Published(row.id));
    }
    if row.state != AttemptState::FundingSigned || !row.usable {
        return Err(NoSale::NotUsable(row.id));
    }
    Ok(())
}

/// Whether something can be sold from a stock now, to whomever it is not reserved from.
pub(crate) fn sells(ctx: &Context, known: &KnownStock) -> Result<(), NoSale> {
    known.is_open(ctx.height())?;
    if known.under_way().is_some() {
        return Err(NoSale::Busy);
    }
    if channel::is_stuck(ctx, known) {
        return Err(NoSale::Stuck);
    }
    let most = known.stock.params().chain_depth_max;
    if known.stock.next_number() > most {
        return Err(NoSale::MostSales(most));
    }
    if known.stock.tip().is_none() {
        return Err(NoSale::NoStock);
    }
    match ctx.sales.who_declines(known.outpoint()) {
        Some(_) => Err(NoSale::Declined(known.factory.id)),
        None => Ok(()),
    }
}

impl KnownStock {
    /// The stock before its sale number `place`.
    pub(crate) fn before(&self, place: u8) -> Result<Stock, StockError> {
        let mut stock = self.unsold.clone();
        let sold = self.rows.iter().filter_map(|row| row.sold.as_ref());
        for sold in sold.filter(|sold| sold.sale.number < place) {
            stock.push(sold.sale.clone())?;
        }
        Ok(stock)
    }

    /// What it held at birth.
    pub(crate) fn birth_amount(&self) -> Amount {
        self.unsold.amount()
    }

    /// What names it.
    pub(crate) fn outpoint(&self) -> OutPoint {
        self.unsold.outpoint()
    }

    /// The sale that is under way.
    pub(crate) fn under_way(&self) -> Option<&SaleRow> {
        self.rows.iter().find(|row| row.keeps_stock())
    }

    /// The sale that was begun and not completed: nothing else is sold before it.
    pub(crate) fn reserved(&self) -> Option<&SaleRow> {
        self.rows.iter().find(|row| row.reserves_stock())
    }

    /// The terms that are bound.
    pub(crate) fn bound(&self) -> Option<&Sale> {
        self.reserved().and_then(|row| row.bound.as_ref())
    }

    /// The last height at which a sale may be signed.
    pub(crate) fn sign_until(&self) -> u32 {
        self.stock.schedule().dying_from.0.saturating_sub(1)
    }

    /// Whether the factory lets anything be sold at `height`.
    pub(crate) fn is_open(&self, height: u32) -> Result<(), NoSale> {
        stands(&self.factory)?;
        if height > self.sign_until() {
            return Err(NoSale::Dying(self.factory.id));
        }
        Ok(())
    }
}
