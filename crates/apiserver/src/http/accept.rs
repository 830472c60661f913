//! `Accept`: which format a client wants, and which view of objects.

use fluyt_api::{Error, Reason};
use http::header::{ACCEPT, HeaderMap};

use crate::features::{Feature, Features};

/// How an object is written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Format {
    #[default]
    Json,
    Yaml,
    Protobuf,
    Cbor,
}

/// What a client wants to see of objects.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum View {
    #[default]
    Object,
    Table,
    PartialMetadata,
}

/// What was agreed on.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Accepted {
    pub format: Format,
    pub view: View,
}

/// What an endpoint has to offer.
#[derive(Clone, Copy, Debug, Default)]
pub struct Offer {
    pub features: Features,
    /// Built-in kinds only.
    pub protobuf: bool,
    /// A stream of events.
    pub watch: bool,
    /// A collection, whose endpoint also watches.
    pub list: bool,
    /// Neither a table nor metadata alone: answers that are not stored.
    pub only_whole: bool,
}

impl Format {
    #[must_use]
    pub fn media_type(self) -> &'static str {
        match self {
            Self::Json => "application/json",
            Self::Yaml => "application/yaml",
            Self::Protobuf => "application/vnd.kubernetes.protobuf",
            Self::Cbor => "application/cbor",
        }
    }

    /// Of a stream of events.
    #[must_use]
    pub fn watch_media_type(self) -> &'static str {
        match self {
            Self::Protobuf => "application/vnd.kubernetes.protobuf;stream=watch",
            Self::Cbor => "application/cbor-seq",
            _ => "application/json",
        }
    }
}

impl Offer {
    /// In order of preference.
    fn formats(self) -> impl Iterator<Item = Format> {
        [Format::Json, Format::Yaml, Format::Protobuf, Format::Cbor]
            .into_iter()
            .filter(move |format| match format {
                Format::Json => true,
                Format::Yaml => !self.watch,
                Format::Protobuf => self.protobuf,
                Format::Cbor => self.features.has(Feature::Cbor),
            })
    }

    /// As error messages list them.
    #[must_use]
    pub fn media_types(self) -> String {
        let name = |format: Format| match (self.watch, format) {
            (true, Format::Json) => "application/json;stream=watch",
            (true, format) => format.watch_media_type(),
            (false, format) => format.media_type(),
        };
        let names: Vec<&str> = self.formats().map(name).collect();
        names.join(", ")
    }

    /// Everything that the path of this endpoint answers with.
    fn of_path(self) -> String {
        let object = Self {
            watch: false,
            ..self
        };
        let mut all = object.media_types();
        if self.list || self.watch {
            let watch = Self {
                watch: true,
                ..self
            };
            all.push_str(", ");
            all.push_str(&watch.media_types());
        }
        all
    }
}

/// One element of `Accept`.
#[derive(Debug)]
struct Range<'a> {
    kind: &'a str,
    subtype: &'a str,
    quality: f32,
    parameters: Vec<(&'a str, &'a str)>,
}

impl<'a> Range<'a> {
    fn parse(text: &'a str) -> Option<Self> {
        let mut parts = text.split(';').map(str::trim);
        let media = parts.next()?;
        let (kind, subtype) = match media.split_once('/') {
            Some(pair) => pair,
            None if media == "*" => ("*", "*"),
            None => return None,
        };
        let mut range = Self {
            kind,
            subtype,
            quality: 1.0,
            parameters: Vec::new(),
        };
        for (name, value) in parts.filter_map(|p| p.split_once('=')) {
            if name == "q" {
                range.quality = value.parse().unwrap_or(1.0);
            } else {
                range.parameters.push((name, value));
            }
        }
        Some(range)
    }

    fn covers(&self, format: Format) -> bool {
        let Some((kind, subtype)) = format.media_type().split_once('/') else {
            return false;
        };
        (self.kind == "*" || self.kind == kind) && (self.subtype == "*" || self.subtype == subtype)
    }

    fn covers_text(&self) -> bool {
        matches!(self.kind, "*" | "text") && matches!(self.subtype, "*" | "plain")
    }

    fn parameter(&self, name: &str) -> Option<&'a str> {
        let found = self.parameters.iter().find(|(n, _)| *n == name);
        found.map(|(_, value)| *value)
    }

    /// What the range wants of objects; `None` when nobody can give it.
    fn view(&self) -> Option<View> {
        match (
            self.parameter("as"),
            self.parameter("g"),
            self.parameter("v"),
        ) {
            (None, _, _) => Some(View::Object),
            (Some("Table"), Some("meta.k8s.io"), Some("v1" | "v1beta1")) => Some(View::Table),
            (
                Some("PartialObjectMetadata" | "PartialObjectMetadataList"),
                Some("meta.k8s.io"),
                Some("v1" | "v1beta1"),
            ) => Some(View::PartialMetadata),
            _ => None,
        }
    }
}

fn header(headers: &HeaderMap) -> String {
    let values = headers.get_all(ACCEPT).iter();
    let values: Vec<&str> = values.filter_map(|v| v.to_str().ok()).collect();
    values.join(",")
}

/// Agrees with a client on a format and a view.
///
/// # Errors
/// 406 when nothing that it accepts can be served.
pub fn negotiate(headers: &HeaderMap, offer: Offer) -> Result<Accepted, Error> {
    let accept = header(headers);
    if accept.trim().is_empty() {
        return Ok(Accepted::default());
    }
    let mut ranges: Vec<Range<'_>> = accept.split(',').filter_map(Range::parse).collect();
    ranges.sort_by(|a, b| b.quality.total_cmp(&a.quality));
    for range in &ranges {
        let Some(view) = range.view() else { continue };
        if offer.only_whole && view != View::Object {
            continue;
        }
        for format in offer.formats().filter(|f| range.covers(*f)) {
            let streams = range.parameter("stream").is_none_or(|s| s == "watch");
            // Tables have no protobuf form.
            if streams && (view != View::Table || format != Format::Protobuf) {
                return Ok(Accepted { format, view });
            }
        }
    }
    // The path refuses types that it knows nothing of before the endpoint looks closer.
    let path = Offer {
        watch: false,
        ..offer
    };
    let known = |range: &Range<'_>| path.formats().any(|format| range.covers(format));
    let message = if ranges.iter().any(known) {
        format!(
            "only the following media types are accepted: {}",
            offer.media_types()
        )
    } else {
        format!(
            "406: Not Acceptable\n\nAvailable representations: {}",
            offer.of_path()
        )
    };
    Err(Error::generic(Reason::NotAcceptable, message))
}

/// What was agreed on of a page that is text for people and an object for programs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Structured {
    Text,
    Object { format: Format, version: String },
}

/// Agrees with a client on the form of such a page; an object has to be asked for by a group, version and kind that are
/// `known`.
///
/// # Errors
/// 406 when nothing that it accepts can be served.
pub fn negotiate_structured(
    headers: &HeaderMap,
    features: Features,
    known: impl Fn(&str, &str, &str) -> bool,
) -> Result<Structured, Error> {
    let accept = header(headers);
    if accept.trim().is_empty() {
        return Ok(Structured::Text);
    }
    let mut ranges: Vec<Range<'_>> = accept.split(',').filter_map(Range::parse).collect();
    ranges.sort_by(|a, b| b.quality.total_cmp(&a.quality));
    let formats = [Format::Json, Format::Yaml]
        .into_iter()
        .chain(features.has(Feature::Cbor).then_some(Format::Cbor));
    for range in &ranges {
        let of = |name| range.parameter(name).unwrap_or_default();
        if range.parameter("as").is_none() {
            if range.covers_text() {
                return Ok(Structured::Text);
            }
        } else if known(of("g"), of("v"), of("as"))
            && let Some(format) = formats.clone().find(|format| range.covers(*format))
        {
            let version = of("v").to_owned();
            return Ok(Structured::Object { format, version });
        }
    }
    let mut names = vec!["application/json", "application/yaml", "text/plain"];
    names.extend(features.has(Feature::Cbor).then_some("application/cbor"));
    let message = format!(
        "only the following media types are accepted: {}",
        names.join(", ")
    );
    Err(Error::new(Reason::NotAcceptable, message))
}

/// What a document of aggregated discovery is to show.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Discovery {
    /// What this server serves and what its peers do.
    Merged,
    /// What this server serves.
    WithoutPeers,
}

/// Which document of aggregated discovery a client wants, if it wants one.
#[must_use]
pub fn aggregated_discovery(headers: &HeaderMap, features: Features) -> Option<Discovery> {
    let accept = header(headers);
    let mut ranges: Vec<Range<'_>> = accept.split(',').filter_map(Range::parse).collect();
    ranges.sort_by(|a, b| b.quality.total_cmp(&a.quality));
    let is_aggregated = |range: &&Range<'_>| {
        let kind = ["g", "v", "as"].map(|name| range.parameter(name).unwrap_or_default());
        let formats = [Format::Json, Format::Yaml, Format::Protobuf];
        kind == ["apidiscovery.k8s.io", "v2", "APIGroupDiscoveryList"]
            && formats.into_iter().any(|format| range.covers(format))
    };
    let range = ranges.iter().find(is_aggregated)?;
    let knows_peers = features.has(Feature::UnknownVersionInteroperabilityProxy);
    let alone = knows_peers && range.parameter("profile") == Some("nopeer");
    Some(if alone {
        Discovery::WithoutPeers
    } else {
        Discovery::Merged
    })
}

/// The format for an answer that has no views, such as an error.
#[must_use]
pub fn plain_format(headers: &HeaderMap, features: Features) -> Format {
    let offer = Offer {
        features,
        protobuf: true,
        ..Offer::default()
    };
    negotiate(headers, offer).map_or(Format::Json, |accepted| accepted.format)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn discovery_is_aggregated_if_that_is_asked_for_by_name() {
        const V2: &str = "application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList";
        let wanted = |accept: &str, features| {
            let mut headers = HeaderMap::new();
            headers.insert(ACCEPT, accept.parse().unwrap());
            aggregated_discovery(&headers, features)
        };
        let without_peers = format!("{V2};profile=nopeer");
        let v2beta1 = V2.replace("v=v2", "v=v2beta1");
        let (merged, alone) = (Some(Discovery::Merged), Some(Discovery::WithoutPeers));
        for (accept, expected) in [
            ("application/json", None),
            (V2, merged),
            (&*v2beta1, None),
            (
                "text/html;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList",
                None,
            ),
            ("application/json;g=apidiscovery.k8s.io;v=v2", None),
            (&*without_peers, alone),
            (&*format!("{V2};profile=other"), merged),
            (
                &*format!("application/json,{v2beta1},{without_peers},{V2}"),
                alone,
            ),
            (&*format!("{without_peers};q=0.5,{V2}"), merged),
        ] {
            assert_eq!(wanted(accept, Features::default()), expected, "{accept}");
        }
        let off = Features::default().without(Feature::UnknownVersionInteroperabilityProxy);
        assert_eq!(wanted(&without_peers, off), merged);
    }

    #[test]
    fn pages_are_text_unless_an_object_is_asked_for_by_name() {
        let agree = |accept: &str| {
            let mut headers = HeaderMap::new();
            headers.insert(ACCEPT, accept.parse().unwrap());
            let known = |g: &str, v: &str, kind: &str| (g, v, kind) == ("g", "v1", "K");
            negotiate_structured(&headers, Features::default(), known).map_err(|e| e.message)
        };
        let object = |format| Structured::Object {
            format,
            version: "v1".into(),
        };
        assert_eq!(agree("*/*").unwrap(), Structured::Text);
        assert_eq!(
            agree("application/yaml;as=K;v=v1;g=g,text/plain").unwrap(),
            object(Format::Yaml)
        );
        assert_eq!(
            agree("application/json;as=K;v=v2;g=g,*/*;as=K;v=v1;g=g;q=0.5").unwrap(),
            object(Format::Json)
        );
        for accept in [
            "application/json",
            "text/plain;as=K;v=v1;g=g",
            "application/cbor;as=K;v=v1;g=g",
        ] {
            assert_eq!(
                agree(accept).unwrap_err(),
                "only the following media types are accepted: application/json, application/yaml, text/plain"
            );
        }
    }

    fn agree(accept: &str, offer: Offer) -> Result<(Format, View), String> {
        let mut headers = HeaderMap::new();
        headers.insert(ACCEPT, accept.parse().unwrap());
        negotiate(&headers, offer)
            .map(|a| (a.format, a.view))
            .map_err(|e| e.message)
    }

    fn builtin() -> Offer {
        Offer {
            protobuf: true,
            ..Offer::default()
        }
    }

    #[test]
    fn what_is_not_stored_has_no_table() {
        let mut headers = HeaderMap::new();
        let table = "application/json;as=Table;v=v1;g=meta.k8s.io";
        headers.insert(http::header::ACCEPT, table.parse().unwrap());
        let offer = Offer {
            only_whole: true,
            ..Offer::default()
        };
        assert_eq!(negotiate(&headers, offer).unwrap_err().code, 406);
        let either = format!("{table}, application/json");
        headers.insert(http::header::ACCEPT, either.parse().unwrap());
        assert_eq!(negotiate(&headers, offer).unwrap().view, View::Object);
    }

    #[test]
    fn negotiation() {
        let json = Ok((Format::Json, View::Object));
        assert_eq!(agree("application/json", builtin()), json);
        assert_eq!(agree("*/*", builtin()), json);
        assert_eq!(
            agree(
                "application/json;as=Table;v=v1;g=meta.k8s.io,application/json",
                builtin()
            ),
            Ok((Format::Json, View::Table))
        );
        assert_eq!(
            agree(
                "application/vnd.kubernetes.protobuf,application/json",
                builtin()
            ),
            Ok((Format::Protobuf, View::Object))
        );
        assert_eq!(
            agree(
                "application/vnd.kubernetes.protobuf,application/json",
                Offer::default()
            ),
            json
        );
        assert_eq!(
            agree("application/json;q=0.5,application/yaml;q=0.9", builtin()),
            Ok((Format::Yaml, View::Object))
        );
        assert_eq!(
            agree(
                "application/vnd.kubernetes.protobuf;as=PartialObjectMetadata;g=meta.k8s.io;v=v1,application/json",
                builtin()
            ),
            Ok((Format::Protobuf, View::PartialMetadata))
        );
    }

    #[test]
    fn refusals_are_upstreams() {
        assert_eq!(
            agree("image/png", Offer { list: true, ..builtin() }),
            Err("406: Not Acceptable\n\nAvailable representations: application/json, application/yaml, application/vnd.kubernetes.protobuf, application/json;stream=watch, application/vnd.kubernetes.protobuf;stream=watch".into())
        );
        assert_eq!(
            agree("application/vnd.kubernetes.protobuf;as=Table;g=meta.k8s.io;v=v1", builtin()),
            Err("only the following media types are accepted: application/json, application/yaml, application/vnd.kubernetes.protobuf".into())
        );
        assert_eq!(
            agree("application/yaml", Offer { watch: true, ..builtin() }),
            Err("only the following media types are accepted: application/json;stream=watch, application/vnd.kubernetes.protobuf;stream=watch".into())
        );
        assert!(agree("application/cbor", builtin()).is_err());
    }
}
