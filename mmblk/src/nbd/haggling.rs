//! The wire format of the negotiation before the first request: greetings, options and their replies.

use super::{ExportFlags, Fields};

/// The server's first eight bytes.
pub const MAGIC: u64 = u64::from_be_bytes(*b"NBDMAGIC");
/// The next eight, and the first of every option.
pub const OPTION_MAGIC: u64 = u64::from_be_bytes(*b"IHAVEOPT");
/// In the place of [`OPTION_MAGIC`]: a server of the old style, which knows no options.
pub const OLD_STYLE_MAGIC: u64 = 0x0000_4202_8186_1253;
/// The first eight bytes of a reply to an option.
pub const REPLY_MAGIC: u64 = 0x0003_e889_0455_65a9;
/// Flag of both greetings: options are answered one by one.
pub const FIXED_NEWSTYLE: u16 = 1;
/// Flag of both greetings: the 124 zeros after an old-fashioned entry are left out.
pub const NO_ZEROES: u16 = 2;
/// Bytes of an option before its data.
pub const OPTION_BYTES: usize = 16;
/// Bytes of a reply before its data.
pub const REPLY_BYTES: usize = 20;
/// The most data that an option can sensibly have: a name and a few queries.
pub const MAX_OPTION_DATA: u32 = 64 << 10;

/// The options that are known here.
pub mod option {
    /// Enters transmission, without a word if that fails.
    pub const EXPORT_NAME: u32 = 1;
    /// Ends the conversation.
    pub const ABORT: u32 = 2;
    /// Asks which exports there are.
    pub const LIST: u32 = 3;
    /// Asks what an export is like.
    pub const INFO: u32 = 6;
    /// The same, and enters transmission.
    pub const GO: u32 = 7;
    /// Asks for structured replies.
    pub const STRUCTURED_REPLY: u32 = 8;
    /// Asks which metadata contexts there are.
    pub const LIST_META_CONTEXT: u32 = 9;
    /// Chooses metadata contexts.
    pub const SET_META_CONTEXT: u32 = 10;
}

/// Kinds of replies to options.
pub mod reply {
    /// Done.
    pub const ACK: u32 = 1;
    /// An export's name.
    pub const SERVER: u32 = 2;
    /// A piece of information about an export.
    pub const INFO: u32 = 3;
    /// A metadata context.
    pub const META_CONTEXT: u32 = 4;
    /// The bit of all errors.
    pub const ERROR: u32 = 1 << 31;
    /// The option is not known.
    pub const ERR_UNSUP: u32 = ERROR | 1;
    /// Forbidden by the server's limits or settings.
    pub const ERR_POLICY: u32 = ERROR | 2;
    /// The option's data makes no sense.
    pub const ERR_INVALID: u32 = ERROR | 3;
    /// There is no such export.
    pub const ERR_UNKNOWN: u32 = ERROR | 6;
    /// The option has too much data.
    pub const ERR_TOO_BIG: u32 = ERROR | 9;
}

/// Kinds of information.
pub mod info {
    /// Size and flags.
    pub const EXPORT: u16 = 0;
    /// The export's canonical name.
    pub const NAME: u16 = 1;
    /// A text about it.
    pub const DESCRIPTION: u16 = 2;
    /// Block sizes.
    pub const BLOCK_SIZE: u16 = 3;
}

/// The least, preferred and greatest size of a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BlockSizes {
    /// Offsets and lengths are multiples of it.
    pub min: u32,
    /// What is fast.
    pub preferred: u32,
    /// The most bytes of payload in one request.
    pub max: u32,
}

/// The server's greeting.
pub fn greeting() -> [u8; 18] {
    let mut out = [0; 18];
    out[..8].copy_from_slice(&MAGIC.to_be_bytes());
    out[8..16].copy_from_slice(&OPTION_MAGIC.to_be_bytes());
    out[16..].copy_from_slice(&(FIXED_NEWSTYLE | NO_ZEROES).to_be_bytes());
    out
}

/// An option with its data.
pub fn encode_option(option: u32, data: &[u8]) -> Vec<u8> {
    let mut out = OPTION_MAGIC.to_be_bytes().to_vec();
    out.extend(option.to_be_bytes());
    // Data is made here and short.
    out.extend((data.len() as u32).to_be_bytes());
    out.extend(data);
    out
}

/// An option's code and the length of its data; `None` if it is no option.
pub fn decode_option(bytes: [u8; OPTION_BYTES]) -> Option<(u32, u32)> {
    let mut fields = Fields(&bytes);
    let found = fields.u64()? == OPTION_MAGIC;
    let header = (fields.u32()?, fields.u32()?);
    found.then_some(header)
}

/// Appends a reply to an option.
pub fn put_reply(out: &mut Vec<u8>, option: u32, kind: u32, data: &[u8]) {
    out.extend(REPLY_MAGIC.to_be_bytes());
    out.extend(option.to_be_bytes());
    out.extend(kind.to_be_bytes());
    out.extend((data.len() as u32).to_be_bytes());
    out.extend(data);
}

/// The head of a reply to an option.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ReplyHead {
    /// The option that is answered.
    pub option: u32,
    /// What kind of answer.
    pub kind: u32,
    /// Bytes of data behind it.
    pub len: u32,
}

impl ReplyHead {
    /// `None` if it is no reply.
    pub fn decode(bytes: [u8; REPLY_BYTES]) -> Option<Self> {
        let mut fields = Fields(&bytes);
        let found = fields.u64()? == REPLY_MAGIC;
        let head = Self { option: fields.u32()?, kind: fields.u32()?, len: fields.u32()? };
        found.then_some(head)
    }
}

/// The information that every export has.
pub fn encode_export(bytes: u64, flags: ExportFlags) -> Vec<u8> {
    let mut out = info::EXPORT.to_be_bytes().to_vec();
    out.extend(bytes.to_be_bytes());
    out.extend(flags.bits().to_be_bytes());
    out
}

/// The information about block sizes.
pub fn encode_block_sizes(sizes: BlockSizes) -> Vec<u8> {
    let mut out = info::BLOCK_SIZE.to_be_bytes().to_vec();
    [sizes.min, sizes.preferred, sizes.max].iter().for_each(|size| out.extend(size.to_be_bytes()));
    out
}

/// A piece of information that a server has sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Info {
    /// Size in bytes, and flags.
    Export(u64, ExportFlags),
    /// Block sizes.
    BlockSizes(BlockSizes),
    /// Something else, which may be ignored.
    Other(u16),
}

impl Info {
    /// `None` if it is cut short.
    pub fn decode(data: &[u8]) -> Option<Self> {
        let mut fields = Fields(data);
        Some(match fields.u16()? {
            info::EXPORT => Self::Export(fields.u64()?, ExportFlags::from_bits_retain(fields.u16()?)),
            info::BLOCK_SIZE => {
                Self::BlockSizes(BlockSizes { min: fields.u32()?, preferred: fields.u32()?, max: fields.u32()? })
            }
            other => Self::Other(other),
        })
    }
}

/// What `INFO` and `GO` carry: an export's name, and what is to be told of it.
pub fn encode_go(name: &str, infos: &[u16]) -> Vec<u8> {
    let mut out = (name.len() as u32).to_be_bytes().to_vec();
    out.extend(name.as_bytes());
    out.extend((infos.len() as u16).to_be_bytes());
    infos.iter().for_each(|info| out.extend(info.to_be_bytes()));
    out
}

/// The name and the wanted information of an `INFO` or `GO`; `None` if it is malformed.
pub fn decode_go(data: &[u8]) -> Option<(&[u8], Vec<u16>)> {
    let mut fields = Fields(data);
    let name = fields.string()?;
    let infos = (0..fields.u16()?).map(|_| fields.u16()).collect::<Option<Vec<u16>>>()?;
    fields.0.is_empty().then_some((name, infos))
}

/// What the options about metadata contexts carry: an export's name, and queries.
pub fn encode_meta(name: &str, queries: &[&str]) -> Vec<u8> {
    let mut out = (name.len() as u32).to_be_bytes().to_vec();
    out.extend(name.as_bytes());
    out.extend((queries.len() as u32).to_be_bytes());
    for query in queries {
        out.extend((query.len() as u32).to_be_bytes());
        out.extend(query.as_bytes());
    }
    out
}

/// The name and the queries of an option about metadata contexts; `None` if it is malformed.
pub fn decode_meta(data: &[u8]) -> Option<(&[u8], Vec<&[u8]>)> {
    let mut fields = Fields(data);
    let name = fields.string()?;
    let count = fields.u32()?;
    let mut queries = Vec::new();
    for _ in 0..count {
        // Each takes bytes of the data, so a wild count ends here.
        queries.push(fields.string()?);
    }
    fields.0.is_empty().then_some((name, queries))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn magic_numbers_are_those_of_the_protocol() {
        assert_eq!((MAGIC, OPTION_MAGIC), (0x4e42_444d_4147_4943, 0x4948_4156_454f_5054));
        assert_eq!(&greeting()[..16], b"NBDMAGICIHAVEOPT");
    }

    #[test]
    fn options_and_replies_are_read_as_written() {
        let option = encode_option(option::GO, b"abc");
        assert_eq!(decode_option(*option.first_chunk().unwrap()), Some((option::GO, 3)));
        assert_eq!(decode_option([0; OPTION_BYTES]), None);
        let mut out = Vec::new();
        put_reply(&mut out, option::LIST, reply::SERVER, b"abcd");
        let head = ReplyHead { option: option::LIST, kind: reply::SERVER, len: 4 };
        assert_eq!(ReplyHead::decode(*out.first_chunk().unwrap()), Some(head));
        assert_eq!(ReplyHead::decode([1; REPLY_BYTES]), None);
    }

    #[test]
    fn data_is_exact() {
        let go = encode_go("disk", &[info::BLOCK_SIZE, info::NAME]);
        assert_eq!(decode_go(&go), Some((&b"disk"[..], vec![info::BLOCK_SIZE, info::NAME])));
        let meta = encode_meta("disk", &["base:allocation", "x:"]);
        assert_eq!(decode_meta(&meta), Some((&b"disk"[..], vec![&b"base:allocation"[..], b"x:"])));
        for cut in 0..go.len() {
            assert_eq!(decode_go(&go[..cut]), None, "{cut}");
        }
        for cut in 0..meta.len() {
            assert_eq!(decode_meta(&meta[..cut]), None, "{cut}");
        }
        assert_eq!(decode_go(&[go, vec![0]].concat()), None);
        assert_eq!(decode_meta(&[meta, vec![0]].concat()), None);
    }

    #[test]
    fn informations_are_read_as_written() {
        let flags = ExportFlags::HAS_FLAGS | ExportFlags::SEND_DF;
        assert_eq!(Info::decode(&encode_export(77, flags)), Some(Info::Export(77, flags)));
        let sizes = BlockSizes { min: 1, preferred: 2, max: 3 };
        assert_eq!(Info::decode(&encode_block_sizes(sizes)), Some(Info::BlockSizes(sizes)));
        assert_eq!(Info::decode(&[0, 1, b'x']), Some(Info::Other(info::NAME)));
        assert_eq!(Info::decode(&[0, 0, 1]), None);
    }
}
