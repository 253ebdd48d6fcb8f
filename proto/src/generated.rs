//! What `proto/` generates (`cargo run -p proto-codegen`).
#![allow(clippy::all, clippy::pedantic, missing_debug_implementations)]

use core::fmt;

/// File descriptors of both packages, for gRPC reflection.
pub const DESCRIPTORS: &[u8] = include_bytes!("generated/descriptors.bin");

/// Package `superscalar.v1`: what a coordinator offers to wallets.
pub mod v1 {
    include!("generated/superscalar.v1.rs");
}

/// Packages below `superscalar.admin`.
pub mod admin {
    /// Package `superscalar.admin.v1`: what a coordinator offers to its operator.
    pub mod v1 {
        include!("generated/superscalar.admin.v1.rs");
    }
}

impl fmt::Debug for v1::Welcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Welcome")
            .field("session_token", &"(secret)")
            .field("heartbeat_seconds", &self.heartbeat_seconds)
            .field("tip_height", &self.tip_height)
            .finish()
    }
}

impl fmt::Debug for v1::MovePart {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MovePart")
            .field("payment_secret", &"(secret)")
            .field("amount_msat", &self.amount_msat)
            .finish_non_exhaustive()
    }
}

impl fmt::Debug for v1::PartTerms {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PartTerms")
            .field("payment_secret", &"(secret)")
            .field("fee_msat", &self.fee_msat)
            .finish_non_exhaustive()
    }
}
