//! Heights and block counts as types, so that an absolute height is never added to another.

use core::fmt;

use serde::{Deserialize, Serialize};

/// An absolute block height.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
#[serde(transparent)]
pub struct Height(pub u32);

/// A number of blocks (a relative time).
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
#[serde(transparent)]
pub struct Blocks(pub u32);

impl Height {
    /// This height plus `blocks`; saturates, as no chain ever gets near `u32::MAX`.
    #[must_use]
    pub const fn plus(self, blocks: Blocks) -> Self {
        Self(self.0.saturating_add(blocks.0))
    }

    /// This height less `blocks`, at least 0.
    #[must_use]
    pub const fn minus(self, blocks: Blocks) -> Self {
        Self(self.0.saturating_sub(blocks.0))
    }

    /// Blocks from `earlier` to this height, 0 if `earlier` is later.
    #[must_use]
    pub const fn since(self, earlier: Self) -> Blocks {
        Blocks(self.0.saturating_sub(earlier.0))
    }
}

impl Blocks {
    /// Sum of two durations (saturating).
    #[must_use]
    pub const fn plus(self, other: Self) -> Self {
        Self(self.0.saturating_add(other.0))
    }

    /// This duration, `times` times (saturating).
    #[must_use]
    pub const fn times(self, times: u32) -> Self {
        Self(self.0.saturating_mul(times))
    }
}

impl fmt::Display for Height {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)
    }
}

impl fmt::Display for Blocks {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} blocks", self.0)
    }
}
