//! The negotiation with one client, as a machine without a socket: bytes in, bytes out, and what has been agreed.
//!
//! A client that says nonsense is told so where the protocol has a way to, and may go on; one that does not speak the
//! protocol at all is left. What a client makes this keep is bounded: the data of one option.

use super::Limits;
use crate::nbd::haggling::{
    self, BlockSizes, FIXED_NEWSTYLE, MAX_OPTION_DATA, NO_ZEROES, OPTION_BYTES, info, option, put_reply, reply,
};
use crate::nbd::{BASE_ALLOCATION, ExportFlags, MAX_STRING};

/// The only metadata context, by its number on the wire.
pub(super) const ALLOCATION_ID: u32 = 1;

/// What a client may be offered.
#[derive(Debug, Clone)]
pub(super) struct Offer {
    pub(super) name: String,
    pub(super) description: String,
    pub(super) bytes: u64,
    pub(super) flags: ExportFlags,
    pub(super) sizes: BlockSizes,
}

/// What client and server have agreed on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Agreement {
    /// Which of the offers.
    pub(super) export: usize,
    /// Reads are answered in chunks.
    pub(super) structured: bool,
    /// What is allocated may be asked for.
    pub(super) allocation: bool,
}

/// What follows from what the client has said.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Outcome {
    /// The negotiation goes on.
    More,
    /// It has ended well; the client has been told.
    Agreed(Agreement),
    /// The conversation is over, once what is to be said has been said.
    Over(&'static str),
}

/// What is expected next.
#[derive(Debug, Clone, Copy)]
enum Expect {
    ClientFlags,
    Option,
    Data {
        option: u32,
        len: u32,
    },
    /// Data of an option that has too much of it.
    Excess {
        option: u32,
        left: u32,
    },
}

/// The negotiation with one client.
#[derive(Debug)]
pub(super) struct Haggle {
    expect: Expect,
    /// What has come of what is expected.
    got: Vec<u8>,
    zeroes: bool,
    structured: bool,
    /// The export for which `base:allocation` was chosen.
    allocation: Option<usize>,
}

impl Haggle {
    /// A negotiation, which starts with the server's greeting.
    pub(super) fn new(out: &mut Vec<u8>) -> Self {
        out.extend(haggling::greeting());
        Self { expect: Expect::ClientFlags, got: Vec::new(), zeroes: true, structured: false, allocation: None }
    }

    /// How many bytes may be given to it next: never one of the transmission that follows.
    pub(super) fn wanted(&self) -> usize {
        let whole = match self.expect {
            Expect::ClientFlags => 4,
            Expect::Option => OPTION_BYTES,
            Expect::Data { len, .. } => len as usize,
            Expect::Excess { left, .. } => left.min(MAX_OPTION_DATA) as usize,
        };
        whole - self.got.len()
    }

    /// Takes at most [`Haggle::wanted`] bytes. `refusal` is why no export may be entered now, if so.
    pub(super) fn input(
        &mut self,
        bytes: &[u8],
        offers: &[Offer],
        refusal: Option<&str>,
        out: &mut Vec<u8>,
    ) -> Outcome {
        self.got.extend(bytes);
        if self.wanted() > 0 {
            return Outcome::More;
        }
        let got = std::mem::take(&mut self.got);
        match self.expect {
            Expect::ClientFlags => self.client_flags(&got),
            Expect::Option => self.option(&got, offers, refusal, out),
            Expect::Data { option, .. } => self.data(option, &got, offers, refusal, out),
            Expect::Excess { option, left } => {
                self.expect = match left - got.len() as u32 {
                    0 => {
                        error(out, option, reply::ERR_TOO_BIG, "more data than any option needs");
                        Expect::Option
                    }
                    left => Expect::Excess { option, left },
                };
                Outcome::More
            }
        }
    }

    fn client_flags(&mut self, got: &[u8]) -> Outcome {
        let flags = got.first_chunk().map_or(0, |bytes| u32::from_be_bytes(*bytes));
        if flags & !u32::from(FIXED_NEWSTYLE | NO_ZEROES) != 0 {
            return Outcome::Over("it wants what is not known");
        }
        if flags & u32::from(FIXED_NEWSTYLE) == 0 {
            return Outcome::Over("it does not speak fixed newstyle");
        }
        self.zeroes = flags & u32::from(NO_ZEROES) == 0;
        self.expect = Expect::Option;
        Outcome::More
    }

    fn option(&mut self, got: &[u8], offers: &[Offer], refusal: Option<&str>, out: &mut Vec<u8>) -> Outcome {
        let Some((option, len)) = got.first_chunk().and_then(|bytes| haggling::decode_option(*bytes)) else {
            return Outcome::Over("what it says is no option");
        };
        self.expect = match len {
            0 => return self.data(option, &[], offers, refusal, out),
            // There is no way to tell it so.
            len if option == option::EXPORT_NAME && len as usize > MAX_STRING => {
                return Outcome::Over("an export's name beyond the limit");
            }
            len if len > MAX_OPTION_DATA => Expect::Excess { option, left: len },
            len => Expect::Data { option, len },
        };
        Outcome::More
    }

    fn data(
        &mut self,
        option: u32,
        data: &[u8],
        offers: &[Offer],
        refusal: Option<&str>,
        out: &mut Vec<u8>,
    ) -> Outcome {
        self.expect = Expect::Option;
        match option {
            option::EXPORT_NAME => return self.export_name(data, offers, refusal, out),
            option::ABORT => {
                put_reply(out, option, reply::ACK, &[]);
                return Outcome::Over("it has ended the negotiation");
            }
            option::LIST if data.is_empty() => {
                for offer in offers {
                    let mut data = (offer.name.len() as u32).to_be_bytes().to_vec();
                    data.extend(offer.name.as_bytes());
                    put_reply(out, option, reply::SERVER, &data);
                }
                put_reply(out, option, reply::ACK, &[]);
            }
            option::STRUCTURED_REPLY if data.is_empty() => {
                self.structured = true;
                put_reply(out, option, reply::ACK, &[]);
            }
            option::LIST | option::STRUCTURED_REPLY => error(out, option, reply::ERR_INVALID, "it takes no data"),
            option::INFO | option::GO => return self.info(option, data, offers, refusal, out),
            option::LIST_META_CONTEXT | option::SET_META_CONTEXT => self.contexts(option, data, offers, out),
            _ => error(out, option, reply::ERR_UNSUP, "this option is not supported"),
        }
        Outcome::More
    }

    fn export_name(&self, name: &[u8], offers: &[Offer], refusal: Option<&str>, out: &mut Vec<u8>) -> Outcome {
        let Some((export, offer)) = find(offers, name) else { return Outcome::Over("there is no such export") };
        if refusal.is_some() {
            return Outcome::Over("there are too many clients");
        }
        out.extend(offer.bytes.to_be_bytes());
        out.extend(offer.flags.difference(self.unstructured()).bits().to_be_bytes());
        if self.zeroes {
            out.extend([0; 124]);
        }
        self.agree(export)
    }

    fn info(&self, option: u32, data: &[u8], offers: &[Offer], refusal: Option<&str>, out: &mut Vec<u8>) -> Outcome {
        let Some((name, infos)) = haggling::decode_go(data) else {
            error(out, option, reply::ERR_INVALID, "a name and a list of informations are expected");
            return Outcome::More;
        };
        let Some((export, offer)) = find(offers, name) else {
            error(out, option, reply::ERR_UNKNOWN, "there is no such export");
            return Outcome::More;
        };
        let go = option == option::GO;
        if let Some(refusal) = refusal.filter(|_| go) {
            error(out, option, reply::ERR_POLICY, refusal);
            return Outcome::More;
        }
        let flags = offer.flags.difference(self.unstructured());
        put_reply(out, option, reply::INFO, &haggling::encode_export(offer.bytes, flags));
        put_reply(out, option, reply::INFO, &haggling::encode_block_sizes(offer.sizes));
        for (kind, text) in [(info::NAME, &offer.name), (info::DESCRIPTION, &offer.description)] {
            if infos.contains(&kind) && !text.is_empty() {
                put_reply(out, option, reply::INFO, &[&kind.to_be_bytes(), text.as_bytes()].concat());
            }
        }
        put_reply(out, option, reply::ACK, &[]);
        if go { self.agree(export) } else { Outcome::More }
    }

    fn contexts(&mut self, option: u32, data: &[u8], offers: &[Offer], out: &mut Vec<u8>) {
        let choose = option == option::SET_META_CONTEXT;
        if choose {
            self.allocation = None;
        }
        let Some((name, queries)) = haggling::decode_meta(data) else {
            return error(out, option, reply::ERR_INVALID, "a name and a list of queries are expected");
        };
        if !self.structured {
            return error(out, option, reply::ERR_INVALID, "structured replies have to be agreed on first");
        }
        let Some((export, _)) = find(offers, name) else {
            return error(out, option, reply::ERR_UNKNOWN, "there is no such export");
        };
        let all = !choose && (queries.is_empty() || queries.contains(&&b"base:"[..]));
        if all || queries.contains(&BASE_ALLOCATION.as_bytes()) {
            let mut data = ALLOCATION_ID.to_be_bytes().to_vec();
            data.extend(BASE_ALLOCATION.as_bytes());
            put_reply(out, option, reply::META_CONTEXT, &data);
            if choose {
                self.allocation = Some(export);
            }
        }
        put_reply(out, option, reply::ACK, &[]);
    }

    /// Flags that mean nothing without structured replies.
    fn unstructured(&self) -> ExportFlags {
        if self.structured { ExportFlags::empty() } else { ExportFlags::SEND_DF }
    }

    fn agree(&self, export: usize) -> Outcome {
        let allocation = self.allocation == Some(export);
        Outcome::Agreed(Agreement { export, structured: self.structured, allocation })
    }
}

/// Why a client may not be served beyond the limit of those that are.
pub(super) fn too_many(limits: &Limits) -> String {
    format!("this server has its {} clients; try again when one has gone", limits.clients)
}

fn error(out: &mut Vec<u8>, option: u32, kind: u32, text: &str) {
    put_reply(out, option, kind, text.as_bytes());
}

/// The export of that name; the empty name is the first one's, too.
fn find<'a>(offers: &'a [Offer], name: &[u8]) -> Option<(usize, &'a Offer)> {
    let named = offers.iter().enumerate().find(|(_, offer)| offer.name.as_bytes() == name);
    named.or_else(|| offers.iter().enumerate().next().filter(|_| name.is_empty()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::nbd::haggling::{Info, ReplyHead, encode_go, encode_meta, encode_option};

    fn offers() -> Vec<Offer> {
        let offer = |name: &str, min| Offer {
            name: name.into(),
            description: "for tests".into(),
            bytes: 1 << 20,
            flags: ExportFlags::HAS_FLAGS | ExportFlags::SEND_DF,
            sizes: BlockSizes { min, preferred: 4096, max: 4 << 20 },
        };
        vec![offer("disk", 512), offer("big", 4096)]
    }

    /// A client that has said hello, and the replies to what it says then.
    struct Client(Haggle);

    impl Client {
        fn new() -> Self {
            let mut out = Vec::new();
            let mut haggle = Haggle::new(&mut out);
            assert_eq!(haggle.input(&3u32.to_be_bytes(), &[], None, &mut out), Outcome::More);
            Self(haggle)
        }

        fn say(&mut self, option: u32, data: &[u8], refusal: Option<&str>) -> (Outcome, Vec<u8>) {
            let (mut rest, mut out) = (&encode_option(option, data)[..], Vec::new());
            loop {
                let (now, later) = rest.split_at(self.0.wanted().min(rest.len()));
                rest = later;
                let outcome = self.0.input(now, &offers(), refusal, &mut out);
                if rest.is_empty() || outcome != Outcome::More {
                    return (outcome, out);
                }
            }
        }

        /// The kinds of the replies, and their data.
        fn ask(&mut self, option: u32, data: &[u8]) -> (Outcome, Vec<(u32, Vec<u8>)>) {
            let (outcome, out) = self.say(option, data, None);
            (outcome, replies(option, &out))
        }
    }

    fn replies(option: u32, mut out: &[u8]) -> Vec<(u32, Vec<u8>)> {
        let mut all = Vec::new();
        while let Some((head, rest)) = out.split_first_chunk() {
            let head = ReplyHead::decode(*head).unwrap();
            assert_eq!(head.option, option);
            let (data, rest) = rest.split_at(head.len as usize);
            all.push((head.kind, data.to_vec()));
            out = rest;
        }
        assert!(out.is_empty());
        all
    }

    fn kinds(replies: &[(u32, Vec<u8>)]) -> Vec<u32> {
        replies.iter().map(|(kind, _)| *kind).collect()
    }

    #[test]
    fn go_tells_and_enters() {
        let mut client = Client::new();
        assert_eq!(kinds(&client.ask(option::STRUCTURED_REPLY, &[]).1), [reply::ACK]);
        let meta = encode_meta("disk", &[BASE_ALLOCATION, "other:x"]);
        assert_eq!(kinds(&client.ask(option::SET_META_CONTEXT, &meta).1), [reply::META_CONTEXT, reply::ACK]);
        let (outcome, replies) = client.ask(option::GO, &encode_go("", &[info::NAME]));
        let agreement = Agreement { export: 0, structured: true, allocation: true };
        assert_eq!(outcome, Outcome::Agreed(agreement), "the empty name is the first export's");
        assert_eq!(kinds(&replies), [reply::INFO, reply::INFO, reply::INFO, reply::ACK]);
        assert_eq!(Info::decode(&replies[0].1), Some(Info::Export(1 << 20, offers()[0].flags)));
        assert_eq!(&replies[2].1[2..], b"disk");
    }

    #[test]
    fn a_context_holds_for_its_export_only() {
        let mut client = Client::new();
        client.ask(option::STRUCTURED_REPLY, &[]);
        client.ask(option::SET_META_CONTEXT, &encode_meta("big", &[BASE_ALLOCATION]));
        let (outcome, _) = client.ask(option::GO, &encode_go("disk", &[]));
        assert_eq!(outcome, Outcome::Agreed(Agreement { export: 0, structured: true, allocation: false }));
    }

    #[test]
    fn what_is_wrong_is_answered_and_the_client_may_go_on() {
        let mut client = Client::new();
        let mut refused = |option, data: &[u8], kind| {
            let (outcome, replies) = client.ask(option, data);
            assert_eq!((outcome, kinds(&replies)), (Outcome::More, vec![kind]), "option {option}");
            assert!(!replies[0].1.is_empty(), "it says why");
        };
        refused(99, &[], reply::ERR_UNSUP);
        refused(5, &[], reply::ERR_UNSUP);
        refused(option::LIST, &[1], reply::ERR_INVALID);
        refused(option::GO, &[1], reply::ERR_INVALID);
        refused(option::GO, &encode_go("nobody", &[]), reply::ERR_UNKNOWN);
        refused(option::SET_META_CONTEXT, &encode_meta("disk", &[]), reply::ERR_INVALID);
        let most = vec![0; MAX_OPTION_DATA as usize];
        refused(99, &most, reply::ERR_UNSUP);
        refused(99, &[most, vec![0]].concat(), reply::ERR_TOO_BIG);
        assert_eq!(kinds(&client.ask(option::LIST, &[]).1), [reply::SERVER, reply::SERVER, reply::ACK]);
        // It is told the block size whether it asks or not: nbd-client does not, but can be told by hand.
        let (outcome, replies) = client.ask(option::GO, &encode_go("big", &[]));
        assert!(matches!(outcome, Outcome::Agreed(_)));
        assert_eq!(Info::decode(&replies[1].1), Some(Info::BlockSizes(offers()[1].sizes)));
    }

    #[test]
    fn one_client_too_many_is_told_so() {
        let mut client = Client::new();
        let (outcome, out) = client.say(option::GO, &encode_go("disk", &[]), Some("full"));
        assert_eq!((outcome, replies(option::GO, &out)), (Outcome::More, vec![(reply::ERR_POLICY, b"full".to_vec())]));
        assert!(matches!(client.say(option::EXPORT_NAME, b"disk", Some("full")).0, Outcome::Over(_)));
    }

    #[test]
    fn the_old_way_to_enter() {
        let mut client = Client::new();
        let (outcome, out) = client.say(option::EXPORT_NAME, b"disk", None);
        assert_eq!(outcome, Outcome::Agreed(Agreement { export: 0, structured: false, allocation: false }));
        assert_eq!((out.len(), &out[..8]), (10, &(1u64 << 20).to_be_bytes()[..]));
        assert_eq!(out[8..], ExportFlags::HAS_FLAGS.bits().to_be_bytes(), "no DF without structured replies");
        assert!(matches!(Client::new().say(option::EXPORT_NAME, b"nobody", None).0, Outcome::Over(_)));
        assert!(matches!(Client::new().say(option::EXPORT_NAME, b"big", None).0, Outcome::Agreed(_)));
        assert!(matches!(Client::new().say(option::EXPORT_NAME, &[b'x'; MAX_STRING + 1], None).0, Outcome::Over(_)));
    }

    #[test]
    fn who_speaks_something_else_is_left() {
        let mut out = Vec::new();
        for hello in [0, 4, 2, u32::MAX] {
            let outcome = Haggle::new(&mut out).input(&hello.to_be_bytes(), &[], None, &mut out);
            assert!(matches!(outcome, Outcome::Over(_)), "{hello}");
        }
        let mut client = Client::new();
        assert!(matches!(client.0.input(&[b'x'; OPTION_BYTES], &[], None, &mut out), Outcome::Over(_)));
        assert!(matches!(Client::new().ask(option::ABORT, &[]).0, Outcome::Over(_)));
    }
}
