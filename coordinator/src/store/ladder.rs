//! What the ladder knows of its factories and their clients beyond how they were built.

use bitcoin::Amount;
use factory_tree::handover::MaskedKeys;
use factory_tree::ids::{ClientId, FactoryId, LeafId};
use factory_tree::ladder::Warning;
use sqlx::Row;
use sqlx::sqlite::SqliteRow;

use super::{Conn, Result, StoreError, codec};

/// What became of a member.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MemberRow {
    /// Its account.
    pub client: ClientId,
    /// Its factory.
    pub factory: FactoryId,
    /// Its place there.
    pub position: u32,
    /// Its capacity.
    pub capacity: Amount,
    /// The leaf of its channel.
    pub leaf: LeafId,
    /// What it agreed to pay when its balance moves in.
    pub fee: Amount,
    /// Whether that was taken.
    pub fee_taken: bool,
    /// Invitations to younger factories, and the rung of the last.
    pub invited: Option<(u8, u32)>,
    /// The loudest notice it was sent.
    pub warned: Option<Warning>,
    /// Whether we have its keys.
    pub handed_over: bool,
    /// Whether its path is to be published.
    pub publishing: bool,
}

/// Keys that were handed over.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HandoverRow {
    /// Whose, in leaf order.
    pub position: u32,
    /// The keys.
    pub keys: MaskedKeys,
}

const fn warning_name(warning: Warning) -> &'static str {
    match warning {
        Warning::Early => "early",
        Warning::Dying => "dying",
        Warning::LastDay => "last_day",
        Warning::Over => "over",
    }
}

fn warning(name: &str) -> Result<Warning> {
    let all = [
        Warning::Early,
        Warning::Dying,
        Warning::LastDay,
        Warning::Over,
    ];
    let found = all
        .into_iter()
        .find(|warning| warning_name(*warning) == name);
    found.ok_or_else(|| StoreError::value("warning", name))
}

/// The planned height of the first birth, once the ladder was enabled.
///
/// # Errors
/// Those of the database.
pub async fn first(conn: &mut Conn) -> Result<Option<u32>> {
    let height: Option<i64> = sqlx::query_scalar("SELECT first_height FROM ladder")
        .fetch_optional(conn)
        .await?;
    codec::optional("height", height)
}

/// The ladder begins at this height, if it has not begun.
///
/// # Errors
/// Those of the database.
pub async fn begin(conn: &mut Conn, height: u32) -> Result<()> {
    sqlx::query("INSERT INTO ladder (id, first_height) VALUES (1, ?) ON CONFLICT DO NOTHING")
        .bind(height)
        .execute(conn)
        .await?;
    Ok(())
}

/// The members of all funded factories that are not forgotten, in leaf order; or one client's places in them.
///
/// # Errors
/// Those of the database.
pub async fn members(conn: &mut Conn, only: Option<ClientId>) -> Result<Vec<MemberRow>> {
    let only = only.map(|client| client.0.to_vec());
    let rows = sqlx::query(
        "SELECT m.client, m.factory, m.position, m.capacity_sat, m.leaf_id, m.fee_sat, m.fee_taken, m.tries, m.rung, m.warned, \
         EXISTS (SELECT 1 FROM handover h WHERE h.leaf_id = m.leaf_id) AS handed_over, \
         EXISTS (SELECT 1 FROM exit e WHERE e.leaf_id = m.leaf_id) AS publishing \
         FROM member m JOIN factory f USING (factory) WHERE f.state = 'funding_signed' AND f.forgotten = 0 \
         AND (?1 IS NULL OR m.client = ?1) ORDER BY f.number, m.position",
    )
    .bind(only)
    .fetch_all(conn)
    .await?;
    rows.iter().map(member).collect()
}

fn member(row: &SqliteRow) -> Result<MemberRow> {
    let amount = |name| -> Result<Amount> {
        Ok(Amount::from_sat(codec::number(
            "amount",
            row.try_get(name)?,
        )?))
    };
    let leaf: &[u8] = row.try_get("leaf_id")?;
    let tries: u8 = codec::number("count", row.try_get("tries")?)?;
    let rung: Option<u32> = codec::optional("rung", row.try_get("rung")?)?;
    let warned: Option<&str> = row.try_get("warned")?;
    Ok(MemberRow {
        client: codec::client(row.try_get("client")?)?,
        factory: codec::factory(row.try_get("factory")?)?,
        position: codec::number("position", row.try_get("position")?)?,
        capacity: amount("capacity_sat")?,
        leaf: LeafId::try_from(leaf).map_err(|error| StoreError::value("leaf id", error))?,
        fee: amount("fee_sat")?,
        fee_taken: row.try_get("fee_taken")?,
        invited: rung.filter(|_| tries > 0).map(|rung| (tries, rung)),
        warned: warned.map(warning).transpose()?,
        handed_over: row.try_get("handed_over")?,
        publishing: row.try_get("publishing")?,
    })
}

/// The losses that were reported, by factory.
///
/// # Errors
/// Those of the database.
pub async fn losses(conn: &mut Conn) -> Result<Vec<(FactoryId, Amount)>> {
    let rows = sqlx::query("SELECT factory, loss_sat FROM factory WHERE loss_sat IS NOT NULL")
        .fetch_all(conn)
        .await?;
    rows.iter()
        .map(|row| {
            let sat = codec::number("amount", row.try_get("loss_sat")?)?;
            Ok((
                codec::factory(row.try_get("factory")?)?,
                Amount::from_sat(sat),
            ))
        })
        .collect()
}

/// A loss was reported.
///
/// # Errors
/// Those of the database.
pub async fn set_loss(conn: &mut Conn, factory: FactoryId, loss: Amount) -> Result<()> {
    sqlx::query("UPDATE factory SET loss_sat = ? WHERE factory = ?")
        .bind(codec::int("amount", loss.to_sat())?)
        .bind(factory.0.as_slice())
        .execute(conn)
        .await?;
    Ok(())
}

/// Everything of a factory is spent and buried.
///
/// # Errors
/// Those of the database.
pub async fn forget(conn: &mut Conn, factory: FactoryId) -> Result<()> {
    sqlx::query("UPDATE factory SET forgotten = 1 WHERE factory = ?")
        .bind(factory.0.as_slice())
        .execute(conn)
        .await?;
    Ok(())
}

/// A notice was sent.
///
/// # Errors
/// Those of the database.
pub async fn set_warned(
    conn: &mut Conn,
    client: ClientId,
    factory: FactoryId,
    level: Warning,
) -> Result<()> {
    sqlx::query("UPDATE member SET warned = ? WHERE client = ? AND factory = ?")
        .bind(warning_name(level))
        .bind(client.0.as_slice())
        .bind(factory.0.as_slice())
        .execute(conn)
        .await?;
    Ok(())
}

/// Members of dying factories are invited to this rung; `attempt` is which invitation it is.
///
/// # Errors
/// Those of the database.
pub async fn invited(
    conn: &mut Conn,
    rung: u32,
    members: &[(ClientId, FactoryId, u8)],
) -> Result<()> {
    for (client, factory, attempt) in members {
        sqlx::query("UPDATE member SET tries = ?, rung = ? WHERE client = ? AND factory = ?")
            .bind(*attempt)
            .bind(rung)
            .bind(client.0.as_slice())
            .bind(factory.0.as_slice())
            .execute(&mut *conn)
            .await?;
    }
    Ok(())
}

/// What clients agreed to pay when their balances move into a factory, in leaf order.
///
/// # Errors
/// Those of the database.
pub async fn set_fees(conn: &mut Conn, factory: FactoryId, fees: &[Amount]) -> Result<()> {
    for (position, fee) in (0u32..).zip(fees).filter(|(_, fee)| **fee > Amount::ZERO) {
        sqlx::query("UPDATE member SET fee_sat = ? WHERE factory = ? AND position = ?")
            .bind(codec::int("amount", fee.to_sat())?)
            .bind(factory.0.as_slice())
            .bind(position)
            .execute(&mut *conn)
            .await?;
    }
    Ok(())
}

/// The fee for a member's place in the factory of this leaf was taken.
///
/// # Errors
/// Those of the database.
pub async fn fee_taken(conn: &mut Conn, leaf: LeafId) -> Result<()> {
    sqlx::query("UPDATE member SET fee_taken = 1 WHERE leaf_id = ?")
        .bind(leaf.0.as_slice())
        .execute(conn)
        .await?;
    Ok(())
}

/// A member's keys are ours, unless its path is being published (`None`); whether that is news.
///
/// # Errors
/// Those of the database.
pub async fn hand_over(
    conn: &mut Conn,
    member: &MemberRow,
    keys: &MaskedKeys,
    height: u32,
) -> Result<Option<bool>> {
    let done = sqlx::query(
        "INSERT INTO handover (leaf_id, factory, position, height, factory_key, payout_key, channel_key, sold_keys) \
         SELECT ?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8 WHERE NOT EXISTS (SELECT 1 FROM exit e WHERE e.leaf_id = ?1) ON CONFLICT DO NOTHING",
    )
    .bind(member.leaf.0.as_slice())
    .bind(member.factory.0.as_slice())
    .bind(member.position)
    .bind(height)
    .bind(keys.factory.as_slice())
    .bind(keys.payout.as_slice())
    .bind(keys.channel.as_slice())
    .bind(keys.sold.concat())
    .execute(&mut *conn)
    .await?;
    let known: bool =
        sqlx::query_scalar("SELECT EXISTS (SELECT 1 FROM handover WHERE leaf_id = ?)")
            .bind(member.leaf.0.as_slice())
            .fetch_one(conn)
            .await?;
    Ok(known.then_some(done.rows_affected() > 0))
}

/// How many members of each factory have handed over.
///
/// # Errors
/// Those of the database.
pub async fn handed_over(conn: &mut Conn) -> Result<Vec<(FactoryId, u32)>> {
    let rows = sqlx::query("SELECT factory, count(*) AS members FROM handover GROUP BY factory")
        .fetch_all(conn)
        .await?;
    rows.iter()
        .map(|row| {
            Ok((
                codec::factory(row.try_get("factory")?)?,
                codec::number("count", row.try_get("members")?)?,
            ))
        })
        .collect()
}

/// The keys of a factory's members that have left it.
///
/// # Errors
/// Those of the database.
pub async fn keys(conn: &mut Conn, factory: FactoryId) -> Result<Vec<HandoverRow>> {
    let rows = sqlx::query(
        "SELECT position, factory_key, payout_key, channel_key, sold_keys FROM handover WHERE factory = ? ORDER BY position",
    )
    .bind(factory.0.as_slice())
    .fetch_all(conn)
    .await?;
    let key = |row: &SqliteRow, name| -> Result<[u8; 32]> {
        let bytes: &[u8] = row.try_get(name)?;
        bytes
            .try_into()
            .map_err(|error| StoreError::value("masked key", error))
    };
    rows.iter()
        .map(|row| {
            Ok(HandoverRow {
                position: codec::number("position", row.try_get("position")?)?,
                keys: MaskedKeys {
                    factory: key(row, "factory_key")?,
                    payout: key(row, "payout_key")?,
                    channel: key(row, "channel_key")?,
                    sold: sold_keys(row.try_get("sold_keys")?)?,
                },
            })
        })
        .collect()
}

/// 32 bytes each.
fn sold_keys(bytes: &[u8]) -> Result<Vec<[u8; 32]>> {
    let (keys, rest) = bytes.as_chunks::<32>();
    if rest.is_empty() {
        return Ok(keys.to_vec());
    }
    Err(StoreError::value("masked keys", "they are cut off"))
}
