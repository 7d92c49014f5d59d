//! Requests to the store that the crate can make.

use std::fmt;
use std::io;
use std::sync::{Mutex, PoisonError};

use xenstore_rs::Xs;
use xenstore_rs::unix::XsUnix;

use crate::platform::xen::store::wire::Kind;
use crate::platform::xen::store::{Code, StoreError};

/// A connection of the crate's own, beside the one for everything else.
pub struct Plain(Mutex<XsUnix>);

impl Plain {
    /// Connects by xenstored's socket or the kernel's device, as the crate finds them.
    ///
    /// # Errors
    /// [`StoreError::System`].
    pub fn connect() -> Result<Self, StoreError> {
        let failed = |source| StoreError::System { step: "connect by xenstore-rs", source };
        Ok(Self(Mutex::new(XsUnix::new().map_err(failed)?)))
    }

    /// The content of the reply; `None` if the crate cannot do this.
    pub fn request(&self, kind: Kind, path: &str, rest: &[u8]) -> Option<Result<Vec<u8>, StoreError>> {
        let text = std::str::from_utf8(rest).ok().filter(|text| !text.contains('\0'));
        let xs = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let done = match (kind, text) {
            (Kind::Read, _) => xs.read(path).map(|value| value.as_bytes().to_vec()),
            (Kind::Directory, _) => xs.directory(path).map(|names| list(&names)),
            (Kind::Write, Some(value)) => xs.write(path, value).map(|()| Vec::new()),
            (Kind::Remove, _) => xs.rm(path).map(|()| Vec::new()),
            _ => return None,
        };
        match done {
            Ok(content) => Some(Ok(content)),
            Err(error) => refusal(&error, kind, path).map(Err),
        }
    }
}

impl fmt::Debug for Plain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Plain")
    }
}

fn list(names: &[Box<str>]) -> Vec<u8> {
    names.iter().flat_map(|name| name.bytes().chain([0])).collect()
}

/// What the crate's error stands for; `None` for a value that is not text, which the crate cannot hand over.
fn refusal(error: &io::Error, kind: Kind, path: &str) -> Option<StoreError> {
    // xenstored's own word is at the end of the crate's text only.
    let said = error.get_ref().map(ToString::to_string).unwrap_or_default();
    if let Some(code) = said.strip_prefix("XS interface error ") {
        return Some(StoreError::Refused { operation: kind, path: path.to_owned(), code: Code::of(code) });
    }
    match error.kind() {
        io::ErrorKind::InvalidData => None,
        io::ErrorKind::UnexpectedEof | io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionReset => {
            Some(StoreError::Gone)
        }
        _ => {
            let source = io::Error::new(error.kind(), error.to_string());
            Some(StoreError::System { step: "ask by xenstore-rs", source })
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_crates_errors_are_told_apart() {
        let of = |kind, text: &str| refusal(&io::Error::new(kind, text.to_owned()), Kind::Read, "a");
        let code = |text: &str| of(io::ErrorKind::Other, text).and_then(|error| error.code().cloned());
        assert_eq!(code("XS interface error ENOENT"), Some(Code::NoEntry));
        assert_eq!(code("XS interface error E2BIG"), Some(Code::TooBig));
        assert_eq!(code("XS interface error EACCES"), Some(Code::NotPermitted));
        assert!(of(io::ErrorKind::InvalidData, "invalid utf-8").is_none());
        assert!(matches!(refusal(&io::ErrorKind::UnexpectedEof.into(), Kind::Read, "a"), Some(StoreError::Gone)));
        assert!(matches!(of(io::ErrorKind::Other, "else"), Some(StoreError::System { .. })));
    }

    #[test]
    fn names_are_listed_as_xenstored_does() {
        assert_eq!(list(&["a".into(), "bc".into()]), b"a\0bc\0");
        assert_eq!(list(&[]), b"");
    }
}
