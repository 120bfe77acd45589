//! Packets are hostile: decoding never panics and never accepts what encoding did not produce.

use proptest::prelude::*;
use vmmc_proto::{
    Allow, Answer, BrokenReason, DecodeError, ExportDeclaration, ExportId, HeirId, Hello, Lane,
    NodeId, OfferId, PairId, ProcessId, Request, Resume, Rights, Target, decode_answer,
    decode_request, encode_answer, encode_request,
};

fn process_id() -> impl Strategy<Value = ProcessId> {
    (any::<u64>(), any::<u32>(), any::<u32>()).prop_map(|(node, index, incarnation)| ProcessId {
        node: NodeId(node),
        index,
        incarnation,
    })
}

fn request() -> impl Strategy<Value = Request> {
    let bytes = || proptest::collection::vec(any::<u8>(), 0..2000);
    prop_oneof![
        (any::<u32>(), ".{0,40}", proptest::option::of(process_id()), any::<bool>()).prop_map(
            |(version, name, process, control)| Request::Hello(Hello {
                version,
                name,
                resume: process.map(|process| Resume { process }),
                control,
                pairing_only: control,
                hosts_lanes: control,
                heir: control.then_some(HeirId(u64::from(version))),
            })
        ),
        (any::<u32>(), any::<u64>(), any::<u64>(), ".{0,40}", any::<[u8; 16]>(), any::<bool>())
            .prop_map(|(seq, number, len, name, key, notify)| Request::Export {
                seq,
                declaration: ExportDeclaration {
                    number,
                    len,
                    name,
                    rights: Rights::READ,
                    allow: Allow::Key(key),
                    notify,
                    pool: notify.then_some(len)
                }
            }),
        (any::<u32>(), process_id(), ".{0,40}").prop_map(|(seq, process, name)| Request::Import {
            seq,
            node: (seq % 2 == 0).then(|| name.clone()),
            target: Target::Named { process, name },
            rights: Rights::READ_WRITE,
            key: None,
            again: false
        }),
        (any::<u64>(), bytes(), any::<u64>()).prop_map(|(pair, bytes, len)| Request::PairInject {
            pair: PairId(pair),
            bytes,
            len,
            finish: len % 2 == 0
        }),
        any::<u64>().prop_map(|pair| Request::PairFinish { pair: PairId(pair) }),
        (any::<u32>(), any::<u64>()).prop_map(|(seq, bytes)| Request::Reserve { seq, bytes }),
        any::<u32>().prop_map(|seq| Request::Queue { seq }),
        any::<u64>().prop_map(|handle| Request::Lane { handle }),
        (any::<u32>(), any::<u64>()).prop_map(|(seq, handle)| Request::FenceLane {
            seq,
            handle,
            link: seq,
            channel: 7,
            generation: 8
        }),
        Just(Request::Ring),
    ]
}

proptest! {
    #[test]
    fn noise_never_panics(packet in proptest::collection::vec(any::<u8>(), 0..4096)) {
        if let Ok(request) = decode_request(&packet) {
            // Non-canonical integers may be accepted; what was understood must survive a round trip.
            prop_assert_eq!(decode_request(&encode_request(&request).unwrap()), Ok(request));
        }
        let _ = decode_answer(&packet);
    }

    #[test]
    fn requests_survive(request in request()) {
        let packet = encode_request(&request).unwrap();
        prop_assert_eq!(decode_request(&packet), Ok(request));
    }

    #[test]
    fn truncated_requests_are_refused(request in request(), cut in any::<prop::sample::Index>()) {
        let packet = encode_request(&request).unwrap();
        let short = &packet[..cut.index(packet.len())];
        prop_assert!(decode_request(short).is_err());
    }

    #[test]
    fn trailing_bytes_are_refused(request in request(), extra in 1usize..20) {
        let mut packet = encode_request(&request).unwrap();
        packet.resize(packet.len() + extra, 0);
        prop_assert_eq!(decode_request(&packet), Err(DecodeError::Trailing));
    }

    #[test]
    fn damaged_requests_never_panic(request in request(), at in any::<prop::sample::Index>(), value in any::<u8>()) {
        let mut packet = encode_request(&request).unwrap();
        let at = at.index(packet.len());
        packet[at] = value;
        let _ = decode_request(&packet);
    }

    #[test]
    fn ids_survive_as_text(process in process_id(), number in any::<u64>()) {
        let export = ExportId { process, number };
        prop_assert_eq!(process.to_string().parse(), Ok(process));
        prop_assert_eq!(export.to_string().parse(), Ok(export));
    }
}

#[test]
fn answers_survive() {
    for answer in [
        Answer::Goodbye,
        Answer::LaneFenced { seq: 9, reached: 1 << 50 },
        Answer::LaneOpened {
            handle: 4,
            lane: Box::new(Lane {
                link: 1,
                peer_link: 2,
                peer_addresses: vec![
                    "192.0.2.1:9".parse().unwrap(),
                    "[2001:db8::1]:9".parse().unwrap(),
                ],
                secrets: ([1; 32], [2; 32]),
                encrypted: true,
                go_back_n: false,
                max_mtu: 1472,
                export: 7,
                capability: u128::MAX,
            }),
        },
        Answer::Reserved { seq: 8, bytes: 1 << 40 },
        Answer::PairBroken { pair: PairId(7), why: BrokenReason::PeerDied },
        Answer::PairMatched {
            offer: OfferId(1),
            pair: PairId(2),
            peer: ProcessId { node: NodeId(3), index: 4, incarnation: 5 },
            peer_pid: 6,
            peer_uid: 7,
        },
        Answer::PairDenied { offer: OfferId(8) },
    ] {
        assert_eq!(decode_answer(&encode_answer(&answer).unwrap()), Ok(answer));
    }
}

#[test]
fn long_packets_are_refused_before_decoding() {
    assert_eq!(decode_request(&vec![0; vmmc_proto::MAX_MESSAGE + 1]), Err(DecodeError::TooLong));
}

#[test]
fn nonsense_ids_are_refused() {
    for text in ["", "1", "1:2", "1:2.3.4", "x:1.2", "1:-2.3", "1:2.3/"] {
        assert!(text.parse::<ExportId>().is_err(), "{text}");
    }
    assert!("1:2.99999999999".parse::<ProcessId>().is_err());
}
