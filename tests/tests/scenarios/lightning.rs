//! Lightning channels on leaves, against a real node.

mod coins;
mod ends;
mod harness;
mod leaves;
mod payments;
mod refusals;
