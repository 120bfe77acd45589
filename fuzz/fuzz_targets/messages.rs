//! Messages between library and service: nothing panics, and what is accepted means the same when it is written again.

#![no_main]

use libfuzzer_sys::fuzz_target;
use vmmc_proto::{decode_answer, decode_request, encode_answer, encode_request};

fuzz_target!(|packet: &[u8]| {
    if let Ok(request) = decode_request(packet) {
        let again = encode_request(&request).expect("what was decoded can be encoded");
        assert_eq!(decode_request(&again), Ok(request));
    }
    if let Ok(answer) = decode_answer(packet) {
        let again = encode_answer(&answer).expect("what was decoded can be encoded");
        assert_eq!(decode_answer(&again), Ok(answer));
    }
});
