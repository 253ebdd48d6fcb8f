//! Scenario tests: real processes, a real Bitcoin node, and events instead of sleeping.

mod bad_input;
mod chain;
mod channels;
mod clients_crash;
mod coordinator_crashes;
mod example;
mod exits;
mod happy;
mod independent;
mod jit;
mod ladder;
mod ladder_births;
mod ladder_clients;
mod ladder_crashes;
mod ladder_weather;
mod layers;
mod lightning;
mod misbehaviour;
mod money;
mod pay;
mod reclaim;
mod reorg;
mod silence;
mod timeouts;
mod webhooks;
mod wire;
