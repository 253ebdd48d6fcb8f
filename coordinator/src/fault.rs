//! Named places where a crash test kills the process. Compiled in by the feature `fault-points` only.

#[cfg(all(feature = "fault-points", not(debug_assertions)))]
compile_error!("the feature fault-points is for crash tests, never for a release build");

/// Kills the process here if `SUPERSCALAR_FAULT` is `name`, or `name:n` at the n-th pass.
#[cfg(feature = "fault-points")]
pub fn point(name: &str) {
    use std::sync::atomic::{AtomicU32, Ordering};
    static PASSES: AtomicU32 = AtomicU32::new(0);
    let Ok(wanted) = std::env::var("SUPERSCALAR_FAULT") else {
        return;
    };
    let (wanted, pass) = wanted.split_once(':').unwrap_or((&wanted, "1"));
    if wanted != name {
        return;
    }
    let passed = PASSES.fetch_add(1, Ordering::SeqCst).saturating_add(1);
    if pass.parse() == Ok(passed) {
        // No destructor runs and nothing is flushed, as with SIGKILL.
        std::process::abort();
    }
}

/// Nothing: there are no fault points in this build.
#[cfg(not(feature = "fault-points"))]
pub const fn point(_name: &str) {}
