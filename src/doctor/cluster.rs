//! The way from this node to the cluster: configuration, kubeconfig, API server, and whether the two clocks agree.
//!
//! Asks the API server for its version and for one object of each kind, and waits a few seconds at most.

use std::path::Path;
use std::time::{Duration, SystemTime};

use super::report::{Check, Verdict};
use crate::agent::node_name;
use crate::config::{Loaded, Options};
use crate::model::Kind;
use crate::source::{Access, Client, Limits, RequestError};

/// How long a server on the same network may take.
const PATIENCE: Duration = Duration::from_secs(5);
/// The server tells its time in whole seconds, and the answer travels.
const CLOSE: Duration = Duration::from_secs(10);
/// Beyond this, tokens and young certificates are refused.
const FAR: Duration = Duration::from_secs(300);

/// The checks, in the order in which they are shown. Those that need one that failed are left out.
pub fn checks(options: &Options, loaded: &Result<Loaded, String>) -> Vec<Check> {
    let mut checks = vec![configuration(loaded)];
    let Ok(loaded) = loaded else { return checks };
    if let Some(folder) = &options.flags.manifests {
        checks.push(Check::ok("source", format!("objects come from the folder {folder}, no API server is needed")));
        return checks;
    }
    let kubeconfig = loaded.config.kubeconfig.as_deref();
    match Access::load(kubeconfig.map(Path::new), options.flags.master.as_deref().filter(|master| !master.is_empty())) {
        Ok(access) => {
            let name = kubeconfig.unwrap_or("the pod's service account");
            checks.push(Check::ok("kubeconfig", format!("{name} leads to {}", access.server())));
            checks.extend(api_server(access, node_name(&loaded.config)));
        }
        Err(error) => checks.push(Check::ok("kubeconfig", "").but(
            Verdict::Fail,
            error.to_string(),
            "correct the file that clientConnection.kubeconfig names; configs/kubeconfig.conf is a template",
        )),
    }
    checks
}

fn configuration(loaded: &Result<Loaded, String>) -> Check {
    let loaded = match loaded {
        Ok(loaded) => loaded,
        Err(error) => {
            return Check::ok("configuration", "").but(
                Verdict::Fail,
                error,
                "correct the file, or see what a valid one looks like: kube-proxy --write-config-to=/dev/stdout",
            );
        }
    };
    let place = loaded.file.as_ref().map_or_else(|| "flags and defaults".to_owned(), |path| path.display().to_string());
    let check = Check::ok("configuration", format!("{place}, mode {}", loaded.config.mode.as_str()));
    if loaded.warnings.is_empty() {
        return check;
    }
    check.but(Verdict::Warn, format!("{place}: {}", loaded.warnings.join("; ")), "correct what is named")
}

fn api_server(access: Access, node_name: Result<String, String>) -> Vec<Check> {
    let limits = Limits { connect: PATIENCE, answer: PATIENCE, ..Limits::default() };
    let client = Client::new(access, limits, None);
    smol::block_on(async {
        match client.server_time().await {
            Ok(theirs) => vec![
                Check::ok("API server", format!("{} answers", client.server())),
                clock(SystemTime::now(), theirs),
                permissions(&client).await,
                node(&client, node_name).await,
            ],
            Err(error) => vec![unanswered(&error)],
        }
    })
}

fn unanswered(error: &RequestError) -> Check {
    let mend = match error {
        RequestError::Unreachable(_) => {
            "check the address and the CA in the kubeconfig, the route and firewalls on the way, and the clock here \
             (`date`): with a wrong one certificates seem invalid"
        }
        RequestError::Refused(refusal) if refusal.code == 401 => {
            "put a valid token where tokenFile leads (configs/rbac.yaml says how to get one), or a valid client \
             certificate; with a wrong clock here (`date`) certificates seem invalid"
        }
        RequestError::Refused(_) => "look into the log of the API server, and whether the address is that of one",
    };
    Check::ok("API server", "").but(Verdict::Fail, error.to_string(), mend)
}

/// Everything that a proxy reads (contract 15.6). What an older server does not know is no matter of permission.
async fn permissions(client: &Client) -> Check {
    let kinds = [
        (Kind::Service, "services"),
        (Kind::EndpointSlice, "endpointslices"),
        (Kind::Node, "nodes"),
        (Kind::ServiceCidr, "servicecidrs"),
    ];
    let check = Check::ok("permissions", "all that is needed may be read");
    let mut forbidden = Vec::new();
    for (kind, name) in kinds {
        match client.has_any(kind, "").await {
            Err(RequestError::Refused(refusal)) if refusal.code == 403 => forbidden.push(name),
            Ok(_) => {}
            Err(RequestError::Refused(refusal)) if refusal.code == 404 => {}
            Err(error) => {
                let finding = format!("whether {name} may be listed could not be found out: {error}");
                return check.but(
                    Verdict::Warn,
                    finding,
                    "run this again; if it stays, look into the API server's log",
                );
            }
        }
    }
    if forbidden.is_empty() {
        return check;
    }
    check.but(
        Verdict::Fail,
        format!("this account may not list {}", forbidden.join(", ")),
        "use the account that configs/rbac.yaml makes, or give this one the ClusterRole system:node-proxier as is done there",
    )
}

/// Without its Node object a proxy knows neither this node's addresses nor its zone.
async fn node(client: &Client, name: Result<String, String>) -> Check {
    let name = match name {
        Ok(name) => name,
        Err(error) => return Check::ok("node", "").but(Verdict::Fail, error, "set hostnameOverride in config.conf"),
    };
    let check = Check::ok("node", format!("{name} is known to the API server"));
    match client.has_any(Kind::Node, &name).await {
        Ok(true) => check,
        Ok(false) => check.but(
            Verdict::Warn,
            format!("the API server knows no node {name}"),
            "compare with `kubectl get nodes`, and set hostnameOverride in config.conf (or --hostname-override) to this \
             node's name there",
        ),
        Err(error) => check.but(
            Verdict::Warn,
            format!("whether there is a node {name} could not be found out: {error}"),
            "mend what is above first",
        ),
    }
}

fn clock(ours: SystemTime, theirs: SystemTime) -> Check {
    let (distance, direction) = match ours.duration_since(theirs) {
        Ok(ahead) => (ahead, "ahead of"),
        Err(error) => (error.duration(), "behind"),
    };
    let check = Check::ok("clock", "agrees with the API server's");
    let verdict = match distance {
        _ if distance < CLOSE => return check,
        _ if distance < FAR => Verdict::Warn,
        _ => Verdict::Fail,
    };
    check.but(
        verdict,
        format!("this node's clock is {} seconds {direction} the API server's", distance.as_secs()),
        "let it be set over the network: timedatectl set-ntp true",
    )
}

#[cfg(test)]
mod tests {
    use std::io::{BufRead, BufReader, Write};
    use std::net::TcpListener;

    use super::*;
    use crate::config::flags::Flags;

    /// What is said of an API server at this address.
    fn outcome(master: &str) -> Vec<(&'static str, Verdict, String)> {
        let flags = Flags { master: Some(master.to_owned()), ..Flags::default() };
        let options = Options { flags, given: vec!["master".to_owned(), "proxy-mode".to_owned()] };
        checks(&options, &options.load()).into_iter().map(|check| (check.name, check.verdict, check.finding)).collect()
    }

    /// Answers requests as a server does whose clock shows this, and which has a node to show.
    fn server(date: &'static str) -> String {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let mut stream = stream.unwrap();
                let request = BufReader::new(stream.try_clone().unwrap());
                let end = request.lines().map(Result::unwrap).find(String::is_empty);
                assert_eq!(end.as_deref(), Some(""), "the request has a head");
                let body = r#"{"items":[{}]}"#;
                let length = body.len();
                write!(stream, "HTTP/1.1 200 OK\r\nDate: {date}\r\nContent-Length: {length}\r\n\r\n{body}").unwrap();
            }
        });
        format!("http://{address}")
    }

    #[test]
    fn a_server_that_answers_is_asked_for_its_time() {
        let found = outcome(&server("Thu, 01 Jan 2026 00:00:00 GMT"));
        let verdicts: Vec<_> = found.iter().map(|(name, verdict, _)| (*name, *verdict)).collect();
        assert_eq!(
            verdicts,
            [
                ("configuration", Verdict::Ok),
                ("kubeconfig", Verdict::Ok),
                ("API server", Verdict::Ok),
                ("clock", Verdict::Fail),
                ("permissions", Verdict::Ok),
                ("node", Verdict::Ok),
            ],
            "{found:?}"
        );
    }

    #[test]
    fn a_server_that_is_not_there_is_named() {
        let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let found = outcome(&format!("http://127.0.0.1:{port}"));
        let (name, verdict, finding) = found.last().unwrap();
        assert_eq!((*name, *verdict), ("API server", Verdict::Fail));
        assert!(finding.contains(&port.to_string()), "{finding}");
    }

    #[test]
    fn a_broken_configuration_ends_the_way() {
        let flags = Flags { config: Some("/nonexistent/config.conf".to_owned()), ..Flags::default() };
        let options = Options { flags, given: vec!["config".to_owned()] };
        let found = checks(&options, &options.load());
        assert_eq!(found.len(), 1);
        assert_eq!((found[0].name, found[0].verdict), ("configuration", Verdict::Fail));
        assert!(found[0].finding.contains("/nonexistent/config.conf"), "{found:?}");
    }

    #[test]
    fn clocks_are_compared_both_ways() {
        let noon = SystemTime::UNIX_EPOCH + Duration::from_secs(1_800_000_000);
        for (seconds, verdict) in [(0, Verdict::Ok), (9, Verdict::Ok), (10, Verdict::Warn), (300, Verdict::Fail)] {
            let later = noon + Duration::from_secs(seconds);
            assert_eq!(clock(noon, later).verdict, verdict, "{seconds} behind");
            assert_eq!(clock(later, noon).verdict, verdict, "{seconds} ahead");
        }
    }
}
