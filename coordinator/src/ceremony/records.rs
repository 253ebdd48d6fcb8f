//! The machine's records in the database: one transaction each.

use bitcoin::OutPoint;
use factory_tree::ceremony::coordinator::{LeftOut, Record};
use factory_tree::ceremony::message::{AbortReason, Round};
use factory_tree::ids::ClientId;
use factory_tree::shape::Shape;

use super::driver::{Driver, Stop};
use crate::event::{abort_text, left_out_name};
use crate::fault;
use crate::keys::{FreshSeed, random};
use crate::reputation::Fault;
use crate::store::attempts::{self, BlameRow};
use crate::store::factories::{self, NewFactory, Signatures};
use crate::store::history::{self, HistoryRow};
use crate::store::{self, Conn, StoreError, ceremonies, clients, ladder};

/// The fault point that follows a record.
const fn fault_point(record: &Record) -> Option<&'static str> {
    match record {
        Record::Invited { .. } => Some("invited"),
        Record::Proposed { .. } => Some("proposal_stored"),
        Record::Completed { .. } => Some("finals_stored"),
        Record::Ready { .. } => Some("ready_stored"),
        Record::Blamed { .. } | Record::AttemptFailed { .. } | Record::CeremonyFailed { .. } => {
            None
        }
    }
}

impl Driver {
    /// Stores a record, however long it takes.
    pub(super) async fn store(&mut self, record: &Record) -> Result<(), Stop> {
        let fresh: FreshSeed = random();
        loop {
            match self.write(record, &fresh).await {
                Ok(()) => break,
                Err(error) => self.pause(error).await?,
            }
        }
        if let Record::Invited { round, .. } = record {
            self.signer.begin(round.attempt, fresh);
            self.joins.clear();
        }
        if let Record::AttemptFailed { .. } | Record::CeremonyFailed { .. } = record {
            // First nothing more is opened, then what was opened is given up.
            self.opening = None;
            self.ctx.lightning.look_again();
        }
        if let Some(name) = fault_point(record) {
            fault::point(name);
        }
        Ok(())
    }

    async fn write(&mut self, record: &Record, fresh: &FreshSeed) -> store::Result<()> {
        let height = self.ctx.height();
        let confirmations = self.terms.confirmations;
        let fee = |capacity| self.terms.fee_for(capacity);
        if let Record::Proposed { round, .. } = record
            && !self.signer.knows(round.attempt)
        {
            return Err(StoreError::value("attempt", "its randomness is not stored"));
        }
        let half_life = self.ctx.config.policy.score_half_life_blocks;
        let pins = self
            .ctx
            .store
            .write(async |tx| {
                match record {
                    Record::Invited { round, invited } => {
                        attempts::begin(tx, *round, fresh, invited).await?
                    }
                    Record::Proposed {
                        round,
                        factory,
                        spec,
                        funding_tx,
                        vout,
                    } => {
                        let members = u32::try_from(spec.members.len()).unwrap_or(u32::MAX);
                        let shape = Shape::new(&spec.params, members);
                        let schedule = shape
                            .and_then(|shape| spec.params.schedule(spec.birth, shape.levels()));
                        let expiry = schedule
                            .map_err(|error| StoreError::value("specification", error))?
                            .expiry;
                        let new = NewFactory {
                            id: *factory,
                            round: *round,
                            spec,
                            funding_tx,
                            vout: *vout,
                            expiry_height: expiry.0,
                            confirmations,
                        };
                        factories::propose(tx, new).await?;
                        let fees = spec.members.iter().map(|member| fee(member.capacity));
                        ladder::set_fees(tx, *factory, &fees.collect::<Vec<_>>()).await?;
                    }
                    Record::Completed {
                        round,
                        factory,
                        signatures,
                        client_channel_signatures,
                        lsp_channel_signatures,
                    } => {
                        let all = Signatures {
                            tree: signatures.clone(),
                            client_channel: client_channel_signatures.clone(),
                            lsp_channel: lsp_channel_signatures.clone(),
                        };
                        factories::complete(tx, *round, *factory, &all).await?;
                    }
                    Record::Ready { round, factory } => {
                        factories::ready(tx, *round, *factory).await?;
                        let entry = HistoryRow {
                            factory: Some(*factory),
                            ..entry(height, "factory_built", *round, String::new())
                        };
                        history::add_to_members(tx, *factory, &entry).await?;
                    }
                    Record::Blamed { round, blame } => {
                        let signature = self.ctx.keys.sign_blame(*round, blame);
                        let row = BlameRow {
                            round: *round,
                            blame: blame.clone(),
                            signature,
                        };
                        attempts::blame(tx, &row, height).await?;
                    }
                    Record::AttemptFailed {
                        round,
                        reason,
                        left_out,
                    } => {
                        attempts::fail(tx, *round, &abort_text(reason), left_out).await?;
                        // Others had already signed, or were about to.
                        let proposed = *reason == AbortReason::Left;
                        left_out_of(tx, *round, left_out, proposed, (height, half_life)).await?;
                    }
                    Record::CeremonyFailed { ceremony, reason } => {
                        let pins = ceremonies::pins(tx, *ceremony).await?;
                        let free = ceremonies::fail(tx, *ceremony, &abort_text(reason)).await?;
                        return Ok(if free { pins } else { Vec::new() });
                    }
                }
                Ok(Vec::new())
            })
            .await?;
        let freed: Vec<OutPoint> = pins.into_iter().map(|pin| pin.outpoint).collect();
        if !freed.is_empty() {
            self.pins = freed;
        }
        Ok(())
    }
}

async fn left_out_of(
    tx: &mut Conn,
    round: Round,
    left_out: &[(ClientId, LeftOut)],
    proposed: bool,
    (height, half_life): (u32, u32),
) -> store::Result<()> {
    let faults: Vec<(ClientId, Fault)> = left_out
        .iter()
        .filter_map(|(client, why)| Some((*client, Fault::of(*why, proposed)?)))
        .collect();
    clients::blame(tx, &faults, height, half_life).await?;
    for (client, why) in left_out {
        let entry = entry(height, "left_out", round, left_out_name(*why).to_owned());
        history::add(tx, &[*client], &entry).await?;
    }
    Ok(())
}

fn entry(height: u32, kind: &str, round: Round, text: String) -> HistoryRow {
    HistoryRow {
        number: 0,
        height,
        kind: kind.to_owned(),
        round: Some(round),
        factory: None,
        text,
    }
}
