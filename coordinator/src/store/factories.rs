//! Factories, from the proposal on.

use bitcoin::consensus::encode;
use bitcoin::secp256k1::{ecdsa, schnorr};
use bitcoin::{Amount, OutPoint, Transaction};
use factory_tree::ceremony::message::Round;
use factory_tree::factory::{FactorySpec, Member};
use factory_tree::ids::{CeremonyId, ClientId, FactoryId};
use sqlx::sqlite::SqliteRow;
use sqlx::{QueryBuilder, Row, Sqlite};

use super::attempts::{self, AttemptState};
use super::{Conn, Result, StoreError, codec};

/// A factory without what is large.
#[derive(Clone, Debug, PartialEq)]
pub struct FactoryRow {
    /// Its id.
    pub id: FactoryId,
    /// The attempt it was built in.
    pub round: Round,
    /// How far it is.
    pub state: AttemptState,
    /// Its funding output.
    pub funding: OutPoint,
    /// What that holds.
    pub funding_amount: Amount,
    /// How many clients it has.
    pub clients: u32,
    /// Sum of their capacities.
    pub capacity: Amount,
    /// When it was proposed.
    pub birth_height: u32,
    /// When it expires.
    pub expiry_height: u32,
    /// Depth at which it is used.
    pub confirmations: u32,
    /// Where its funding is in the chain.
    pub confirmed_height: Option<u32>,
    /// Whether it is as deep as agreed.
    pub usable: bool,
    /// Whether its funding output is spent.
    pub spent: bool,
    /// Whether everything of it is spent and buried.
    pub forgotten: bool,
}

/// A proposed factory, to be stored.
#[derive(Clone, Copy, Debug)]
pub struct NewFactory<'a> {
    /// Its id.
    pub id: FactoryId,
    /// The attempt.
    pub round: Round,
    /// What its tree is made from.
    pub spec: &'a FactorySpec,
    /// Its funding transaction, unsigned.
    pub funding_tx: &'a Transaction,
    /// Which output is the factory.
    pub vout: u32,
    /// When it expires.
    pub expiry_height: u32,
    /// Depth at which it is used.
    pub confirmations: u32,
}

/// Every signature of a factory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Signatures {
    /// In the order of the tree's transactions.
    pub tree: Vec<schnorr::Signature>,
    /// The clients' on their channels' timeouts, in leaf order.
    pub client_channel: Vec<ecdsa::Signature>,
    /// The coordinator's, in leaf order.
    pub lsp_channel: Vec<ecdsa::Signature>,
}

/// A factory in a client's status.
#[derive(Clone, Debug, PartialEq)]
pub struct MembershipRow {
    /// The factory.
    pub factory: FactoryRow,
    /// The client's capacity in it.
    pub capacity: Amount,
}

const COLUMNS: &str = "SELECT f.factory, f.ceremony, f.attempt, f.state, f.funding_txid, f.funding_vout, f.funding_sat, f.clients, \
    f.capacity_sat, f.birth_height, f.expiry_height, f.confirmations, f.confirmed_height, f.usable, f.forgotten, \
    EXISTS (SELECT 1 FROM output o WHERE o.txid = f.funding_txid AND o.vout = f.funding_vout AND o.spent_height IS NOT NULL) AS spent";

/// A factory is proposed.
///
/// # Errors
/// Those of the database.
pub async fn propose(conn: &mut Conn, new: NewFactory<'_>) -> Result<()> {
    let spec =
        serde_json::to_vec(new.spec).map_err(|error| StoreError::value("specification", error))?;
    let members = &new.spec.members;
    let capacity: u64 = members
        .iter()
        .map(|member| member.capacity.to_sat())
        .fold(0, u64::saturating_add);
    let output = new.funding_tx.output.get(new.vout as usize);
    let sat = output.map_or(0, |output| output.value.to_sat());
    sqlx::query(
        "INSERT INTO factory (factory, ceremony, attempt, state, spec, funding_tx, funding_txid, funding_vout, funding_sat, \
         clients, capacity_sat, birth_height, expiry_height, confirmations) \
         VALUES (?, ?, ?, 'proposed', ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
    )
    .bind(new.id.0.as_slice())
    .bind(new.round.ceremony.0.as_slice())
    .bind(new.round.attempt.0)
    .bind(spec)
    .bind(encode::serialize(new.funding_tx))
    .bind(codec::bytes_of(&new.funding_tx.compute_txid()))
    .bind(new.vout)
    .bind(codec::int("amount", sat)?)
    .bind(codec::int("count", members.len() as u64)?)
    .bind(codec::int("amount", capacity)?)
    .bind(new.spec.birth.0)
    .bind(new.expiry_height)
    .bind(new.confirmations)
    .execute(&mut *conn)
    .await?;
    let places: Vec<(u32, i64, &Member)> = (0u32..)
        .zip(members)
        .map(|(position, member)| {
            Ok((
                position,
                codec::int("amount", member.capacity.to_sat())?,
                member,
            ))
        })
        .collect::<Result<_>>()?;
    for chunk in places.chunks(1000) {
        let mut query: QueryBuilder<Sqlite> = QueryBuilder::new(
            "INSERT INTO member (client, factory, position, capacity_sat, leaf_id) ",
        );
        query.push_values(chunk, |mut row, (position, sat, member)| {
            row.push_bind(member.client.0.as_slice())
                .push_bind(new.id.0.as_slice())
                .push_bind(*position)
                .push_bind(*sat)
                .push_bind(member.leaf_id.0.as_slice());
        });
        query.build().execute(&mut *conn).await?;
    }
    attempts::set_state(conn, new.round, AttemptState::Proposed).await
}

/// Every signature is there.
///
/// # Errors
/// Those of the database.
pub async fn complete(
    conn: &mut Conn,
    round: Round,
    id: FactoryId,
    signatures: &Signatures,
) -> Result<()> {
    sqlx::query(
        "UPDATE factory SET state = 'completed', signatures = ?, client_channel_signatures = ?, lsp_channel_signatures = ? \
         WHERE factory = ?",
    )
    .bind(codec::schnorr_blob(&signatures.tree))
    .bind(codec::ecdsa_blob(&signatures.client_channel))
    .bind(codec::ecdsa_blob(&signatures.lsp_channel))
    .bind(id.0.as_slice())
    .execute(&mut *conn)
    .await?;
    attempts::set_state(conn, round, AttemptState::Completed).await
}

/// Every client holds its exit kit, and every channel stands.
///
/// # Errors
/// Those of the database.
pub async fn ready(conn: &mut Conn, round: Round, id: FactoryId) -> Result<()> {
    move_on(conn, round, id, AttemptState::Ready).await
}

/// From here on the funding is only broadcast, never given up. To be stored before it is signed.
///
/// # Errors
/// Those of the database.
pub async fn funding_signed(conn: &mut Conn, round: Round, id: FactoryId) -> Result<()> {
    move_on(conn, round, id, AttemptState::FundingSigned).await
}

async fn move_on(conn: &mut Conn, round: Round, id: FactoryId, state: AttemptState) -> Result<()> {
    sqlx::query("UPDATE factory SET state = ? WHERE factory = ?")
        .bind(state.name())
        .bind(id.0.as_slice())
        .execute(&mut *conn)
        .await?;
    attempts::set_state(conn, round, state).await
}

/// Keeps the signed funding transaction.
///
/// # Errors
/// Those of the database.
pub async fn set_signed_tx(conn: &mut Conn, id: FactoryId, tx: &Transaction) -> Result<()> {
    sqlx::query("UPDATE factory SET signed_tx = ? WHERE factory = ?")
        .bind(encode::serialize(tx))
        .bind(id.0.as_slice())
        .execute(conn)
        .await?;
    Ok(())
}

/// A factory's funding transaction: signed if it is, else unsigned.
///
/// # Errors
/// Those of the database.
pub async fn funding_tx(conn: &mut Conn, id: FactoryId) -> Result<Option<(Transaction, bool)>> {
    let row = sqlx::query("SELECT funding_tx, signed_tx FROM factory WHERE factory = ?")
        .bind(id.0.as_slice())
        .fetch_optional(conn)
        .await?;
    let Some(row) = row else { return Ok(None) };
    let signed: Option<Vec<u8>> = row.try_get("signed_tx")?;
    match signed {
        Some(bytes) => Ok(Some((codec::transaction(&bytes)?, true))),
        None => Ok(Some((
            codec::transaction(row.try_get("funding_tx")?)?,
            false,
        ))),
    }
}

/// What a factory's tree is made from.
///
/// # Errors
/// Those of the database.
pub async fn spec(conn: &mut Conn, id: FactoryId) -> Result<Option<FactorySpec>> {
    let row: Option<Vec<u8>> = sqlx::query_scalar("SELECT spec FROM factory WHERE factory = ?")
        .bind(id.0.as_slice())
        .fetch_optional(conn)
        .await?;
    row.map(|spec| codec::from_json("specification", &spec))
        .transpose()
}

/// A factory's signatures, once all are there.
///
/// # Errors
/// Those of the database.
pub async fn signatures(conn: &mut Conn, id: FactoryId) -> Result<Option<Signatures>> {
    let row = sqlx::query(
        "SELECT signatures, client_channel_signatures, lsp_channel_signatures FROM factory \
         WHERE factory = ? AND signatures IS NOT NULL",
    )
    .bind(id.0.as_slice())
    .fetch_optional(conn)
    .await?;
    let Some(row) = row else { return Ok(None) };
    Ok(Some(Signatures {
        tree: codec::schnorr_signatures(row.try_get(0)?)?,
        client_channel: codec::ecdsa_signatures(row.try_get(1)?)?,
        lsp_channel: codec::ecdsa_signatures(row.try_get(2)?)?,
    }))
}

/// One factory.
///
/// # Errors
/// Those of the database.
pub async fn get(conn: &mut Conn, id: FactoryId) -> Result<Option<FactoryRow>> {
    let mut query: QueryBuilder<Sqlite> = QueryBuilder::new(COLUMNS);
    query
        .push(" FROM factory f WHERE f.factory = ")
        .push_bind(id.0.as_slice());
    query
        .build()
        .fetch_optional(conn)
        .await?
        .as_ref()
        .map(factory)
        .transpose()
}

/// The newest factory of a ceremony.
///
/// # Errors
/// Those of the database.
pub async fn of_ceremony(conn: &mut Conn, id: CeremonyId) -> Result<Option<FactoryRow>> {
    let mut query: QueryBuilder<Sqlite> = QueryBuilder::new(COLUMNS);
    query
        .push(" FROM factory f WHERE f.ceremony = ")
        .push_bind(id.0.as_slice());
    query.push(" ORDER BY f.number DESC LIMIT 1");
    query
        .build()
        .fetch_optional(conn)
        .await?
        .as_ref()
        .map(factory)
        .transpose()
}

/// Factories that are, or may be, funded; oldest first.
///
/// # Errors
/// Those of the database.
pub async fn funded(conn: &mut Conn) -> Result<Vec<FactoryRow>> {
    let mut query: QueryBuilder<Sqlite> = QueryBuilder::new(COLUMNS);
    query.push(" FROM factory f WHERE f.state = 'funding_signed' ORDER BY f.number");
    query
        .build()
        .fetch_all(conn)
        .await?
        .iter()
        .map(factory)
        .collect()
}

/// All factories, newest first.
///
/// # Errors
/// Those of the database.
pub async fn list(conn: &mut Conn) -> Result<Vec<FactoryRow>> {
    let mut query: QueryBuilder<Sqlite> = QueryBuilder::new(COLUMNS);
    query.push(" FROM factory f ORDER BY f.number DESC");
    query
        .build()
        .fetch_all(conn)
        .await?
        .iter()
        .map(factory)
        .collect()
}

/// The factories a client is in, newest first.
///
/// # Errors
/// Those of the database.
pub async fn of_client(conn: &mut Conn, client: ClientId) -> Result<Vec<MembershipRow>> {
    let mut query: QueryBuilder<Sqlite> = QueryBuilder::new(COLUMNS);
    query.push(", m.capacity_sat AS own_sat FROM member m JOIN factory f USING (factory) WHERE m.client = ");
    query
        .push_bind(client.0.as_slice())
        .push(" ORDER BY f.number DESC LIMIT 1000");
    let rows = query.build().fetch_all(conn).await?;
    rows.iter()
        .map(|row| {
            let capacity = Amount::from_sat(codec::number("amount", row.try_get("own_sat")?)?);
            Ok(MembershipRow {
                factory: factory(row)?,
                capacity,
            })
        })
        .collect()
}

/// The clients of a factory, in leaf order.
///
/// # Errors
/// Those of the database.
pub async fn clients(conn: &mut Conn, id: FactoryId) -> Result<Vec<ClientId>> {
    let rows: Vec<Vec<u8>> =
        sqlx::query_scalar("SELECT client FROM member WHERE factory = ? ORDER BY position")
            .bind(id.0.as_slice())
            .fetch_all(conn)
            .await?;
    rows.iter().map(|row| codec::client(row)).collect()
}

/// Where a factory's funding is in the chain.
///
/// # Errors
/// Those of the database.
pub async fn set_confirmed(
    conn: &mut Conn,
    id: FactoryId,
    height: Option<u32>,
    usable: bool,
) -> Result<()> {
    sqlx::query("UPDATE factory SET confirmed_height = ?, usable = ? WHERE factory = ?")
        .bind(height)
        .bind(usable)
        .bind(id.0.as_slice())
        .execute(conn)
        .await?;
    Ok(())
}

fn factory(row: &SqliteRow) -> Result<FactoryRow> {
    let sat = |name| -> Result<Amount> {
        Ok(Amount::from_sat(codec::number(
            "amount",
            row.try_get(name)?,
        )?))
    };
    let height = |name| -> Result<u32> { codec::number("height", row.try_get(name)?) };
    Ok(FactoryRow {
        id: codec::factory(row.try_get("factory")?)?,
        round: Round {
            ceremony: codec::ceremony(row.try_get("ceremony")?)?,
            attempt: codec::attempt(row.try_get("attempt")?)?,
        },
        state: AttemptState::parse(row.try_get("state")?)?,
        funding: codec::outpoint(row.try_get("funding_txid")?, row.try_get("funding_vout")?)?,
        funding_amount: sat("funding_sat")?,
        clients: codec::number("count", row.try_get("clients")?)?,
        capacity: sat("capacity_sat")?,
        birth_height: height("birth_height")?,
        expiry_height: height("expiry_height")?,
        confirmations: height("confirmations")?,
        confirmed_height: codec::optional("height", row.try_get("confirmed_height")?)?,
        usable: row.try_get("usable")?,
        spent: row.try_get("spent")?,
        forgotten: row.try_get("forgotten")?,
    })
}
