//! xenstore's wire format: packets of a 16-byte header and at most 4096 bytes, and what is in them.
//!
//! Constants and layout are those of Xen's public header `io/xs_wire.h` and of `docs/misc/xenstore.txt`. Pure
//! functions over bytes: whatever comes, the answer is a value or a [`WireError`], never a panic.

/// The most bytes that one packet carries (`XENSTORE_PAYLOAD_MAX`).
pub const MAX_PAYLOAD_BYTES: usize = 4096;
/// The longest path from the root (`XENSTORE_ABS_PATH_MAX`), in bytes.
pub const MAX_PATH_BYTES: usize = 3072;
/// The longest path relative to the domain's own (`XENSTORE_REL_PATH_MAX`), in bytes.
pub const MAX_RELATIVE_PATH_BYTES: usize = 2048;
/// The length of a packet's header.
pub const HEADER_BYTES: usize = 16;

/// The kinds of packets that this client knows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u32)]
pub enum Kind {
    /// `XS_DIRECTORY`: the children of a node.
    Directory = 1,
    /// `XS_READ`.
    Read = 2,
    /// `XS_GET_PERMS`.
    GetPermissions = 3,
    /// `XS_WATCH`.
    Watch = 4,
    /// `XS_UNWATCH`.
    Unwatch = 5,
    /// `XS_TRANSACTION_START`.
    TransactionStart = 6,
    /// `XS_TRANSACTION_END`.
    TransactionEnd = 7,
    /// `XS_GET_DOMAIN_PATH`.
    GetDomainPath = 10,
    /// `XS_WRITE`.
    Write = 11,
    /// `XS_MKDIR`.
    MakeDirectory = 12,
    /// `XS_RM`.
    Remove = 13,
    /// `XS_SET_PERMS`.
    SetPermissions = 14,
    /// `XS_WATCH_EVENT`: the only packet that nobody asked for.
    WatchEvent = 15,
    /// `XS_ERROR`.
    Error = 16,
    /// `XS_DIRECTORY_PART`: a part of the children of a node that has many.
    DirectoryPart = 22,
}

impl Kind {
    /// The kind with this number, if it is one of those above.
    pub const fn of(number: u32) -> Option<Self> {
        Some(match number {
            1 => Self::Directory,
            2 => Self::Read,
            3 => Self::GetPermissions,
            4 => Self::Watch,
            5 => Self::Unwatch,
            6 => Self::TransactionStart,
            7 => Self::TransactionEnd,
            10 => Self::GetDomainPath,
            11 => Self::Write,
            12 => Self::MakeDirectory,
            13 => Self::Remove,
            14 => Self::SetPermissions,
            15 => Self::WatchEvent,
            16 => Self::Error,
            22 => Self::DirectoryPart,
            _ => return None,
        })
    }
}

/// Why bytes are not what they should be.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum WireError {
    /// A packet, to be sent or received, that is too long.
    #[error("a packet with {bytes} bytes of content; xenstore's limit is {MAX_PAYLOAD_BYTES}")]
    TooLong {
        /// How many.
        bytes: usize,
    },
    /// A kind that does not exist, or that never comes from xenstored.
    #[error("a packet of kind {0}, which is not known")]
    Kind(u32),
    /// The content cannot be parsed.
    #[error("{what} in {content:?}")]
    Content {
        /// What is wrong.
        what: &'static str,
        /// The beginning of the content.
        content: String,
    },
    /// A path that xenstore would not have.
    #[error(
        "{path:?} is no path: it must be up to {MAX_RELATIVE_PATH_BYTES} bytes (from the root {MAX_PATH_BYTES}) of \
         letters, digits and -_@, with a single / between names"
    )]
    Path {
        /// The path.
        path: String,
    },
    /// A watch's token with a NUL, or too long.
    #[error("{token:?} is no token for a watch")]
    Token {
        /// The token.
        token: String,
    },
}

fn content_error(what: &'static str, content: &[u8]) -> WireError {
    WireError::Content { what, content: String::from_utf8_lossy(&content[..content.len().min(80)]).into_owned() }
}

/// A packet. The numbers of its header are in the machine's byte order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Packet {
    /// What it is.
    pub kind: Kind,
    /// The request's number, repeated in its reply.
    pub request: u32,
    /// The transaction, 0 for none.
    pub transaction: u32,
    /// The content.
    pub content: Vec<u8>,
}

impl Packet {
    /// The bytes of the packet.
    ///
    /// # Errors
    /// [`WireError::TooLong`].
    pub fn encode(&self) -> Result<Vec<u8>, WireError> {
        let len = self.content.len();
        if len > MAX_PAYLOAD_BYTES {
            return Err(WireError::TooLong { bytes: len });
        }
        let mut bytes = Vec::with_capacity(HEADER_BYTES + len);
        for word in [self.kind as u32, self.request, self.transaction, len as u32] {
            bytes.extend_from_slice(&word.to_ne_bytes());
        }
        bytes.extend_from_slice(&self.content);
        Ok(bytes)
    }
}

/// Cuts a stream of bytes into packets.
#[derive(Debug, Default)]
pub struct Decoder {
    bytes: Vec<u8>,
}

impl Decoder {
    /// Takes in what was read.
    pub fn push(&mut self, bytes: &[u8]) {
        self.bytes.extend_from_slice(bytes);
    }

    /// The next packet, if all of it is there.
    ///
    /// # Errors
    /// [`WireError`]: where the next packet begins cannot be known any more.
    pub fn take(&mut self) -> Result<Option<Packet>, WireError> {
        let Some((header, rest)) = self.bytes.split_first_chunk::<HEADER_BYTES>() else { return Ok(None) };
        let word = |at: usize| u32::from_ne_bytes([header[at], header[at + 1], header[at + 2], header[at + 3]]);
        let (kind, len) = (word(0), word(12) as usize);
        if len > MAX_PAYLOAD_BYTES {
            return Err(WireError::TooLong { bytes: len });
        }
        let kind = Kind::of(kind).ok_or(WireError::Kind(kind))?;
        let Some(content) = rest.get(..len) else { return Ok(None) };
        let packet = Packet { kind, request: word(4), transaction: word(8), content: content.to_vec() };
        self.bytes.drain(..HEADER_BYTES + len);
        Ok(Some(packet))
    }
}

/// Checks a path as xenstored does. Names that begin with `@` are its special watches.
///
/// # Errors
/// [`WireError::Path`].
pub fn check_path(path: &str) -> Result<(), WireError> {
    let limit = if path.starts_with('/') { MAX_PATH_BYTES } else { MAX_RELATIVE_PATH_BYTES };
    let is_known = |c: u8| c.is_ascii_alphanumeric() || b"-/_@".contains(&c);
    let is_fine = !path.is_empty()
        && path.len() <= limit
        && path.bytes().all(is_known)
        && !path.contains("//")
        && (path == "/" || !path.ends_with('/'));
    if is_fine { Ok(()) } else { Err(WireError::Path { path: path.chars().take(80).collect() }) }
}

/// The strings of a content that consists of them, each ended by a NUL.
///
/// # Errors
/// [`WireError::Content`] if the last one is not ended, or one is not UTF-8.
pub fn strings(content: &[u8]) -> Result<Vec<&str>, WireError> {
    let Some((&last, front)) = content.split_last() else { return Ok(Vec::new()) };
    if last != 0 {
        return Err(content_error("no NUL at the end", content));
    }
    let texts = front.split(|&byte| byte == 0).map(std::str::from_utf8);
    texts.collect::<Result<_, _>>().map_err(|_| content_error("a string that is not UTF-8", content))
}

/// A content that is one string. Some answers of some xenstores lack the NUL.
///
/// # Errors
/// [`WireError::Content`] if it is more than one, or not UTF-8.
pub fn string(content: &[u8]) -> Result<&str, WireError> {
    let text = content.strip_suffix(&[0]).unwrap_or(content);
    match std::str::from_utf8(text) {
        Ok(text) if !text.contains('\0') => Ok(text),
        _ => Err(content_error("more than one string, or not UTF-8", content)),
    }
}

/// A content that is a decimal number.
///
/// # Errors
/// [`WireError::Content`].
pub fn number(content: &[u8]) -> Result<u32, WireError> {
    string(content)?.parse().map_err(|_| content_error("no number", content))
}

/// The node and the token of a watch event.
///
/// # Errors
/// [`WireError::Content`].
pub fn watch_event(content: &[u8]) -> Result<(&str, &str), WireError> {
    match strings(content)?.as_slice() {
        [path, token] => Ok((path, token)),
        _ => Err(content_error("not a path and a token", content)),
    }
}

/// One answer to [`Kind::DirectoryPart`].
#[derive(Debug, PartialEq, Eq)]
pub struct DirectoryPart<'a> {
    /// Changes whenever the children do.
    pub generation: &'a str,
    /// Some of the children.
    pub names: Vec<&'a str>,
    /// The bytes that they take in the whole list: where the next part begins.
    pub bytes: usize,
    /// Whether there are no more.
    pub is_last: bool,
}

/// Takes an answer to [`Kind::DirectoryPart`] apart: a generation, names, and at the very end an empty one.
///
/// # Errors
/// [`WireError::Content`].
pub fn directory_part(content: &[u8]) -> Result<DirectoryPart<'_>, WireError> {
    let all = strings(content)?;
    let Some((&generation, names)) = all.split_first() else {
        return Err(content_error("no generation", content));
    };
    let (names, is_last) = match names.split_last() {
        Some((&"", front)) => (front, true),
        Some(_) => (names, false),
        None => return Err(content_error("neither a name nor the end", content)),
    };
    if names.contains(&"") {
        return Err(content_error("a child without a name", content));
    }
    let bytes = names.iter().map(|name| name.len() + 1).sum();
    Ok(DirectoryPart { generation, names: names.to_vec(), bytes, is_last })
}

/// What a domain may do with a node.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Access {
    /// `n`.
    None,
    /// `r`.
    Read,
    /// `w`.
    Write,
    /// `b`.
    Both,
}

impl Access {
    /// Whether it includes reading.
    pub fn may_read(self) -> bool {
        matches!(self, Self::Read | Self::Both)
    }

    /// Whether it includes writing.
    pub fn may_write(self) -> bool {
        matches!(self, Self::Write | Self::Both)
    }
}

/// One entry of a node's permissions. The first entry is special: its domain owns the node and may do everything, and
/// its access is that of all who have no entry.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Permission {
    /// Whose.
    pub domain: u16,
    /// What.
    pub access: Access,
}

impl Permission {
    /// As it is written: `n5`, `r0`, ….
    pub fn encode(self) -> String {
        let letter = match self.access {
            Access::None => 'n',
            Access::Read => 'r',
            Access::Write => 'w',
            Access::Both => 'b',
        };
        format!("{letter}{}", self.domain)
    }

    fn decode(text: &str) -> Option<Self> {
        let mut letters = text.chars();
        let access = match letters.next()? {
            'n' => Access::None,
            'r' => Access::Read,
            'w' => Access::Write,
            'b' => Access::Both,
            _ => return None,
        };
        Some(Self { domain: letters.as_str().parse().ok()?, access })
    }
}

/// A node's permissions.
///
/// # Errors
/// [`WireError::Content`] if there are none, or one is malformed.
pub fn permissions(content: &[u8]) -> Result<Vec<Permission>, WireError> {
    let entries: Option<Vec<_>> = strings(content)?.into_iter().map(Permission::decode).collect();
    match entries {
        Some(entries) if !entries.is_empty() => Ok(entries),
        _ => Err(content_error("not a list of permissions", content)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn packet(content: Vec<u8>) -> Packet {
        Packet { kind: Kind::Read, request: 7, transaction: 3, content }
    }

    #[test]
    fn the_length_limit() {
        let bytes = packet(vec![1; MAX_PAYLOAD_BYTES]).encode().unwrap();
        let mut decoder = Decoder::default();
        decoder.push(&bytes);
        assert_eq!(decoder.take().unwrap().unwrap(), packet(vec![1; MAX_PAYLOAD_BYTES]));
        assert_eq!(packet(vec![1; 4097]).encode(), Err(WireError::TooLong { bytes: 4097 }));
        let mut long = bytes;
        long[12..16].copy_from_slice(&4097u32.to_ne_bytes());
        decoder.push(&long);
        assert_eq!(decoder.take(), Err(WireError::TooLong { bytes: 4097 }));
    }

    #[test]
    fn every_kind_is_its_number() {
        let known = (0..100).filter_map(|number| Some((number, Kind::of(number)?)));
        let known: Vec<_> = known.collect();
        assert_eq!(known.len(), 15);
        assert!(known.iter().all(|(number, kind)| *kind as u32 == *number));
    }

    #[test]
    fn paths() {
        let names = "a/".repeat(1023) + "ab";
        for fine in ["/", "/local/domain/0", "data/fido", "@releaseDomain", "a_b-c/9", &names] {
            assert_eq!(check_path(fine), Ok(()), "{fine}");
        }
        assert!(names.len() == MAX_RELATIVE_PATH_BYTES && check_path(&format!("{names}c")).is_err());
        let absolute = "/a".repeat(MAX_PATH_BYTES / 2);
        assert!(check_path(&absolute).is_ok() && check_path(&format!("{absolute}a")).is_err());
        for bad in ["", "a//b", "a/", "a b", "a\0b", "ä", "a.b", "a:b"] {
            assert!(check_path(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn parts_of_a_directory() {
        let part = directory_part(b"12\0a\0bc\0").unwrap();
        assert_eq!((part.generation, part.names, part.bytes, part.is_last), ("12", vec!["a", "bc"], 5, false));
        let last = directory_part(b"12\0d\0\0").unwrap();
        assert_eq!((last.names, last.bytes, last.is_last), (vec!["d"], 2, true));
        assert!(directory_part(b"12\0\0").unwrap().is_last, "an empty directory, or beyond its end");
        for bad in [&b""[..], b"12\0", b"12", b"12\0a", b"12\0\0a\0", b"12\0\xff\0"] {
            assert!(directory_part(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn permissions_in_letters() {
        let entries = permissions(b"n5\0r0\0b32752\0w1\0").unwrap();
        let text: Vec<_> = entries.iter().map(|entry| entry.encode()).collect();
        assert_eq!(text, ["n5", "r0", "b32752", "w1"]);
        for bad in [&b""[..], b"n5", b"x5\0", b"n\0", b"n-1\0", b"n65536\0", b"\0", b"n5\0\0"] {
            assert!(permissions(bad).is_err(), "{bad:?}");
        }
    }

    proptest! {
        #[test]
        fn packets_survive_any_cut(
            contents in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..100), 0..5), cut in 1usize..40,
        ) {
            let bytes: Vec<u8> = contents.iter().flat_map(|content| packet(content.clone()).encode().unwrap()).collect();
            let (mut decoder, mut seen) = (Decoder::default(), Vec::new());
            for part in bytes.chunks(cut) {
                decoder.push(part);
                while let Some(packet) = decoder.take().unwrap() {
                    seen.push(packet.content);
                }
            }
            prop_assert_eq!(seen, contents);
        }
    }
}
