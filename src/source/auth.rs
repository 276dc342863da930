//! Who we are for the API server, and where it is: kubeconfig, `--master`, or the service account of a pod.
//!
//! Secrets that live in files are read again whenever they are needed, so that a rotated token or certificate is used
//! at the next request. Must never run a program for a credential, and never log one.

use std::fmt;
use std::fs;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use futures_rustls::rustls::ClientConfig;
use hyper::Uri;
use hyper::header::HeaderValue;
use k8s_openapi::ByteString;

use super::kubeconfig::{self, Cluster, User};
use super::tls;

/// Where Kubernetes mounts the credentials of a pod.
const SERVICE_ACCOUNT: &str = "/var/run/secrets/kubernetes.io/serviceaccount";

/// Where distributions keep the certificate authorities that everybody trusts.
const SYSTEM_AUTHORITIES: [&str; 4] = [
    "/etc/ssl/certs/ca-certificates.crt",
    "/etc/pki/tls/certs/ca-bundle.crt",
    "/etc/ssl/cert.pem",
    "/etc/ssl/ca-bundle.pem",
];

/// How to reach the API server, and as whom.
pub struct Access {
    server: Server,
    /// The first that can be read counts.
    bearers: Vec<Secret>,
    trust: Trust,
    identity: Option<(Secret, Secret)>,
    /// Name to check the server's certificate against, when it is not the server's own.
    tls_server_name: Option<String>,
}

/// Address of the API server.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Server {
    /// `https`.
    pub tls: bool,
    /// Host name, or IP address without brackets.
    pub host: String,
    /// TCP port.
    pub port: u16,
    /// Path in front of every request, without a slash at its end.
    pub prefix: String,
}

/// Why the API server cannot be used: one line that says which file, which field, and how to mend it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Error(String);

/// Something that the kubeconfig gives either itself or by the name of a file.
struct Secret {
    /// What it is called where the user wrote it.
    field: String,
    value: Value,
}

enum Value {
    Inline(Vec<u8>),
    File(PathBuf),
}

enum Trust {
    Authorities(Secret),
    System,
    Anybody,
}

// === impl Access ===

impl Access {
    /// What the configuration asks for: a kubeconfig, a server address that overrides the one in there, or neither,
    /// which means the service account of the pod that we run in (contract 15.2).
    ///
    /// # Errors
    /// When a file is missing or unreadable, or a field cannot be used.
    pub fn load(kubeconfig: Option<&Path>, master: Option<&str>) -> Result<Self, Error> {
        match (kubeconfig, master) {
            (None, None) => Self::in_cluster(),
            (None, Some(master)) => Self::assemble("--master", &Cluster::default(), &User::default(), Some(master)),
            (Some(path), master) => Self::kubeconfig(path, master),
        }
    }

    /// The server's address.
    pub fn server(&self) -> &Server {
        &self.server
    }

    /// The `Authorization` header for a request made now. Never without TLS: everybody on the way could read it.
    pub(super) fn authorization(&self) -> Result<Option<HeaderValue>, Error> {
        let Some(first) = self.bearers.first().filter(|_| self.server.tls) else { return Ok(None) };
        let readable = self.bearers.iter().find_map(|secret| Some((secret, secret.read().ok()?)));
        let (secret, token) = match readable {
            Some(found) => found,
            None => (first, first.read()?),
        };
        let mut value = HeaderValue::from_bytes(&[b"Bearer ", token.trim_ascii()].concat())
            .map_err(|_| secret.complaint("holds characters that no token has; write it anew"))?;
        value.set_sensitive(true);
        Ok(Some(value))
    }

    /// TLS settings for a connection made now.
    pub(super) fn tls(&self) -> Result<Arc<ClientConfig>, Error> {
        let authorities = match &self.trust {
            Trust::Anybody => None,
            Trust::Authorities(secret) => {
                Some(tls::authorities(&secret.read()?).map_err(|why| secret.complaint(&why))?)
            }
            Trust::System => Some(system_authorities()?),
        };
        let builder = tls::builder(authorities);
        let Some((certificate, key)) = &self.identity else { return Ok(Arc::new(builder.with_no_client_auth())) };
        let chain = tls::chain(&certificate.read()?).map_err(|why| certificate.complaint(&why))?;
        let private = tls::key(&key.read()?).map_err(|why| key.complaint(&why))?;
        let config = builder.with_client_auth_cert(chain, private);
        config.map(Arc::new).map_err(|why| certificate.complaint(&format!("does not go with its key: {why}")))
    }

    /// What TLS needs, as far as it is given.
    fn certificates(&self) -> impl Iterator<Item = &Secret> {
        let authorities = match &self.trust {
            Trust::Authorities(secret) => Some(secret),
            Trust::System | Trust::Anybody => None,
        };
        authorities.into_iter().chain(self.identity.iter().flat_map(|(certificate, key)| [certificate, key]))
    }

    /// The name that the server's certificate must bear.
    pub(super) fn certificate_name(&self) -> &str {
        self.tls_server_name.as_deref().unwrap_or(&self.server.host)
    }

    fn in_cluster() -> Result<Self, Error> {
        let variable = |name: &str| {
            std::env::var(name).ok().filter(|value| !value.is_empty()).ok_or_else(|| {
                Error(format!(
                    "no kubeconfig is given and {name} is not set, so this is no pod: \
                     set clientConnection.kubeconfig in the configuration, or --kubeconfig or --master"
                ))
            })
        };
        let (host, port) = (variable("KUBERNETES_SERVICE_HOST")?, variable("KUBERNETES_SERVICE_PORT")?);
        let host = if host.contains(':') { format!("[{host}]") } else { host };
        let mounted = |name: &str| Some(format!("{SERVICE_ACCOUNT}/{name}"));
        let cluster = Cluster {
            server: Some(format!("https://{host}:{port}")),
            certificate_authority: mounted("ca.crt"),
            ..Cluster::default()
        };
        let user = User { token_file: mounted("token"), ..User::default() };
        Self::assemble("service account", &cluster, &user, None)
    }

    fn kubeconfig(path: &Path, master: Option<&str>) -> Result<Self, Error> {
        let shown = path.display();
        let fail = |what: &str| Error(format!("kubeconfig {shown}: {what}"));
        let (cluster, user) = match kubeconfig::current(path).map_err(|why| fail(&why))? {
            Some(current) => current,
            None if master.is_some() => Default::default(),
            None => return Err(fail("current-context is not set: name one of its contexts")),
        };
        Self::assemble(&format!("kubeconfig {shown}"), &cluster, &user, master)
    }

    /// `origin` says in errors where the fields come from.
    fn assemble(origin: &str, cluster: &Cluster, user: &User, master: Option<&str>) -> Result<Self, Error> {
        let fail = |what: String| Error(format!("{origin}: {what}"));
        refuse_unsupported(cluster, user).map_err(|what| fail(what.into()))?;

        let authority = Secret::either(
            origin,
            "certificate-authority",
            cluster.certificate_authority_data.as_deref(),
            cluster.certificate_authority.as_deref(),
        )?;
        let certificate = Secret::either(
            origin,
            "client-certificate",
            user.client_certificate_data.as_deref(),
            user.client_certificate.as_deref(),
        )?;
        let key = Secret::either(origin, "client-key", user.client_key_data.as_deref(), user.client_key.as_deref())?;
        let identity = match (certificate, key) {
            (Some(certificate), Some(key)) => Some((certificate, key)),
            (None, None) => None,
            (Some(_), None) => return Err(fail("client-certificate needs a client-key beside it".into())),
            (None, Some(_)) => return Err(fail("client-key needs a client-certificate beside it".into())),
        };
        let skip_verify = cluster.insecure_skip_tls_verify.unwrap_or(false);
        let trust = match authority {
            Some(_) if skip_verify => {
                return Err(fail(
                    "certificate-authority and insecure-skip-tls-verify exclude each other: drop one".into(),
                ));
            }
            None if skip_verify => Trust::Anybody,
            Some(secret) => Trust::Authorities(secret),
            None => Trust::System,
        };

        let speaks_tls = identity.is_some() || !matches!(trust, Trust::System);
        let (field, address) = match master {
            Some(master) => ("--master", master),
            None => ("server", cluster.server.as_deref().unwrap_or_default()),
        };
        let server = Server::parse(address, speaks_tls).map_err(|why| fail(format!("{field} {address:?} {why}")))?;

        let access = Self {
            server,
            bearers: bearers(origin, user),
            trust,
            identity,
            tls_server_name: cluster.tls_server_name.clone().filter(|name| !name.is_empty()),
        };
        // Everything is read once now, so that a mistake is reported at the start and not in the middle of the night.
        access.authorization()?;
        if access.server.tls {
            access.tls()?;
            tls::server_name(access.certificate_name()).map_err(|why| fail(format!("{field} {address:?}: {why}")))?;
        } else {
            // Without TLS they are of no use, but a file that is not there is a mistake all the same.
            access.certificates().try_for_each(Secret::check_readable)?;
        }
        Ok(access)
    }
}

/// A token file wins over a token, as it does for everybody else who reads kubeconfigs; the token is for when the file
/// cannot be read.
fn bearers(origin: &str, user: &User) -> Vec<Secret> {
    let given = |text: &Option<String>| text.clone().filter(|text| !text.is_empty());
    let secret = |field, value| Secret { field: format!("{origin}: {field}"), value };
    let file = given(&user.token_file).map(|file| secret("tokenFile", Value::File(file.into())));
    let token = given(&user.token).map(|token| secret("token", Value::Inline(token.into())));
    file.into_iter().chain(token).collect()
}

fn refuse_unsupported(cluster: &Cluster, user: &User) -> Result<(), &'static str> {
    let is_set = |text: &Option<String>| text.as_ref().is_some_and(|text| !text.is_empty());
    for (given, why) in [
        (user.exec.is_some(), "exec credential plugins are not run: use tokenFile or a client certificate"),
        (user.auth_provider.is_some(), "auth-provider is not supported: use tokenFile or a client certificate"),
        (is_set(&user.username), "API servers no longer accept a username: use tokenFile or a client certificate"),
        (is_set(&user.impersonate), "impersonation (as) is not supported: use the credentials of that user"),
        (is_set(&cluster.proxy_url), "proxy-url is not supported: name a server that can be reached directly"),
    ] {
        if given {
            return Err(why);
        }
    }
    Ok(())
}

fn system_authorities() -> Result<futures_rustls::rustls::RootCertStore, Error> {
    let found = SYSTEM_AUTHORITIES.iter().find_map(|path| fs::read(path).ok().map(|pem| (path, pem)));
    let (path, pem) = found.ok_or_else(|| {
        Error("no certificate-authority is given and this system has no CA bundle: add certificate-authority".into())
    })?;
    tls::authorities(&pem).map_err(|why| Error(format!("CA bundle {path} {why}")))
}

// === impl Server ===

impl Server {
    /// Reads `https://host:port/prefix`; without a scheme it is `https` only if credentials ask for TLS.
    fn parse(text: &str, speaks_tls: bool) -> Result<Self, String> {
        const FORM: &str = "is not an address like https://10.0.0.1:6443";
        if text.is_empty() {
            return Err("is empty: it must be an address like https://10.0.0.1:6443".into());
        }
        let text = match text.contains("://") {
            true => text.to_owned(),
            false => format!("{}://{text}", if speaks_tls { "https" } else { "http" }),
        };
        let uri: Uri = text.parse().map_err(|_| FORM.to_owned())?;
        let tls = match uri.scheme_str() {
            Some("https") => true,
            Some("http") => false,
            _ => return Err(FORM.into()),
        };
        let host = uri.host().filter(|host| !host.is_empty()).ok_or(FORM)?;
        let bare = host.trim_start_matches('[').trim_end_matches(']');
        if host.starts_with('[') && bare.parse::<IpAddr>().is_err() {
            return Err(FORM.into());
        }
        if uri.authority().is_some_and(|authority| authority.as_str().contains('@')) || uri.query().is_some() {
            return Err(FORM.into());
        }
        let port = match uri.port() {
            Some(port) => port.as_u16(),
            None => [80, 443][usize::from(tls)],
        };
        Ok(Self { tls, host: bare.into(), port, prefix: uri.path().trim_end_matches('/').into() })
    }

    /// `host:port` as in a URL.
    pub fn authority(&self) -> String {
        if self.host.contains(':') {
            format!("[{}]:{}", self.host, self.port)
        } else {
            format!("{}:{}", self.host, self.port)
        }
    }
}

impl fmt::Display for Server {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}://{}{}", if self.tls { "https" } else { "http" }, self.authority(), self.prefix)
    }
}

// === impl Secret ===

impl Secret {
    /// `data` (base64) wins over `file`, as it does for everybody else who reads kubeconfigs.
    fn either(origin: &str, field: &str, data: Option<&str>, file: Option<&str>) -> Result<Option<Self>, Error> {
        if let Some(data) = data.filter(|data| !data.trim().is_empty()) {
            let field = format!("{origin}: {field}-data");
            let compact: String = data.split_ascii_whitespace().collect();
            let ByteString(bytes) = serde_json::from_value(compact.into())
                .map_err(|_| Error(format!("{field} is not base64: encode the file with base64 -w0")))?;
            return Ok(Some(Self { field, value: Value::Inline(bytes) }));
        }
        Ok(file
            .filter(|file| !file.is_empty())
            .map(|file| Self { field: format!("{origin}: {field}"), value: Value::File(file.into()) }))
    }

    fn read(&self) -> Result<Vec<u8>, Error> {
        match &self.value {
            Value::Inline(bytes) => Ok(bytes.clone()),
            Value::File(path) => match fs::read(path) {
                Ok(bytes) if bytes.trim_ascii().is_empty() => Err(self.complaint("is empty")),
                Ok(bytes) => Ok(bytes),
                Err(error) => Err(self.complaint(&format!("cannot be read: {error}"))),
            },
        }
    }

    fn check_readable(&self) -> Result<(), Error> {
        match &self.value {
            Value::Inline(_) => Ok(()),
            Value::File(path) => {
                fs::File::open(path).map(drop).map_err(|error| self.complaint(&format!("cannot be read: {error}")))
            }
        }
    }

    fn complaint(&self, what: &str) -> Error {
        match &self.value {
            Value::Inline(_) => Error(format!("{} {what}", self.field)),
            Value::File(path) => Error(format!("{} {} {what}", self.field, path.display())),
        }
    }
}

// === impl Error ===

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Error {}
