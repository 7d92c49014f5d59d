//! Arbitrary bytes never do harm.

use proptest::prelude::*;

use crate::nfs::fuzzing::{fuzz_rpc, fuzz_stream};
use crate::nfs::testing::{Rig, call_bytes};
use nfs3_types::xdr_codec::{Pack, Unpack};

/// Bytes as they are.
struct Raw(Vec<u8>);

impl Pack for Raw {
    fn packed_size(&self) -> usize {
        self.0.len()
    }

    fn pack(&self, out: &mut impl std::io::Write) -> nfs3_types::xdr_codec::Result<usize> {
        out.write_all(&self.0)?;
        Ok(self.0.len())
    }
}

/// Words that arguments are made of more often than of others, so that decoding gets somewhere.
fn plausible_args() -> impl Strategy<Value = Vec<u8>> {
    let handle = crate::nfs::handle::encode(0xF1D0, 1).to_vec();
    let word = prop_oneof![
        (0u32..4).prop_map(|word| word.to_be_bytes().to_vec()),
        any::<u32>().prop_map(|word| word.to_be_bytes().to_vec()),
        Just([&24u32.to_be_bytes()[..], &handle].concat()),
        Just(b"\0\0\0\x03abc\0".to_vec()),
        prop::collection::vec(any::<u8>(), 0..9),
    ];
    prop::collection::vec(word, 0..14).prop_map(|words| words.concat())
}

proptest! {
    #[test]
    fn any_record_is_decoded_or_refused(bytes: Vec<u8>) {
        fuzz_rpc(&bytes);
        fuzz_stream(&bytes);
    }

    #[test]
    fn any_arguments_are_decoded_or_refused(program in 100_003u32..100_006, procedure in 0u32..24, args in plausible_args()) {
        let call = call_bytes(1, program, procedure, &Raw(args));
        fuzz_rpc(&call[4..]);
        fuzz_stream(&call);
    }

    #[test]
    fn every_cut_and_flip_is_decoded_or_refused(
        procedure in 0u32..22, args in plausible_args(), cut in 0usize..400, flip in 0usize..3200,
    ) {
        let mut call = call_bytes(1, 100_003, procedure, &Raw(args));
        if let Some(byte) = call.get_mut(flip / 8) {
            *byte ^= 1 << (flip % 8);
        }
        call.truncate(cut);
        fuzz_rpc(call.get(4..).unwrap_or_default());
        fuzz_stream(&call);
    }

    #[test]
    fn every_call_gets_exactly_one_reply(
        calls in prop::collection::vec((100_003u32..100_006, 0u32..24, plausible_args()), 1..8),
    ) {
        let mut rig = Rig::with(16 << 20, Default::default());
        for (xid, (program, procedure, args)) in (1u32..).zip(calls) {
            let mut args = args;
            args.resize(args.len().next_multiple_of(4), 0);
            let reply = rig.exchange(Rig::ID, &call_bytes(xid, program, procedure, &Raw(args)));
            let mark = u32::from_be_bytes(reply[..4].try_into().unwrap());
            prop_assert_eq!(mark, 1 << 31 | (reply.len() as u32 - 4));
            prop_assert_eq!(u32::unpack(&mut &reply[4..]).unwrap().0, xid);
        }
        prop_assert!(rig.server.is_idle());
    }
}
