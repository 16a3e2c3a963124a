//! All targets in one program, because linking takes longer than compiling: the environment variable `TARGET` chooses
//! one.
#![no_main]

use std::sync::LazyLock;

use kvasir_fuzz::Target;

static TARGET: LazyLock<&Target> = LazyLock::new(|| {
    let name = std::env::var("TARGET").expect("TARGET names the target");
    kvasir_fuzz::TARGETS.iter().find(|target| target.name == name).expect("TARGET names one of kvasir_fuzz::TARGETS")
});

libfuzzer_sys::fuzz_target!(|data: &[u8]| (TARGET.run)(data));
