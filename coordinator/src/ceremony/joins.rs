//! Joins before they reach the machine: no key and no leaf id serves twice (protocol.md, I11).

use std::collections::{HashMap, HashSet};

use factory_tree::ceremony::message::{Join, Round};
use factory_tree::ids::ClientId;

use crate::context::Context;
use crate::fault;
use crate::store::{
    self,
    attempts::{self, UsedKeys},
};

/// How often one client may come with new keys in one attempt (it may have been restarted).
const MOST_JOINS: u32 = 3;

/// What clients joined with in the attempt under way.
#[derive(Debug, Default)]
pub(super) struct Joins(HashMap<ClientId, (UsedKeys, u32)>);

/// Why a join is refused, if it is.
pub(super) type Verdict = Option<&'static str>;

fn keys(join: &Join) -> UsedKeys {
    UsedKeys {
        leaf_id: join.leaf_id,
        factory_key: join.factory_key,
        channel_key: join.channel_key,
        payout_script: join.payout_script.clone(),
    }
}

impl Joins {
    /// A new attempt: nobody has joined.
    pub(super) fn clear(&mut self) {
        self.0.clear();
    }

    /// Writes down what these joins use, in one transaction, and judges them. The same join again is as good as the first.
    ///
    /// # Errors
    /// Those of the database.
    pub(super) async fn judge(
        &mut self,
        ctx: &Context,
        round: Round,
        joins: &[(ClientId, Box<Join>)],
    ) -> store::Result<Vec<Verdict>> {
        let is_new = |client: &ClientId, join: &Join| match self.0.get(client) {
            Some((held, count)) => *held != keys(join) && *count < MOST_JOINS,
            None => true,
        };
        let fresh: Vec<UsedKeys> = joins
            .iter()
            .filter(|(client, join)| is_new(client, join))
            .map(|(_, join)| keys(join))
            .collect();
        let mut accepted = HashSet::new();
        if !fresh.is_empty() {
            accepted = ctx
                .store
                .write(async |tx| attempts::use_keys(tx, round, &fresh).await)
                .await?;
            fault::point("joins_stored");
        }
        let judged = joins.iter().map(|(client, join)| {
            let own = keys(join);
            match self.0.get_mut(client) {
                Some((held, _)) if *held == own => None,
                _ if !accepted.remove(&own.leaf_id) => {
                    Some("a key or leaf id of this join was used before; draw a new join nonce")
                }
                Some((held, count)) => {
                    *held = own;
                    *count = count.saturating_add(1);
                    None
                }
                None => {
                    self.0.insert(*client, (own, 1));
                    None
                }
            }
        });
        Ok(judged.collect())
    }
}
