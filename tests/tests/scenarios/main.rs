//! Scenario tests: real processes, a real Bitcoin node, and events instead of sleeping.

/// A scenario per point of death.
macro_rules! deaths {
    ($($name:ident: $dies:ident($($at:expr),+);)*) => {
        $(
            #[test]
            fn $name() -> Result<()> {
                $dies($($at),+)
            }
        )*
    };
}

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
mod jit_births;
mod jit_stock;
mod jit_wallet;
mod ladder;
mod ladder_births;
mod ladder_clients;
mod ladder_crashes;
mod ladder_weather;
mod layers;
mod lightning;
mod lsps1;
mod lsps1_birth;
mod lsps1_stock;
mod misbehaviour;
mod money;
mod pay;
mod reclaim;
mod reorg;
mod sales;
mod sales_bonus;
mod sales_cheats;
mod sales_top_up;
mod silence;
mod timeouts;
mod webhooks;
mod wire;
