//! Payments: what may be claimed and forwarded, which way they go, and invoices.

mod decode;
mod forward;
mod invoice;
mod policy;
mod router;

pub use decode::{InvoiceView, read_invoice};
pub use forward::ForwardRefusal;
pub use invoice::{Description, InterceptHint, InvoiceRequest};
pub use policy::{CLAIM_BUFFER, ClaimRefusal, LeafTerms, claim_verdict, min_final_delta};

pub(crate) use forward::{Forward, Gates, Intercepted, decide, leaves_leaf_time, leaves_time};
pub(crate) use invoice::{Registered, Way, build as build_invoice};
pub(crate) use policy::{leaf_delta, required_delta};
pub(crate) use router::LeafRouter;
