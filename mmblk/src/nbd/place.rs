//! Where an NBD server is: `host:port`, `unix:/path`, and the URIs `nbd://host:port/export` and
//! `nbd+unix:///export?socket=/path` of the protocol's `doc/uri.md`.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

/// The port of the protocol.
pub const PORT: u16 = 10809;

/// An address to listen on or to connect to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Place {
    /// A host's name or address, and a port.
    Tcp(String, u16),
    /// A Unix socket.
    Unix(PathBuf),
}

/// An export of a server.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Uri {
    /// Where the server is.
    pub place: Place,
    /// The export's name; empty for the default one.
    pub export: String,
}

/// A text that names no place.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{text:?}: {reason}")]
pub struct PlaceError {
    /// The text.
    pub text: String,
    /// What is wrong with it.
    pub reason: &'static str,
}

impl FromStr for Place {
    type Err = PlaceError;

    fn from_str(text: &str) -> Result<Self, PlaceError> {
        let wrong = |reason| PlaceError { text: text.into(), reason };
        if let Some(path) = text.strip_prefix("unix:") {
            return if path.is_empty() { Err(wrong("no path after `unix:`")) } else { Ok(Self::Unix(path.into())) };
        }
        tcp(text, None).map_err(wrong)
    }
}

impl FromStr for Uri {
    type Err = PlaceError;

    fn from_str(text: &str) -> Result<Self, PlaceError> {
        let wrong = |reason| PlaceError { text: text.into(), reason };
        let (scheme, rest) = text.split_once("://").ok_or_else(|| wrong("no URI: `://` is missing"))?;
        let (authority, path) = rest.split_once('/').unwrap_or((rest, ""));
        let (path, query) = path.split_once('?').unwrap_or((path, ""));
        let export = unescaped(path).ok_or_else(|| wrong("a `%` without two hexadecimal digits, or no UTF-8"))?;
        let socket = query.split('&').find_map(|pair| pair.strip_prefix("socket="));
        let place = match (scheme, socket) {
            ("nbd", None) => tcp(authority, Some(PORT)).map_err(wrong)?,
            ("nbd", Some(_)) => return Err(wrong("`socket` belongs to `nbd+unix://`")),
            ("nbd+unix", Some(path)) if authority.is_empty() && !path.is_empty() => {
                Place::Unix(unescaped(path).ok_or_else(|| wrong("the socket's path is malformed"))?.into())
            }
            ("nbd+unix", _) => return Err(wrong("it must be like nbd+unix:///EXPORT?socket=/PATH")),
            ("nbds" | "nbds+unix", _) => return Err(wrong("TLS is not supported")),
            _ => return Err(wrong("its scheme must be `nbd` or `nbd+unix`")),
        };
        Ok(Self { place, export })
    }
}

fn tcp(text: &str, default: Option<u16>) -> Result<Place, &'static str> {
    let bare = |host: &str| host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(host).to_owned();
    let (host, port) = match text.rsplit_once(':') {
        Some((host, port)) if !port.contains(']') => {
            (host, port.parse().map_err(|_| "the port is no number to 65535")?)
        }
        _ => (text, default.ok_or("it must be like HOST:PORT or unix:/PATH")?),
    };
    if host.is_empty() {
        return Err("no host");
    }
    Ok(Place::Tcp(bare(host), port))
}

/// The text without percent escapes.
fn unescaped(text: &str) -> Option<String> {
    let (mut out, mut rest) = (Vec::new(), text.as_bytes());
    while let Some((first, tail)) = rest.split_first() {
        rest = tail;
        if *first != b'%' {
            out.push(*first);
            continue;
        }
        let (digits, tail) = rest.split_at_checked(2)?;
        let digits = std::str::from_utf8(digits).ok().filter(|digits| digits.bytes().all(|d| d.is_ascii_hexdigit()))?;
        out.push(u8::from_str_radix(digits, 16).ok()?);
        rest = tail;
    }
    String::from_utf8(out).ok()
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp(host, port) if host.contains(':') => write!(f, "[{host}]:{port}"),
            Self::Tcp(host, port) => write!(f, "{host}:{port}"),
            Self::Unix(path) => write!(f, "unix:{}", path.display()),
        }
    }
}

impl fmt::Display for Uri {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.place {
            place @ Place::Tcp(..) => write!(f, "nbd://{place}/{}", self.export),
            Place::Unix(path) => write!(f, "nbd+unix:///{}?socket={}", self.export, path.display()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tcp(host: &str, port: u16) -> Place {
        Place::Tcp(host.into(), port)
    }

    #[test]
    fn places() {
        assert_eq!("127.0.0.1:10".parse(), Ok(tcp("127.0.0.1", 10)));
        assert_eq!("[::1]:0".parse(), Ok(tcp("::1", 0)));
        assert_eq!("unix:/run/x".parse(), Ok(Place::Unix("/run/x".into())));
        for wrong in ["", "host", ":1", "host:65536", "host:x", "unix:"] {
            assert!(wrong.parse::<Place>().is_err(), "{wrong}");
        }
        for place in ["127.0.0.1:10", "[::1]:0", "unix:/run/x"] {
            assert_eq!(place.parse::<Place>().unwrap().to_string(), place);
        }
    }

    #[test]
    fn uris() {
        let uri = |place, export: &str| Ok(Uri { place, export: export.into() });
        assert_eq!("nbd://host:1/disk".parse(), uri(tcp("host", 1), "disk"));
        assert_eq!("nbd://host".parse(), uri(tcp("host", PORT), ""));
        assert_eq!("nbd://[::1]/a%20b".parse(), uri(tcp("::1", PORT), "a b"));
        assert_eq!("nbd+unix:///d?socket=/run/x".parse(), uri(Place::Unix("/run/x".into()), "d"));
        assert_eq!("nbd+unix:///?socket=/run/x".parse(), uri(Place::Unix("/run/x".into()), ""));
        for wrong in [
            "host:1",
            "nbds://host",
            "http://host",
            "nbd+unix:///d",
            "nbd+unix://host/d?socket=/x",
            "nbd://h/%2",
            "nbd://h/%+1",
            "nbd://h/%ff",
            "nbd://h/x?socket=/y",
            "nbd:///x",
        ] {
            assert!(wrong.parse::<Uri>().is_err(), "{wrong}");
        }
    }
}
