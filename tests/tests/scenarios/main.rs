//! Scenario tests: real processes, a real Bitcoin node, and events instead of sleeping.

mod bad_input;
mod chain;
mod clients_crash;
mod coordinator_crashes;
mod exits;
mod happy;
mod lightning;
mod misbehaviour;
mod money;
mod reclaim;
mod reorg;
mod silence;
mod timeouts;
mod wire;
