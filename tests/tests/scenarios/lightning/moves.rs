//! A client's balance moves from the channel of an old leaf to that of a new one, in parts.

mod crashes;
mod exits;
mod harness;
mod refused;
mod retired;
mod whole;
