//! The pages of the metrics server (contract 12.2): what each path answers.
//!
//! Must not change anything but its own counters: whoever reaches the port may ask.

use std::rc::Rc;
use std::time::{Duration, SystemTime};

use hyper::header::{ACCEPT, CONTENT_TYPE, HeaderValue, WARNING};
use hyper::{Method, StatusCode};
use serde_json::{Value, json};

use super::exposition::{Counter, head, label, sample};
use super::http::{Answer, Body, Request, json as json_answer, not_found, text, typed};
use super::metrics::Metrics;
use super::time::{Clock, civil, epoch_seconds, rfc3339};

/// The paths that `/statusz` lists.
const PATHS: [&str; 5] = ["/configz", "/flagz", "/healthz", "/metrics", "/proxyMode"];

/// What the pages show.
pub struct Pages {
    /// The metrics.
    pub metrics: Rc<Metrics>,
    /// The mode in use: `nftables`, `iptables` or `ipvs`.
    pub mode: &'static str,
    /// The body of `/configz`: the effective configuration in JSON.
    pub configz: String,
    /// Whether `/flagz` is served (feature gate ComponentFlagz).
    pub flagz: bool,
    /// Whether `/statusz` is served (feature gate ComponentStatusz).
    pub statusz: bool,
    /// All flags with their values, sorted by name.
    pub flags: Vec<(String, String)>,
    /// Version of the program.
    pub version: &'static str,
    /// Version of Kubernetes whose behaviour this is.
    pub emulates: &'static str,
    /// When the program began.
    pub started: SystemTime,
    /// Tells how long ago that is.
    pub clock: Clock,
    /// How often `/healthz` was answered.
    pub pings: Counter,
}

/// The form that `/flagz` and `/statusz` are wanted in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Form {
    Text,
    /// A structured form, of a version of the API group `config.k8s.io`.
    Structured {
        version: &'static str,
        media: &'static str,
    },
}

// === impl Pages ===

impl Pages {
    /// Answers a request.
    pub fn answer(&self, request: &Request) -> Answer {
        match request.uri.path() {
            "/metrics" => self.metrics_page(),
            "/metrics/slis" => self.slis(&request.method),
            "/proxyMode" => text(StatusCode::OK, self.mode),
            "/healthz" => self.healthz(request.uri.query().unwrap_or_default()),
            "/healthz/ping" => self.healthz(""),
            "/configz" => json_answer(StatusCode::OK, self.configz.clone()),
            "/flagz" if self.flagz => negotiated(request, "Flagz", || self.flags_text(), || self.flags_fields()),
            "/statusz" if self.statusz => {
                negotiated(request, "Statusz", || self.status_text(), || self.status_fields())
            }
            _ => not_found(),
        }
    }

    fn metrics_page(&self) -> Answer {
        let pieces = Body::Pieces(Box::new(self.metrics.text()));
        let mut answer = typed(StatusCode::OK, "text/plain; version=0.0.4; charset=utf-8", pieces);
        let started = HeaderValue::from(epoch_seconds(self.started) as u64);
        answer.headers_mut().insert("process-start-time-unix", started);
        answer
    }

    /// The only check is that we answer. Queries may name checks to leave out; there is no other than `ping`.
    fn healthz(&self, query: &str) -> Answer {
        self.pings.add(1);
        let parameters: Vec<&str> = query.split('&').collect();
        if !parameters.iter().any(|parameter| parameter.split('=').next() == Some("verbose")) {
            return text(StatusCode::OK, "ok");
        }
        let excluded = parameters.contains(&"exclude=ping");
        let check = if excluded { "[+]ping excluded: ok" } else { "[+]ping ok" };
        text(StatusCode::OK, format!("{check}\nhealthz check passed\n"))
    }

    fn slis(&self, method: &Method) -> Answer {
        if *method == Method::DELETE {
            self.pings.reset();
            return text(StatusCode::OK, "metrics reset\n");
        }
        let mut out = String::new();
        head(&mut out, "kubernetes_healthcheck", "gauge", "[STABLE] Whether a health check passes: 1, or 0");
        sample(&mut out, "kubernetes_healthcheck", r#"name="ping",type="healthz""#, 1.0);
        head(&mut out, "kubernetes_healthchecks_total", "counter", "[STABLE] Health checks by name and result");
        let mut labels = String::new();
        for (name, value) in [("name", "ping"), ("status", "success"), ("type", "healthz")] {
            label(&mut labels, name, value);
        }
        sample(&mut out, "kubernetes_healthchecks_total", &labels, self.pings.get());
        head(&mut out, "process_start_time_seconds", "gauge", "When the process began, in seconds since the epoch");
        sample(&mut out, "process_start_time_seconds", "", epoch_seconds(self.started));
        typed(StatusCode::OK, "text/plain; version=0.0.4; charset=utf-8", out)
    }

    fn flags_text(&self) -> String {
        self.flags.iter().map(|(name, value)| format!("{name}={value}\n")).collect()
    }

    fn flags_fields(&self) -> Value {
        let flags: serde_json::Map<_, _> =
            self.flags.iter().map(|(name, value)| (name.clone(), Value::from(value.as_str()))).collect();
        json!({ "flags": flags })
    }

    fn uptime(&self) -> u64 {
        (self.clock)().date.duration_since(self.started).unwrap_or_default().as_secs()
    }

    fn status_text(&self) -> String {
        let ([year, month, day, hour, minute, second], _) = civil(self.started);
        let uptime = self.uptime();
        format!(
            "Started: {year:04}-{month:02}-{day:02} {hour:02}:{minute:02}:{second:02} UTC\n\
             Up: {} hr {:02} min {:02} sec\nBinary version: {}\nEmulation version: {}\nPaths: {}\n",
            uptime / 3600,
            uptime / 60 % 60,
            uptime % 60,
            self.version.trim_start_matches('v'),
            self.emulates,
            PATHS.join(" ")
        )
    }

    fn status_fields(&self) -> Value {
        json!({
            "startTime": rfc3339(whole_seconds(self.started)),
            "uptimeSeconds": self.uptime(),
            // A field that the schema requires; there is no Go in here.
            "goVersion": "none",
            "binaryVersion": self.version.trim_start_matches('v'),
            "emulationVersion": self.emulates,
            "paths": PATHS,
        })
    }
}

fn whole_seconds(date: SystemTime) -> SystemTime {
    let since = date.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    SystemTime::UNIX_EPOCH + Duration::from_secs(since.as_secs())
}

/// Answers in the form that the request accepts: text by default, structured when its kind is named, else 406.
fn negotiated(request: &Request, kind: &str, plain: impl FnOnce() -> String, fields: impl FnOnce() -> Value) -> Answer {
    let accept = request.headers.get(ACCEPT).and_then(|value| value.to_str().ok()).unwrap_or_default();
    match accepted(accept, kind) {
        None => text(
            StatusCode::NOT_ACCEPTABLE,
            format!("only text/plain and application/json;v=v1beta1;g=config.k8s.io;as={kind} are served\n"),
        ),
        Some(Form::Text) => {
            let title = kind.to_ascii_lowercase();
            let warning = "Warning: for people who debug, not for programs; its form may change at any time.";
            text(StatusCode::OK, format!("\nkube-proxy {title}\n{warning}\n\n{}", plain()))
        }
        Some(Form::Structured { version, media }) => {
            let mut object = fields();
            object["kind"] = kind.into();
            object["apiVersion"] = format!("config.k8s.io/{version}").into();
            object["metadata"] = json!({ "name": "kube-proxy" });
            // JSON is YAML too.
            let mut answer = typed(StatusCode::OK, media, object.to_string());
            let whole = format!("{media};g=config.k8s.io;v={version};as={kind}");
            if let Ok(whole) = HeaderValue::try_from(whole) {
                answer.headers_mut().insert(CONTENT_TYPE, whole);
            }
            if version == "v1alpha1" {
                let warning = HeaderValue::from_static("299 - \"config.k8s.io/v1alpha1 is deprecated, use v1beta1\"");
                answer.headers_mut().insert(WARNING, warning);
            }
            answer
        }
    }
}

/// The first form of an `Accept` header that can be served.
fn accepted(accept: &str, kind: &str) -> Option<Form> {
    if accept.trim().is_empty() {
        return Some(Form::Text);
    }
    accept.split(',').find_map(|choice| {
        let mut parts = choice.split(';').map(str::trim);
        let media = match parts.next()? {
            "text/plain" | "text/*" | "*/*" => return Some(Form::Text),
            "application/json" => "application/json",
            "application/yaml" => "application/yaml",
            _ => return None,
        };
        let parameters: Vec<(&str, &str)> = parts.filter_map(|part| part.split_once('=')).collect();
        let value = |name: &str| parameters.iter().find(|parameter| parameter.0 == name).map(|parameter| parameter.1);
        if value("g") != Some("config.k8s.io") || value("as") != Some(kind) {
            return None;
        }
        let version = ["v1beta1", "v1alpha1"].into_iter().find(|version| value("v") == Some(version))?;
        Some(Form::Structured { version, media })
    })
}

#[cfg(test)]
mod tests {
    use std::time::{Instant, UNIX_EPOCH};

    use super::*;
    use crate::observe::scrape::Build;
    use crate::observe::time::Moment;

    fn pages() -> Pages {
        Pages {
            flagz: true,
            statusz: true,
            metrics: Rc::new(Metrics::new(Build::default())),
            mode: "nftables",
            configz: json!({ "kubeproxy.config.k8s.io": { "kind": "KubeProxyConfiguration", "mode": "nftables" } })
                .to_string(),
            flags: vec![("bind-address".into(), "0.0.0.0".into()), ("v".into(), "2".into())],
            version: "v0.1.0",
            emulates: "1.36",
            started: UNIX_EPOCH,
            clock: Rc::new(|| Moment { date: UNIX_EPOCH + Duration::from_secs(3725), steady: Instant::now() }),
            pings: Counter::default(),
        }
    }

    fn ask(pages: &Pages, path: &str, accept: &str) -> Answer {
        let request = hyper::Request::get(path).header(ACCEPT, accept).body(()).unwrap();
        pages.answer(&request.into_parts().0)
    }

    #[test]
    fn plain_pages() {
        let pages = pages();
        for (path, status, body) in [
            ("/proxyMode", 200, "nftables"),
            ("/healthz", 200, "ok"),
            ("/healthz/ping", 200, "ok"),
            ("/healthz?exclude=ping", 200, "ok"),
            ("/healthz?verbose", 200, "[+]ping ok\nhealthz check passed\n"),
            ("/healthz?verbose=1&exclude=ping", 200, "[+]ping excluded: ok\nhealthz check passed\n"),
            ("/configz", 200, r#"{"kubeproxy.config.k8s.io":{"kind":"KubeProxyConfiguration","mode":"nftables"}}"#),
            ("/", 404, "404 page not found\n"),
            ("/livez", 404, "404 page not found\n"),
            ("/readyz", 404, "404 page not found\n"),
        ] {
            let answer = ask(&pages, path, "*/*");
            assert_eq!(answer.headers()["x-content-type-options"], "nosniff", "{path}");
            assert_eq!((answer.status().as_u16(), answer.into_body().whole().as_str()), (status, body), "{path}");
        }
    }

    #[test]
    fn gates_close_pages() {
        let closed = Pages { flagz: false, statusz: false, ..pages() };
        for path in ["/flagz", "/statusz"] {
            let status = |pages: &Pages| ask(pages, path, "*/*").status().as_u16();
            assert_eq!((status(&pages()), status(&closed)), (200, 404), "{path}");
        }
    }

    #[test]
    fn forms_are_negotiated() {
        let structured = |version, media| Some(Form::Structured { version, media });
        for (accept, expected) in [
            ("", Some(Form::Text)),
            ("text/plain", Some(Form::Text)),
            ("*/*", Some(Form::Text)),
            ("text/html, text/plain;q=0.5", Some(Form::Text)),
            ("application/json", None),
            ("application/json;v=v1beta1;g=config.k8s.io;as=Flagz", structured("v1beta1", "application/json")),
            ("application/yaml; as=Flagz; v=v1beta1; g=config.k8s.io", structured("v1beta1", "application/yaml")),
            ("application/json;v=v1alpha1;g=config.k8s.io;as=Flagz", structured("v1alpha1", "application/json")),
            ("application/json;v=v2;g=config.k8s.io;as=Flagz", None),
            ("application/json;v=v1beta1;g=config.k8s.io;as=Statusz", None),
            ("application/json, text/plain", Some(Form::Text)),
        ] {
            assert_eq!(accepted(accept, "Flagz"), expected, "{accept}");
        }
    }

    #[test]
    fn flags_and_status_in_both_forms() {
        let pages = pages();
        let flags = ask(&pages, "/flagz", "text/plain").into_body().whole();
        assert!(flags.starts_with("\nkube-proxy flagz\nWarning: "), "{flags}");
        assert!(flags.ends_with("\n\nbind-address=0.0.0.0\nv=2\n"), "{flags}");
        let status = ask(&pages, "/statusz", "text/plain").into_body().whole();
        assert!(status.contains("Started: 1970-01-01 00:00:00 UTC\nUp: 1 hr 02 min 05 sec\n"), "{status}");
        assert_eq!(ask(&pages, "/statusz", "application/json").status(), StatusCode::NOT_ACCEPTABLE);

        let answer = ask(&pages, "/flagz", "application/json;v=v1alpha1;g=config.k8s.io;as=Flagz");
        assert!(answer.headers().contains_key(WARNING));
        let object: Value = serde_json::from_str(&answer.into_body().whole()).unwrap();
        let expected = json!({
            "kind": "Flagz", "apiVersion": "config.k8s.io/v1alpha1", "metadata": { "name": "kube-proxy" },
            "flags": { "bind-address": "0.0.0.0", "v": "2" }
        });
        assert_eq!(object, expected);
        let answer = ask(&pages, "/statusz", "application/json;v=v1beta1;g=config.k8s.io;as=Statusz");
        assert!(!answer.headers().contains_key(WARNING));
        assert_eq!(answer.headers()[CONTENT_TYPE], "application/json;g=config.k8s.io;v=v1beta1;as=Statusz");
        let object: Value = serde_json::from_str(&answer.into_body().whole()).unwrap();
        assert_eq!((&object["binaryVersion"], &object["emulationVersion"]), (&json!("0.1.0"), &json!("1.36")));
        assert_eq!((&object["uptimeSeconds"], &object["startTime"]), (&json!(3725), &json!("1970-01-01T00:00:00Z")));
    }

    #[test]
    fn health_checks_are_counted_until_someone_resets_them() {
        let pages = pages();
        let count = || {
            let body = ask(&pages, "/metrics/slis", "").into_body().whole();
            body.lines().find_map(|line| line.strip_prefix("kubernetes_healthchecks_total{")).unwrap().to_owned()
        };
        ask(&pages, "/healthz", "");
        assert!(count().ends_with("} 1"), "{}", count());
        pages.answer(&hyper::Request::delete("/metrics/slis").body(()).unwrap().into_parts().0);
        assert!(count().ends_with("} 0"), "{}", count());
    }
}
