//! The checked-in code is what the `.proto` files generate.

#[test]
fn generated_code_is_up_to_date() {
    let fresh = tempfile::tempdir().unwrap();
    proto_codegen::generate_into(fresh.path()).unwrap();
    let fresh = proto_codegen::files(fresh.path()).unwrap();
    let stored = proto_codegen::files(&proto_codegen::checked_in()).unwrap();
    assert!(fresh.keys().eq(stored.keys()), "other files: {stored:?}");
    for (name, bytes) in fresh {
        assert!(
            stored.get(&name) == Some(&bytes),
            "{} is out of date: run `cargo run -p proto-codegen`",
            name.display()
        );
    }
}
