//! Names of blocks.

use std::fmt;

use bitcoin::BlockHash;
use bitcoin::block::Header;
use serde::{Deserialize, Serialize};

/// A block by height and hash: the height alone is not enough across a reorg.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct BlockId {
    /// Height; the genesis block has 0.
    pub height: u32,
    /// Hash of the header.
    pub hash: BlockHash,
}

impl fmt::Display for BlockId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({})", self.height, self.hash)
    }
}

/// A header the node knows, of the active chain or of a stale branch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BlockHeader {
    /// The header itself.
    pub header: Header,
    /// Its height.
    pub height: u32,
    /// Whether it is on the node's active chain.
    pub active: bool,
}
