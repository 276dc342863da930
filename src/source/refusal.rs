//! Why a request to the API server failed, in one line that says how to mend it.

use std::fmt;
use std::io;
use std::time::Duration;

use hyper::StatusCode;
use hyper::header::{HeaderMap, RETRY_AFTER};
use kube::core::Status;

use super::decode;
use super::format::Format;

/// Why a request failed.
#[derive(Debug)]
pub enum Error {
    /// There was no answer, or it broke off.
    Unreachable(String),
    /// The server answered that it will not.
    Refused(Refusal),
}

/// An answer that is not the one asked for.
#[derive(Debug)]
pub struct Refusal {
    /// HTTP status code.
    pub code: u16,
    /// In the server's words.
    pub message: String,
    /// When it wants to be asked again.
    pub retry_after: Option<Duration>,
}

/// An error with all its causes, which hyper leaves out.
pub(super) struct Chain<'a>(pub &'a (dyn std::error::Error + 'static));

// === impl Error ===

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unreachable(what) => f.write_str(what),
            Self::Refused(refusal) => refusal.fmt(f),
        }
    }
}

impl std::error::Error for Error {}

// === impl Refusal ===

impl Refusal {
    /// From the head and the body of an answer, which may be a Status or anything at all.
    pub(super) fn new(code: StatusCode, headers: &HeaderMap, body: &[u8]) -> Self {
        let explained = match Format::of(headers) {
            Format::Json => serde_json::from_slice::<Status>(body).ok().map(Self::from),
            Format::Protobuf => decode::refusal(body),
        };
        let seconds = headers.get(RETRY_AFTER).and_then(|value| value.to_str().ok()?.trim().parse().ok());
        let mut refusal = explained.filter(|refusal| !refusal.message.is_empty()).unwrap_or_else(|| Self {
            code: 0,
            message: String::from_utf8_lossy(body).lines().next().unwrap_or_default().trim().to_owned(),
            retry_after: None,
        });
        refusal.code = code.as_u16();
        refusal.retry_after = seconds.map(Duration::from_secs).or(refusal.retry_after);
        refusal
    }
}

impl From<Status> for Refusal {
    fn from(status: Status) -> Self {
        let seconds = status.details.map_or(0, |details| details.retry_after_seconds);
        let retry_after = (seconds > 0).then(|| Duration::from_secs(seconds.into()));
        Self { code: status.code, message: status.message, retry_after }
    }
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let hint = match self.code {
            401 => "; check the token or client certificate in the kubeconfig",
            403 => "; grant this user ClusterRole system:node-proxier",
            _ => "",
        };
        write!(f, "API server answers {}: {:?}{hint}", self.code, self.message)
    }
}

// === impl Chain ===

impl fmt::Display for Chain<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let causes = || std::iter::successors(Some(self.0), |error| error.source());
        // rustls says at length, and with a link, that there was no farewell; a server that is killed sends none.
        let ended = |error: &io::Error| error.kind() == io::ErrorKind::UnexpectedEof;
        if causes().any(|error| error.downcast_ref::<io::Error>().is_some_and(ended)) {
            return f.write_str("the server closed it without a farewell");
        }
        for (depth, error) in causes().enumerate() {
            write!(f, "{}{error}", if depth == 0 { "" } else { ": " })?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use hyper::header::HeaderValue;

    #[test]
    fn an_error_comes_with_its_causes_and_without_lectures() {
        let broken = io::Error::other(io::Error::other("cause"));
        assert_eq!(Chain(&broken).to_string(), "cause");
        let killed = io::Error::new(io::ErrorKind::UnexpectedEof, "no close_notify: see https://example.com");
        assert_eq!(Chain(&killed).to_string(), "the server closed it without a farewell");
    }

    fn refusal(code: u16, retry_after: Option<&'static str>, body: &str) -> Refusal {
        let mut headers = HeaderMap::new();
        if let Some(seconds) = retry_after {
            headers.insert(RETRY_AFTER, HeaderValue::from_static(seconds));
        }
        Refusal::new(StatusCode::from_u16(code).unwrap(), &headers, body.as_bytes())
    }

    #[test]
    fn refusals_are_understood_whoever_wrote_them() {
        let status = r#"{"kind":"Status","code":500,"message":"busy","details":{"retryAfterSeconds":3}}"#;
        for (retry_after, body, message, expected) in [
            (None, status, "busy", Some(3)),
            (Some("7"), status, "busy", Some(7)),
            (Some(" 1 "), "upstream is down\nand so on", "upstream is down", Some(1)),
            (Some("Tue, 02 Jan 2024 03:04:05 GMT"), "", "", None),
            (None, "{", "{", None),
        ] {
            let refusal = refusal(429, retry_after, body);
            assert_eq!((refusal.code, &*refusal.message), (429, message));
            assert_eq!(refusal.retry_after, expected.map(Duration::from_secs), "{retry_after:?} {body}");
        }
    }

    #[test]
    fn refusals_in_protobuf_are_understood_or_quoted() {
        let mut headers = HeaderMap::new();
        headers.insert(hyper::header::CONTENT_TYPE, HeaderValue::from_static("application/vnd.kubernetes.protobuf"));
        // An envelope (field 2) around a Status with a message (3), details (5) with seconds to wait (5), and a code (6).
        let busy = b"k8s\0\x12\x0c\x1a\x04busy\x2a\x02\x28\x03\x30\x09";
        for (body, message, seconds) in [(&busy[..], "busy", Some(3)), (b"bad gateway\n", "bad gateway", None)] {
            let refusal = Refusal::new(StatusCode::BAD_GATEWAY, &headers, body);
            assert_eq!((refusal.code, &*refusal.message), (502, message));
            assert_eq!(refusal.retry_after.map(|after| after.as_secs()), seconds);
        }
    }

    #[test]
    fn refusals_say_how_to_mend_them() {
        for (code, hint) in [(401, "check the token"), (403, "ClusterRole system:node-proxier")] {
            let text = refusal(code, None, "two\nlines").to_string();
            assert!(text.contains(hint) && !text.contains('\n'), "{text}");
        }
    }
}
