//! What the ladder knows of its factories and their clients beyond how they were built.

use std::collections::HashMap;

use bitcoin::Amount;
use factory_tree::handover::MaskedKeys;
use factory_tree::ids::{ClientId, FactoryId, LeafId};
use factory_tree::ladder::Warning;
use factory_tree::shape::ClientRange;
use sqlx::Row;
use sqlx::sqlite::SqliteRow;

use super::sold::{self, SoldLeaf};
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
    /// The capacity of the channel it was born with.
    pub capacity: Amount,
    /// The leaf of that channel.
    pub leaf: LeafId,
    /// The channels it bought, in the order of their places.
    pub sold: Vec<SoldLeaf>,
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

impl MemberRow {
    /// The leaves of all its channels, the one it was born with first.
    pub fn leaves(&self) -> impl Iterator<Item = LeafId> {
        core::iter::once(self.leaf).chain(self.sold.iter().map(|sold| sold.leaf))
    }

    /// The one that is named, if it is a leaf of this member; unnamed, the one it was born with.
    #[must_use]
    pub fn leaf_named(&self, name: Option<LeafId>) -> Option<LeafId> {
        let wanted = name.unwrap_or(self.leaf);
        self.leaves().find(|leaf| *leaf == wanted)
    }
}

/// How a member's keys were taken, or why not.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Taken {
    /// They are ours now.
    New,
    /// They were ours before.
    Known,
    /// Not: the path of one of its channels is being published.
    Publishing,
    /// Not: its stock is being sold from, or was while it asked.
    Selling,
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
    let mut bought: HashMap<(FactoryId, u32), Vec<SoldLeaf>> = HashMap::new();
    for leaf in sold::leaves(conn, only).await? {
        let place = (leaf.factory, leaf.position);
        bought.entry(place).or_default().push(leaf);
    }
    let only = only.map(|client| client.0.to_vec());
    let rows = sqlx::query(
        "SELECT m.client, m.factory, m.position, m.capacity_sat, m.leaf_id, m.fee_sat, m.fee_taken, m.tries, m.rung, m.warned, \
         EXISTS (SELECT 1 FROM handover h WHERE h.leaf_id = m.leaf_id) AS handed_over, \
         EXISTS (SELECT 1 FROM exit e WHERE e.factory = m.factory AND e.position = m.position) AS publishing \
         FROM member m JOIN factory f USING (factory) WHERE f.state = 'funding_signed' AND f.forgotten = 0 \
         AND (?1 IS NULL OR m.client = ?1) ORDER BY f.number, m.position",
    )
    .bind(only)
    .fetch_all(conn)
    .await?;
    rows.iter()
        .map(|row| {
            let mut member = member(row)?;
            let place = (member.factory, member.position);
            member.sold = bought.remove(&place).unwrap_or_default();
            Ok(member)
        })
        .collect()
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
        sold: Vec::new(),
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

/// The fee for a member's place in the factory of this leaf, one of its own there, was taken.
///
/// # Errors
/// Those of the database.
pub async fn fee_taken(conn: &mut Conn, leaf: LeafId) -> Result<()> {
    sqlx::query(
        "UPDATE member SET fee_taken = 1 WHERE leaf_id = ?1 \
         OR (client, factory) IN (SELECT client, factory FROM sold_channel WHERE leaf_id = ?1)",
    )
    .bind(leaf.0.as_slice())
    .execute(conn)
    .await?;
    Ok(())
}

/// A member's keys are ours, unless something forbids it; `mates`: who shares its stock, itself included.
///
/// # Errors
/// Those of the database.
pub async fn hand_over(
    conn: &mut Conn,
    member: &MemberRow,
    keys: &MaskedKeys,
    mates: &ClientRange,
    height: u32,
) -> Result<Taken> {
    let (factory, position) = (member.factory.0.as_slice(), member.position);
    let there = async |conn: &mut Conn, query: &'static str| -> Result<i64> {
        let query = sqlx::query_scalar(query).bind(factory).bind(position);
        Ok(query.fetch_one(conn).await?)
    };
    let known = "SELECT count(*) FROM handover WHERE factory = ? AND position = ?";
    if there(conn, known).await? > 0 {
        return Ok(Taken::Known);
    }
    let publishing = "SELECT count(*) FROM exit WHERE factory = ? AND position = ?";
    if there(conn, publishing).await? > 0 {
        return Ok(Taken::Publishing);
    }
    let bought = "SELECT count(*) FROM sold_channel WHERE factory = ? AND position = ?";
    let complete = usize::try_from(there(conn, bought).await?) == Ok(keys.sold.len());
    let selling = sold::is_under_way(conn, member.factory, mates).await?;
    // Who has left signs no sale, and what it had not bought when it handed over, its keys do not open.
    if selling || !complete {
        return Ok(Taken::Selling);
    }
    sqlx::query(
        "INSERT INTO handover (leaf_id, factory, position, height, factory_key, payout_key, channel_key, sold_keys) \
         VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
    )
    .bind(member.leaf.0.as_slice())
    .bind(factory)
    .bind(position)
    .bind(height)
    .bind(keys.factory.as_slice())
    .bind(keys.payout.as_slice())
    .bind(keys.channel.as_slice())
    .bind(keys.sold.concat())
    .execute(conn)
    .await?;
    Ok(Taken::New)
}

/// The places of a factory's members that have left it.
///
/// # Errors
/// Those of the database.
pub async fn left(conn: &mut Conn, factory: FactoryId) -> Result<Vec<u32>> {
    let rows = sqlx::query("SELECT position FROM handover WHERE factory = ? ORDER BY position")
        .bind(factory.0.as_slice())
        .fetch_all(conn)
        .await?;
    rows.iter()
        .map(|row| codec::number("position", row.try_get("position")?))
        .collect()
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
