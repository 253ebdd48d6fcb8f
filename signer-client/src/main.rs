//! The command-line wallet.
fn main() {}
