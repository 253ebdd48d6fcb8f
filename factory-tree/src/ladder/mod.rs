//! The ladder: a factory is born every day, lives its active time, dies in a few days, and its
//! coins work in a later one (protocol.md section 7).
//!
//! [`due`] says, from the chain's height and a plain view of what is stored ([`Ladder`]), what is
//! to be done now, safety first. It remembers nothing: whatever is due stays due until the view
//! says that it is done, so it is correct after any downtime and any reorg. An adapter stores each
//! decision, acts, and writes what came of it into what the view is made from. [`choose`] says who
//! is invited into the next factory.
//!
//! One file per concern: [`stage`](Stage), publication and losses (`rescue`), coins coming back
//! (`reap`), balances moving (`moving`), invitations and births (`births`).

mod births;
mod choose;
mod due;
mod forecast;
mod moving;
mod params;
mod reap;
mod rescue;
#[cfg(test)]
mod sim;
mod stage;
#[cfg(test)]
mod tests;
mod view;
mod words;

pub use choose::{
    Candidate, CapitalNeeded, ChooseError, ChooseParams, Excluded, Exclusion, Hours, Kind, Preview,
    Seat, Standing, capacity_for, choose, needed_capacity,
};
pub use due::{Due, Part, Urgency, Warning, due};
pub use forecast::{ForecastDay, forecast};
pub use moving::{
    LEAST_PART_MSAT, PartError, PartExpiries, fee_due, largest_part, last_part, may_hand_over,
    part_expiries, publish_by,
};
pub use params::{Compressed, LadderError, LadderParams};
pub use reap::coins_are_free;
pub use stage::Stage;
pub use view::{FactoryFacts, Funding, Ladder, MemberFacts, Progress, Root};
pub use words::{Notice, Terms, blocks_in_words, notice};
