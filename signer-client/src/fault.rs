//! Places where a test may kill this process: right after something was stored or sent. Nothing
//! of it is in a build without the feature `fault-points`.

#[cfg(all(feature = "fault-points", not(debug_assertions), not(test)))]
compile_error!("fault points are for tests; they are never part of a release build");

/// Dies here if the environment says so: `SUPERSCALAR_FAULT=name`, or `name:2` for the second pass.
#[cfg(feature = "fault-points")]
pub fn point(name: &str) {
    use std::sync::atomic::{AtomicU32, Ordering};
    static PASSES: AtomicU32 = AtomicU32::new(0);
    let Ok(wanted) = std::env::var("SUPERSCALAR_FAULT") else {
        return;
    };
    let (wanted, pass) = match wanted.split_once(':') {
        Some((wanted, pass)) => (wanted, pass.parse().unwrap_or(1)),
        None => (wanted.as_str(), 1u32),
    };
    if wanted != name {
        return;
    }
    if PASSES.fetch_add(1, Ordering::SeqCst).saturating_add(1) == pass {
        die();
    }
}

/// As a power cut would: no destructor runs, nothing is flushed.
#[cfg(feature = "fault-points")]
fn die() -> ! {
    let _ = std::process::Command::new("kill")
        .args(["-KILL", &std::process::id().to_string()])
        .status();
    std::process::abort()
}

/// Nothing.
#[cfg(not(feature = "fault-points"))]
#[inline(always)]
pub fn point(_name: &str) {}
