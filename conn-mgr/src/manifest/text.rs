//! From TOML to [`Manifest`], keeping the place of everything that can be wrong.
//!
//! Two steps: the shape (keys and types: serde), then the sense ([`super::check`], which knows no text; its verdict is
//! brought back to a place in the text here).

use std::collections::BTreeMap;
use std::ops::Range;
use std::path::Path;

use fido_core::assignment::{Transport, WaitStrategy};
use serde::Deserialize;
use toml::Spanned;

use super::cpus::{self, RawCpus};
use super::error::{Place, Wrong};
use super::guest::{Platform, RawGuest};
use super::units::{Size, Span};
use super::{Domain, FencePolicy, Link, MAX_TEXT_BYTES, Manifest, ManifestError, Restart, RestartPolicy, program};

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawManifest {
    appliance: Spanned<String>,
    #[serde(default)]
    platform: Platform,
    #[serde(default)]
    fence: RawFence,
    #[serde(default)]
    domain: BTreeMap<Spanned<String>, RawDomain>,
    #[serde(default)]
    link: Vec<Spanned<RawLink>>,
}

#[derive(Deserialize, Default)]
#[serde(deny_unknown_fields)]
struct RawFence {
    deadline: Option<Spanned<Span>>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
struct RawDomain {
    program: Spanned<String>,
    #[serde(default)]
    args: Vec<Spanned<String>>,
    arena: Option<Spanned<Size>>,
    #[serde(default)]
    wait: WaitStrategy,
    cpus: Option<Spanned<RawCpus>>,
    #[serde(default)]
    windows: Vec<Spanned<String>>,
    #[serde(default)]
    restart: Restart,
    restart_limit: Option<u32>,
    restart_window: Option<Spanned<Span>>,
    restart_delay: Option<Spanned<Span>>,
    inherit: Option<Spanned<bool>>,
    #[serde(default)]
    after: Vec<Spanned<String>>,
    xen: Option<RawGuest>,
    #[serde(default)]
    params: BTreeMap<String, Spanned<toml::Value>>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawLink {
    name: Spanned<String>,
    between: Spanned<Vec<Spanned<String>>>,
    lanes: Option<Spanned<u16>>,
    slots: Option<Spanned<u32>>,
    #[serde(default)]
    transport: Transport,
}

/// A text and its name: makes errors.
struct Source<'a> {
    text: &'a str,
    file: &'a str,
}

impl Source<'_> {
    fn wrong(&self, span: Range<usize>, what: String, expected: impl Into<String>) -> ManifestError {
        ManifestError::Wrong(Wrong::at(self.text, self.file, span, what, expected.into()))
    }

    /// The decoder's own errors: "unknown field `x`, expected one of …", "invalid type: …, expected …".
    fn decoder(&self, error: &toml::de::Error) -> ManifestError {
        let message = error.message().trim();
        let (what, expected) = message.split_once(", expected ").unwrap_or((message, ""));
        self.wrong(error.span().unwrap_or(0..0), what.to_owned(), expected)
    }
}

/// See [`Manifest::parse`].
pub(super) fn parse(text: &str, file: &str) -> Result<Manifest, ManifestError> {
    if text.len() > MAX_TEXT_BYTES {
        return Err(ManifestError::TooLong { file: file.to_owned(), bytes: text.len() as u64 });
    }
    let source = Source { text, file };
    let raw: RawManifest = toml::from_str(text).map_err(|error| source.decoder(&error))?;
    let folder = Path::new(file).parent().unwrap_or(Path::new(""));
    let mut domains: Vec<_> = raw.domain.iter().collect();
    domains.sort_by_key(|(name, _)| name.span().start);
    let manifest = Manifest {
        appliance: raw.appliance.get_ref().clone(),
        platform: raw.platform,
        fence: raw.fence.deadline.as_ref().map_or(FencePolicy::default(), |d| FencePolicy { deadline: d.get_ref().0 }),
        domains: domains
            .iter()
            .map(|(name, domain)| self::domain(&source, raw.platform, name, domain, folder))
            .collect::<Result<_, _>>()?,
        links: raw.link.iter().map(|raw| link(&source, raw.get_ref())).collect::<Result<_, _>>()?,
    };
    manifest.check().map_err(|fault| {
        let span = place(&raw, &domains, &fault.place).unwrap_or(0..0);
        source.wrong(span, fault.what, fault.expected)
    })?;
    Ok(manifest)
}

fn domain(
    source: &Source,
    platform: Platform,
    name: &Spanned<String>,
    raw: &RawDomain,
    folder: &Path,
) -> Result<Domain, ManifestError> {
    // For a guest it is in the image; here it only matters to who makes that.
    let in_image = (platform == Platform::Xen).then(|| folder.join(raw.program.get_ref()));
    let program = program::locate(raw.program.get_ref(), folder).or(in_image).ok_or_else(|| {
        let expected = "an executable file: absolute, relative to the manifest's folder, or a bare name there, beside \
                        the running executable or in PATH";
        source.wrong(raw.program.span(), format!("program `{}` not found", raw.program.get_ref()), expected)
    })?;
    let mut params = BTreeMap::new();
    for (key, value) in &raw.params {
        let json = json(value.get_ref()).ok_or_else(|| {
            source.wrong(value.span(), format!("`{key}` holds a number that is not finite"), "a finite number")
        })?;
        params.insert(key.clone(), json);
    }
    let fallback = RestartPolicy::default();
    let span = |span: &Option<Spanned<Span>>, fallback| span.as_ref().map_or(fallback, |s| s.get_ref().0);
    let strings = |list: &[Spanned<String>]| list.iter().map(|s| s.get_ref().clone()).collect();
    let template = Domain::new(name.get_ref(), program);
    Ok(Domain {
        args: strings(&raw.args),
        arena: raw.arena.as_ref().map_or(template.arena, |size| size.get_ref().0),
        wait: raw.wait,
        cpus: raw.cpus.as_ref().map_or(Ok(template.cpus), |cpus| {
            cpus.get_ref().read().map_err(|wrong| source.wrong(cpus.span(), wrong, cpus::FORM))
        })?,
        windows: strings(&raw.windows),
        restart: RestartPolicy {
            when: raw.restart,
            limit: raw.restart_limit.unwrap_or(fallback.limit),
            window: span(&raw.restart_window, fallback.window),
            delay: span(&raw.restart_delay, fallback.delay),
        },
        inherit: raw.inherit.as_ref().is_some_and(|inherit| *inherit.get_ref()),
        after: strings(&raw.after),
        guest: raw.xen.as_ref().map(|guest| guest.read(folder)),
        params,
        ..template
    })
}

fn link(source: &Source, raw: &RawLink) -> Result<Link, ManifestError> {
    let [a, b] = raw.between.get_ref().as_slice() else {
        let what = format!("{} names in `between`", raw.between.get_ref().len());
        return Err(source.wrong(raw.between.span(), what, "the names of two domains"));
    };
    let template = Link::new(raw.name.get_ref(), a.get_ref(), b.get_ref());
    Ok(Link {
        lanes: raw.lanes.as_ref().map_or(template.lanes, |lanes| *lanes.get_ref()),
        slots: raw.slots.as_ref().map_or(template.slots, |slots| *slots.get_ref()),
        transport: raw.transport,
        ..template
    })
}

/// A parameter as JSON; dates become strings. `None` for numbers that JSON lacks.
fn json(value: &toml::Value) -> Option<serde_json::Value> {
    Some(match value {
        toml::Value::String(text) => text.clone().into(),
        toml::Value::Integer(number) => (*number).into(),
        toml::Value::Float(number) => serde_json::Number::from_f64(*number)?.into(),
        toml::Value::Boolean(truth) => (*truth).into(),
        toml::Value::Datetime(date) => date.to_string().into(),
        toml::Value::Array(items) => serde_json::Value::Array(items.iter().map(json).collect::<Option<_>>()?),
        toml::Value::Table(table) => {
            let entries = table.iter().map(|(key, value)| Some((key.clone(), json(value)?)));
            serde_json::Value::Object(entries.collect::<Option<_>>()?)
        }
    })
}

/// Where a place of the manifest is in the text. A key that is missing is at its domain's or link's name.
fn place(raw: &RawManifest, domains: &[(&Spanned<String>, &RawDomain)], place: &Place) -> Option<Range<usize>> {
    fn item<T>(list: &[Spanned<T>], index: Option<usize>) -> Option<Range<usize>> {
        Some(list.get(index.unwrap_or(0))?.span())
    }
    let found = match place {
        Place::Appliance => Some(raw.appliance.span()),
        Place::FenceDeadline => raw.fence.deadline.as_ref().map(Spanned::span),
        Place::Domain(index) => Some(domains.get(*index)?.0.span()),
        Place::DomainKey(index, key, at) => {
            let raw = domains.get(*index)?.1;
            match *key {
                "program" => Some(raw.program.span()),
                "args" => item(&raw.args, *at),
                "arena" => raw.arena.as_ref().map(Spanned::span),
                "cpus" => raw.cpus.as_ref().map(|cpus| cpus.get_ref().item(*at).unwrap_or_else(|| cpus.span())),
                "windows" => item(&raw.windows, *at),
                "after" => item(&raw.after, *at),
                "restart-window" => raw.restart_window.as_ref().map(Spanned::span),
                "restart-delay" => raw.restart_delay.as_ref().map(Spanned::span),
                "inherit" => raw.inherit.as_ref().map(Spanned::span),
                "params" => raw.params.values().next().map(Spanned::span),
                key => raw.xen.as_ref().and_then(|guest| guest.place(key, *at)),
            }
        }
        Place::Link(index) => Some(raw.link.get(*index)?.get_ref().name.span()),
        Place::LinkKey(index, key, at) => {
            let raw = raw.link.get(*index)?.get_ref();
            match *key {
                "between" => item(raw.between.get_ref(), *at),
                "lanes" => raw.lanes.as_ref().map(Spanned::span),
                "slots" => raw.slots.as_ref().map(Spanned::span),
                _ => None,
            }
        }
    };
    found.or_else(|| match place {
        Place::DomainKey(index, ..) => Some(domains.get(*index)?.0.span()),
        Place::LinkKey(index, ..) => Some(raw.link.get(*index)?.get_ref().name.span()),
        _ => None,
    })
}
