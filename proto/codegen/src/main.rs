//! `cargo run -p proto-codegen` rewrites `proto/src/generated/` after a change in `proto/proto/`.

fn main() -> std::io::Result<()> {
    proto_codegen::generate_into(&proto_codegen::checked_in())
}
