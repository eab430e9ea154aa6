#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| isopod_fuzz::cni_result::fuzz::result(data));
