//! The wire protocol `superscalar.v1`: generated types (checked in), strict conversions from and to
//! the values of `factory-tree`, and what both sides of a session share: authentication, connection
//! strings, TLS with pinned certificates, limits and errors.

pub mod auth;
pub mod connection;
mod generated;
pub mod node_id;
pub mod session;
pub mod tls;
pub mod wire;

pub use generated::DESCRIPTORS;
pub use generated::admin::v1 as admin;
pub use generated::v1;
pub use node_id::NodeId;
pub use wire::WireError;
