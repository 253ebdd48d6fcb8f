//! Taking part in ceremonies: the adapter around `factory_tree`'s client machine. Effects are
//! executed in order, and what is to be stored is stored before what follows is sent.

mod channel;
mod driver;
mod signer;

pub(crate) use driver::{Driver, blocking, refused};
pub(crate) use signer::LeafSigner;
