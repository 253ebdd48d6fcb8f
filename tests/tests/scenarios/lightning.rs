//! Lightning channels on leaves, against a real node.

mod crashes;
mod ends;
mod harness;
mod htlcs;
mod jit;
mod leaves;
mod moves;
mod payments;
mod refusals;
mod revoked;
mod routes;
mod wallet;
