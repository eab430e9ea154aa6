#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| isopod_fuzz::net::descriptors(data));
