//! Generates `proto/src/generated/` from `proto/proto/`, without protoc. A package of its own, so that
//! it can be run while the code that uses the generated types does not compile yet.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::{fs, io};

use prost::Message;
use prost_types::FileDescriptorSet;

const FILES: [&str; 2] = [
    "superscalar/v1/coordinator.proto",
    "superscalar/admin/v1/admin.proto",
];

fn proto() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

/// Where the checked-in files are.
#[must_use]
pub fn checked_in() -> PathBuf {
    proto().join("src/generated")
}

/// Generates every file into `out`.
///
/// # Errors
/// When a `.proto` file is wrong, or `out` cannot be written to.
pub fn generate_into(out: &Path) -> io::Result<()> {
    let descriptors = compile().map_err(io::Error::other)?;
    tonic_prost_build::configure()
        .out_dir(out)
        // Shared parts of a proposal are reference counted, not copied for each client.
        .bytes(".superscalar")
        // Secrets: their Debug is written by hand.
        .skip_debug([
            ".superscalar.v1.Welcome",
            ".superscalar.v1.MovePart",
            ".superscalar.v1.PartTerms",
        ])
        .emit_rerun_if_changed(false)
        .compile_fds(descriptors.clone())?;
    fs::write(out.join("descriptors.bin"), without_comments(descriptors))
}

fn compile() -> Result<FileDescriptorSet, protox::Error> {
    let mut compiler = protox::Compiler::new([proto().join("proto")])?;
    compiler
        .include_imports(true)
        .include_source_info(true)
        .open_files(FILES)?;
    Ok(compiler.file_descriptor_set())
}

/// What reflection serves: as small as possible, and the same wherever it is made.
fn without_comments(mut descriptors: FileDescriptorSet) -> Vec<u8> {
    for file in &mut descriptors.file {
        file.source_code_info = None;
    }
    descriptors.encode_to_vec()
}

/// The files of a directory by name.
///
/// # Errors
/// When it cannot be read.
pub fn files(dir: &Path) -> io::Result<BTreeMap<PathBuf, Vec<u8>>> {
    let entries = fs::read_dir(dir)?.map(|entry| {
        let entry = entry?;
        Ok((PathBuf::from(entry.file_name()), fs::read(entry.path())?))
    });
    entries.collect()
}
