//! Scenario tests: real processes, a real Bitcoin node, and events instead of sleeping.

mod chain;
mod layers;
