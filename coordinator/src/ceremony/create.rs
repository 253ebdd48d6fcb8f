//! A ceremony's beginning and its end from outside: create, resume after a restart, cancel.

use std::sync::Arc;

use bitcoin::{Amount, FeeRate, OutPoint};
use factory_tree::ids::{CeremonyId, ClientId, FactoryId};
use factory_tree::params::ParamsError;
use factory_tree::shape::Shape;
use factory_tree::units::Height;
use tokio::sync::watch;

use super::{Mail, driver, gather};
use crate::context::{ChainState, Context};
use crate::keys::random;
use crate::store::ceremonies::{self, CeremonyState, Wish};
use crate::store::{Store, StoreError, ladder, lsps1};
use crate::{fault, funding};

/// Why a ceremony is not begun, or not given up.
#[derive(Debug, thiserror::Error)]
pub enum CreateError {
    /// The node is away.
    #[error("the Bitcoin node cannot be used ({0}); wait until it can")]
    Chain(String),
    /// As many as are allowed.
    #[error(
        "{running} ceremonies are under way, and ceremony.max_running allows no more; wait for one to end"
    )]
    TooMany {
        /// How many there are.
        running: usize,
    },
    /// Not enough clients.
    #[error(
        "{} interested and could be invited, {needed} are needed; wait for more (--clients), or lower --min-clients",
        match *.interested { 1 => "1 client is".to_owned(), many => format!("{many} clients are") }
    )]
    TooFewClients {
        /// How many there are.
        interested: usize,
        /// How many there should be.
        needed: u32,
    },
    /// More than are invited into one factory.
    #[error("{clients} clients are more than ceremony.max_clients allows ({limit})")]
    TooManyClients {
        /// Asked for.
        clients: u32,
        /// Allowed.
        limit: u32,
    },
    /// Fewer than two, or more at least than at all.
    #[error(
        "--min-clients {min}{}: a factory has 2 clients or more, and --clients must not be less than --min-clients (left out: ceremony.min_clients)",
        .clients.map_or_else(String::new, |asked| format!(", --clients {asked}"))
    )]
    Clients {
        /// `--min-clients`.
        min: u32,
        /// `--clients`.
        clients: Option<u32>,
    },
    /// A capacity outside the policy.
    #[error("a capacity of {} sat is outside the policy ({} to {} sat)", .capacity.to_sat(), .min.to_sat(), .max.to_sat())]
    Capacity {
        /// Asked for.
        capacity: Amount,
        /// Least.
        min: Amount,
        /// Largest.
        max: Amount,
    },
    /// A feerate that is not paid.
    #[error(
        "a feerate of {wanted} sat/vB is outside of what is paid (1 to {max} sat/vB); lower it, or raise chain.max_feerate"
    )]
    Feerate {
        /// Asked for, rounded up.
        wanted: u64,
        /// `chain.max_feerate`.
        max: u32,
    },
    /// The shape.
    #[error(transparent)]
    Params(#[from] ParamsError),
    /// The wallet has less.
    #[error(
        "about {} sat are needed, and the wallet has {} sat confirmed and free; send it coins (`coordinator wallet address`)",
        .needed.to_sat(), .available.to_sat()
    )]
    NoFunds {
        /// Estimate.
        needed: Amount,
        /// In the wallet.
        available: Amount,
    },
    /// Absurd amounts.
    #[error("the capacities add up to more than 21 million bitcoin")]
    Overflow,
    /// No such ceremony.
    #[error("there is no ceremony or factory {0}")]
    Unknown(String),
    /// Over.
    #[error(
        "ceremony {ceremony} is {state}: its funding is signed or given up, and neither can be undone"
    )]
    Over {
        /// Which.
        ceremony: CeremonyId,
        /// Its state.
        state: &'static str,
    },
    /// The database.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The wallet.
    #[error(transparent)]
    Wallet(#[from] chain::wallet::WalletError),
}

/// Begins a ceremony.
///
/// # Errors
/// [`CreateError`]; then nothing was begun.
pub async fn create(
    ctx: &Arc<Context>,
    wish: Wish,
    shutdown: watch::Receiver<bool>,
) -> Result<CeremonyId, CreateError> {
    create_for(ctx, wish, Called::default(), shutdown).await
}

/// What is noted of a rung's birth together with it, and not without it.
#[derive(Clone, Debug, Default)]
pub struct Called {
    /// Members of dying factories, and which invitation this is to them.
    pub leaving: Vec<(ClientId, FactoryId, u8)>,
    /// Orders (LSPS1) for which there is a place.
    pub orders: Vec<String>,
}

/// Begins the ceremony of a rung.
///
/// # Errors
/// [`CreateError`]; then nothing was begun.
pub async fn create_for(
    ctx: &Arc<Context>,
    wish: Wish,
    called: Called,
    shutdown: watch::Receiver<bool>,
) -> Result<CeremonyId, CreateError> {
    check(ctx, &wish).await?;
    let id = CeremonyId(random());
    let height = ctx.height();
    ctx.store
        .write(async |tx| {
            ceremonies::insert(tx, id, height, &wish).await?;
            let Some(rung) = wish.rung else {
                return Ok(());
            };
            ladder::invited(tx, rung, &called.leaving).await?;
            lsps1::seated(tx, &called.orders, id).await
        })
        .await?;
    fault::point("ladder_invited");
    driver::spawn(Arc::clone(ctx), id, driver::Origin::Operator, shutdown);
    Ok(id)
}

async fn check(ctx: &Context, wish: &Wish) -> Result<(), CreateError> {
    let height = match &*ctx.chain.borrow() {
        ChainState::Ready(height) => *height,
        ChainState::Away(problem) => return Err(CreateError::Chain(problem.clone())),
    };
    let limits = &ctx.config.ceremony;
    let running = ctx.ceremonies.running().len();
    if running >= limits.max_running as usize {
        return Err(CreateError::TooMany { running });
    }
    let clients = wish.clients;
    if wish.min_clients < 2 || clients.is_some_and(|clients| clients < wish.min_clients) {
        return Err(CreateError::Clients {
            min: wish.min_clients,
            clients,
        });
    }
    let most = clients.unwrap_or(wish.min_clients);
    if most > limits.max_clients {
        return Err(CreateError::TooManyClients {
            clients: most,
            limit: limits.max_clients,
        });
    }
    let (min, max) = (
        ctx.config.policy.capacity_min_sat,
        ctx.config.policy.capacity_max_sat,
    );
    if let Some(capacity) = wish
        .capacity
        .filter(|capacity| !(min..=max).contains(&capacity.to_sat()))
    {
        return Err(CreateError::Capacity {
            capacity,
            min: Amount::from_sat(min),
            max: Amount::from_sat(max),
        });
    }
    let max = ctx.config.chain.max_feerate;
    let paid = FeeRate::BROADCAST_MIN..=FeeRate::from_sat_per_vb_u32(max);
    if let Some(rate) = wish.feerate_sat_per_kwu.map(FeeRate::from_sat_per_kwu)
        && !paid.contains(&rate)
    {
        let wanted = rate.to_sat_per_vb_ceil();
        return Err(CreateError::Feerate { wanted, max });
    }
    let shape = Shape::new(&wish.params, most)?;
    wish.params.schedule(Height(height), shape.levels())?;
    let candidates = gather::candidates(ctx, wish).await?;
    if clients.is_none() && candidates.len() < wish.min_clients as usize {
        let (interested, needed) = (candidates.len(), wish.min_clients);
        return Err(CreateError::TooFewClients { interested, needed });
    }
    let wanted = clients.unwrap_or(limits.max_clients) as usize;
    let known: Vec<_> = candidates.into_iter().take(wanted).collect();
    let needed = funding::estimate(&wish.params, &gather::capacities(&known))
        .ok_or(CreateError::Overflow)?;
    let available = ctx.wallet.balance().await?.confirmed;
    if needed > available {
        return Err(CreateError::NoFunds { needed, available });
    }
    Ok(())
}

/// Goes on with every ceremony that was under way when the coordinator stopped.
///
/// # Errors
/// Those of the database.
pub async fn resume_all(
    ctx: &Arc<Context>,
    shutdown: &watch::Receiver<bool>,
) -> Result<(), StoreError> {
    let (open, pins) = read_open(&ctx.store).await?;
    ctx.wallet.reserve(pins).await;
    for id in open {
        let origin = driver::Origin::Restart;
        driver::spawn(Arc::clone(ctx), id, origin, shutdown.clone());
    }
    Ok(())
}

async fn read_open(store: &Store) -> Result<(Vec<CeremonyId>, Vec<OutPoint>), StoreError> {
    store
        .read(async |tx| {
            let open = ceremonies::open(tx).await?;
            Ok((
                open.into_iter().map(|row| row.id).collect(),
                ceremonies::all_pins(tx).await?,
            ))
        })
        .await
}

/// Gives a ceremony up whose funding was never signed, and returns the coins that are free again.
///
/// # Errors
/// [`CreateError::Unknown`], [`CreateError::Over`].
pub async fn cancel(ctx: &Context, id: CeremonyId) -> Result<Vec<OutPoint>, CreateError> {
    let read = async || {
        let row = ctx
            .store
            .read(async |tx| ceremonies::get(tx, id).await)
            .await?;
        row.ok_or_else(|| CreateError::Unknown(id.to_string()))
    };
    let over = |state: CeremonyState| CreateError::Over {
        ceremony: id,
        state: state.name(),
    };
    let row = read().await?;
    if !row.state.is_open() {
        return Err(over(row.state));
    }
    let pins = ctx
        .store
        .read(async |tx| ceremonies::pins(tx, id).await)
        .await?;
    ctx.ceremonies.deliver(id, Mail::Cancel).await;
    driver::wait_until_over(ctx, id).await;
    let row = read().await?;
    if row.state != CeremonyState::Failed {
        return Err(over(row.state));
    }
    Ok(pins.into_iter().map(|pin| pin.outpoint).collect())
}
