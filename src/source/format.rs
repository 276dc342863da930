//! The two forms in which API servers send objects.

use hyper::header::{CONTENT_TYPE, HeaderMap};

/// How objects are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// Every server and proxy understands it.
    Json,
    /// Less than half as long, as real API servers write it, and read with less work.
    Protobuf,
}

/// The media type of [`Format::Protobuf`]; streams of it have a parameter.
pub const PROTOBUF: &str = "application/vnd.kubernetes.protobuf";

// === impl Format ===

impl Format {
    /// The form of an answer with these headers. What is not protobuf is read as JSON.
    pub fn of(headers: &HeaderMap) -> Self {
        let media_type = headers.get(CONTENT_TYPE).map_or(&b""[..], |value| value.as_bytes());
        if media_type.starts_with(PROTOBUF.as_bytes()) { Self::Protobuf } else { Self::Json }
    }

    /// What to ask for. A server that has no protobuf answers with JSON.
    pub fn accept(self) -> &'static str {
        match self {
            Self::Json => "application/json",
            Self::Protobuf => "application/vnd.kubernetes.protobuf, application/json",
        }
    }
}
