//! Why a client that is away should come.

use factory_tree::ids::FactoryId;
use serde_json::json;

use super::notification;
use crate::config::Config;
use crate::store::webhooks::Wake;

const HOUR: u64 = 3_600;
/// A payment over a channel waits about this long for its receiver, in seconds; one for a channel just in time, `jit.hold_seconds`.
const PAYMENT_WAITS: u64 = 30;
/// After so long the clients of a stock are told once more that a sale waits for them, in seconds.
const SALE_WAITS: u64 = 600;

/// Why a client that is away should come.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Why {
    /// A ceremony it must be in begins within hours.
    Birth,
    /// This factory of its ends in some days.
    EndsSoon(FactoryId),
    /// This factory of its ends, and it has not left.
    Ends(FactoryId),
    /// A sale from its stock waits for its signature, or a channel it has paid for.
    Sale,
    /// A payment waits for it.
    Payment,
    /// A payment over its channel is not resolved, and at this height the channel goes to the chain for it.
    Expiry(u32),
}

impl Why {
    /// The cause's name, in the database and in events.
    pub(super) fn cause(self) -> String {
        match self {
            Self::Birth => "birth".to_owned(),
            Self::EndsSoon(factory) => format!("ends soon {factory}"),
            Self::Ends(factory) => format!("ends {factory}"),
            Self::Sale => "sale".to_owned(),
            Self::Payment => "payment".to_owned(),
            Self::Expiry(_) => "expiry".to_owned(),
        }
    }

    /// Seconds after which it is said once more.
    const fn again_after(self) -> u64 {
        match self {
            Self::EndsSoon(_) => 24 * HOUR,
            Self::Ends(_) => 6 * HOUR,
            // A birth's hours are few, and so are the blocks before an expiry.
            Self::Birth | Self::Expiry(_) => HOUR,
            // The buyer's payment is held meanwhile.
            Self::Sale => SALE_WAITS,
            // The next one is another payment: how often they are told of is the cooldown's.
            Self::Payment => 0,
        }
    }

    /// What is to be sent for it, and for how long that is of use.
    pub(super) fn wake(self, config: &Config) -> Wake {
        let body = match self {
            Self::Birth | Self::EndsSoon(_) | Self::Ends(_) | Self::Sale => {
                notification("lsps5.liquidity_management_request", &json!({}))
            }
            Self::Payment => notification("lsps5.payment_incoming", &json!({})),
            Self::Expiry(timeout) => {
                notification("lsps5.expiry_soon", &json!({ "timeout": timeout }))
            }
        };
        let lasts = match self {
            Self::Payment => config.jit.hold_seconds.max(PAYMENT_WAITS),
            _ => config.webhooks.give_up_seconds,
        };
        Wake {
            cause: self.cause(),
            body,
            again_after: self.again_after(),
            lasts,
        }
    }
}
