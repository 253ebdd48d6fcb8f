//! The conversions: what goes over the wire comes back, and what is not well-formed is refused.

#[path = "wire/fixture.rs"]
mod fixture;
#[path = "wire/hostile.rs"]
mod hostile;
#[path = "wire/proposals.rs"]
mod proposals;
#[path = "wire/refusals.rs"]
mod refusals;
#[path = "wire/round_trips.rs"]
mod round_trips;
#[path = "wire/sales.rs"]
mod sales;
