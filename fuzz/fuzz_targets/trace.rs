//! Traces of translations, which come from files.

#![no_main]

use libfuzzer_sys::fuzz_target;
use vmmc_ni::utlb::trace::Trace;

fuzz_target!(|file: &[u8]| {
    let _ = Trace::parse(file);
});
