//! Accounts and their reputation.

use std::collections::BTreeMap;

use factory_tree::ids::ClientId;
use factory_tree::ladder::Hours;
use factory_tree::units::Height;
use sqlx::{QueryBuilder, Row, Sqlite};

use super::{Conn, Result, codec};
use crate::reputation::{Fault, Score};

/// An account.
#[derive(Clone, Debug, PartialEq)]
pub struct ClientRow {
    /// Who.
    pub client: ClientId,
    /// What its software calls itself.
    pub software: String,
    /// Height at which it was first seen.
    pub first_seen: u32,
    /// Height at which it was last seen.
    pub last_seen: u32,
    /// When it has been online.
    pub hours: Hours,
    /// How often it was silent.
    pub silent: u32,
    /// How often it was guilty.
    pub guilty: u32,
    /// Its score.
    pub score: Score,
    /// Live factories it is in.
    pub factories: u32,
}

/// Writes down that these clients were seen at `height`.
///
/// # Errors
/// Those of the database.
pub async fn seen(conn: &mut Conn, clients: &[(ClientId, String)], height: u32) -> Result<()> {
    for chunk in clients.chunks(1000) {
        let mut query: QueryBuilder<Sqlite> = QueryBuilder::new(
            "INSERT INTO client (client, software, first_seen, last_seen, hours) ",
        );
        let hour = Hours::default().seen_at(Height(height)).mask();
        query.push_values(chunk, |mut row, (client, software)| {
            row.push_bind(client.0.as_slice())
                .push_bind(software.as_str())
                .push_bind(height)
                .push_bind(height)
                .push_bind(hour);
        });
        query.push(
            " ON CONFLICT (client) DO UPDATE SET software = excluded.software, last_seen = excluded.last_seen, \
             hours = hours | excluded.hours",
        );
        query.build().execute(&mut *conn).await?;
    }
    Ok(())
}

/// Adds faults to the scores of those at fault.
///
/// # Errors
/// Those of the database.
pub async fn blame(
    conn: &mut Conn,
    faults: &[(ClientId, Fault)],
    height: u32,
    half_life: u32,
) -> Result<()> {
    for (client, fault) in faults {
        let row = sqlx::query("SELECT score, score_height FROM client WHERE client = ?")
            .bind(client.0.as_slice())
            .fetch_optional(&mut *conn)
            .await?;
        let score = match row {
            Some(row) => Score {
                points: row.try_get(0)?,
                height: codec::number("height", row.try_get(1)?)?,
            },
            None => Score::default(),
        };
        let score = score.after(*fault, height, half_life);
        let (silent, guilty) = match fault {
            Fault::Silent => (1, 0),
            Fault::Guilty => (0, 1),
        };
        sqlx::query(
            "INSERT INTO client (client, software, first_seen, last_seen, silent, guilty, score, score_height) \
             VALUES (?, '', ?, ?, ?, ?, ?, ?) ON CONFLICT (client) DO UPDATE SET silent = silent + excluded.silent, \
             guilty = guilty + excluded.guilty, score = excluded.score, score_height = excluded.score_height",
        )
        .bind(client.0.as_slice())
        .bind(height)
        .bind(height)
        .bind(silent)
        .bind(guilty)
        .bind(score.points)
        .bind(score.height)
        .execute(&mut *conn)
        .await?;
    }
    Ok(())
}

/// All accounts.
///
/// # Errors
/// Those of the database.
pub async fn list(conn: &mut Conn) -> Result<Vec<ClientRow>> {
    let rows = sqlx::query(
        "SELECT c.client, c.software, c.first_seen, c.last_seen, c.hours, c.silent, c.guilty, c.score, c.score_height, \
         (SELECT count(*) FROM member m JOIN factory f USING (factory) \
          WHERE m.client = c.client AND f.state = 'funding_signed') AS factories FROM client c ORDER BY c.client",
    )
    .fetch_all(conn)
    .await?;
    rows.iter()
        .map(|row| {
            Ok(ClientRow {
                client: codec::client(row.try_get("client")?)?,
                software: row.try_get("software")?,
                first_seen: codec::number("height", row.try_get("first_seen")?)?,
                last_seen: codec::number("height", row.try_get("last_seen")?)?,
                hours: Hours::new(codec::number("hours", row.try_get("hours")?)?),
                silent: codec::number("count", row.try_get("silent")?)?,
                guilty: codec::number("count", row.try_get("guilty")?)?,
                score: Score {
                    points: row.try_get("score")?,
                    height: codec::number("height", row.try_get("score_height")?)?,
                },
                factories: codec::number("count", row.try_get("factories")?)?,
            })
        })
        .collect()
}

/// The scores of those that have one.
///
/// # Errors
/// Those of the database.
pub async fn scores(conn: &mut Conn) -> Result<BTreeMap<ClientId, Score>> {
    let rows = sqlx::query("SELECT client, score, score_height FROM client WHERE score > 0")
        .fetch_all(conn)
        .await?;
    rows.iter()
        .map(|row| {
            let score = Score {
                points: row.try_get(1)?,
                height: codec::number("height", row.try_get(2)?)?,
            };
            Ok((codec::client(row.try_get(0)?)?, score))
        })
        .collect()
}
