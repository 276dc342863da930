//! A kubeconfig: its current cluster and user, as far as they matter here.
//!
//! As `kubectl` does it, YAML or JSON becomes a tree first and the tree is typed after; unknown fields are passed over,
//! and file names are relative to the kubeconfig. What the fields mean is for [`super::auth`]. Must never repeat a
//! value in an error: it may be a secret.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use serde::de::IgnoredAny;
use serde::{Deserialize, Deserializer};
use serde_json::Value;

/// Which server, and how to trust it.
#[derive(Clone, Default, Deserialize)]
#[serde(default, rename_all = "kebab-case")]
pub(super) struct Cluster {
    pub server: Option<String>,
    pub insecure_skip_tls_verify: Option<bool>,
    pub certificate_authority: Option<String>,
    pub certificate_authority_data: Option<String>,
    pub tls_server_name: Option<String>,
    pub proxy_url: Option<String>,
}

/// As whom. Not `Debug`: it holds secrets.
#[derive(Clone, Default, Deserialize)]
#[serde(default, rename_all = "kebab-case")]
pub(super) struct User {
    pub token: Option<String>,
    #[serde(rename = "tokenFile")]
    pub token_file: Option<String>,
    pub client_certificate: Option<String>,
    pub client_certificate_data: Option<String>,
    pub client_key: Option<String>,
    pub client_key_data: Option<String>,
    pub username: Option<String>,
    #[serde(rename = "as")]
    pub impersonate: Option<String>,
    pub auth_provider: Option<IgnoredAny>,
    pub exec: Option<IgnoredAny>,
}

#[derive(Default, Deserialize)]
#[serde(default, rename_all = "kebab-case")]
struct Kubeconfig {
    #[serde(rename = "apiVersion")]
    api_version: Option<String>,
    kind: Option<String>,
    current_context: Option<String>,
    #[serde(deserialize_with = "null_is_empty")]
    contexts: Vec<NamedContext>,
    #[serde(deserialize_with = "null_is_empty")]
    clusters: Vec<NamedCluster>,
    #[serde(deserialize_with = "null_is_empty")]
    users: Vec<NamedUser>,
}

#[derive(Deserialize)]
struct NamedContext {
    name: String,
    context: Option<Context>,
}

#[derive(Deserialize)]
struct Context {
    cluster: Option<String>,
    user: Option<String>,
}

#[derive(Deserialize)]
struct NamedCluster {
    name: String,
    cluster: Option<Cluster>,
}

#[derive(Deserialize)]
struct NamedUser {
    name: String,
    user: Option<User>,
}

/// The cluster and the user of the current context in this file. `None`: no context is current.
///
/// # Errors
/// A file that cannot be read, is malformed, or does not have what it refers to: what is wrong, without the file's name.
pub(super) fn current(path: &Path) -> Result<Option<(Cluster, User)>, String> {
    let text = fs::read_to_string(path).map_err(|error| error.to_string())?;
    let config = parse(&text)?;
    let Some(name) = config.current_context.filter(|name| !name.is_empty()) else { return Ok(None) };
    let context = config.contexts.into_iter().find(|context| context.name == name).and_then(|named| named.context);
    let Context { cluster, user } =
        context.ok_or_else(|| format!("current-context {name:?} is not among its contexts"))?;
    let wanted = cluster.unwrap_or_default();
    let cluster = config.clusters.into_iter().find(|cluster| cluster.name == wanted).and_then(|named| named.cluster);
    let mut cluster =
        cluster.ok_or_else(|| format!("cluster {wanted:?} of the current context is not among its clusters"))?;
    let wanted = user.unwrap_or_default();
    let user = config.users.into_iter().find(|user| user.name == wanted).and_then(|named| named.user);
    if user.is_none() && !wanted.is_empty() {
        log::warn!(
            "kubeconfig {}: user {wanted:?} of the current context is not among its users: asking as nobody",
            path.display()
        );
    }
    let mut user = user.unwrap_or_default();
    let folder = path.parent().unwrap_or(Path::new(""));
    let files =
        [&mut cluster.certificate_authority, &mut user.token_file, &mut user.client_certificate, &mut user.client_key];
    for file in files.into_iter().flatten().filter(|file| !file.is_empty()) {
        *file = folder.join(&*file).to_string_lossy().into_owned();
    }
    Ok(Some((cluster, user)))
}

/// Reads the first document.
fn parse(text: &str) -> Result<Kubeconfig, String> {
    let mut bytes = text.as_bytes();
    let options = serde_saphyr::options! { with_snippet: false };
    let first: Option<Result<Value, _>> = serde_saphyr::read_with_options(&mut bytes, options).next();
    let Some(tree) = first else { return Ok(Kubeconfig::default()) };
    let tree = tree.map_err(|error| error.to_string().lines().next().unwrap_or_default().to_owned())?;
    let config: Kubeconfig = serde_path_to_error::deserialize(&tree).map_err(|error| {
        let why = error.inner().to_string();
        match why.split_once(", expected ") {
            Some((_, wanted)) => format!("{} must be {wanted}", error.path()),
            None => format!("{}: {why}", error.path()),
        }
    })?;
    for (field, value, only) in [("apiVersion", &config.api_version, "v1"), ("kind", &config.kind, "Config")] {
        if value.as_ref().is_some_and(|value| !value.is_empty() && value != only) {
            return Err(format!("{field} must be {only}"));
        }
    }
    unique("contexts", config.contexts.iter().map(|named| &named.name))?;
    unique("clusters", config.clusters.iter().map(|named| &named.name))?;
    unique("users", config.users.iter().map(|named| &named.name))?;
    Ok(config)
}

/// Of two that bear the same name nobody can say which is meant.
fn unique<'a>(list: &str, names: impl Iterator<Item = &'a String>) -> Result<(), String> {
    let mut seen = BTreeSet::new();
    for name in names {
        if !seen.insert(name) {
            return Err(format!("{list} has the name {name:?} twice: drop one"));
        }
    }
    Ok(())
}

fn null_is_empty<'de, D: Deserializer<'de>, T: Deserialize<'de>>(deserializer: D) -> Result<Vec<T>, D::Error> {
    Ok(Option::deserialize(deserializer)?.unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mistakes_are_told_by_their_place_and_never_with_the_value() {
        for (text, expected) in [
            ("users:\n- name: u\n  user: {token: 12345}", "users[0].user.token must be a string"),
            ("clusters:\n- {name: c, cluster: {server: [1, 2]}}", "clusters[0].cluster.server must be a string"),
            ("contexts: [{context: {cluster: c}}]", "contexts[0]: missing field `name`"),
            ("kind: Pod", "kind must be Config"),
            ("apiVersion: v2", "apiVersion must be v1"),
            ("contexts: [{name: a}, {name: b}, {name: a}]", "contexts has the name \"a\" twice"),
            ("clusters: [{name: a}, {name: a}]", "clusters has the name \"a\" twice"),
            ("users: [{name: a}, {name: a}]", "users has the name \"a\" twice"),
            ("a: b\nusers: [", "line 2"),
        ] {
            let error = parse(text).err().unwrap_or_else(|| panic!("{text} is accepted"));
            assert!(error.contains(expected) && !error.contains("12345") && !error.contains('\n'), "{text}: {error}");
        }
    }

    #[test]
    fn what_is_null_is_as_if_it_were_not_there() {
        for text in ["", "---\n", "users: null\nclusters:\ncontexts:\ncurrent-context:\n"] {
            let config = parse(text).unwrap();
            assert!(config.users.is_empty() && config.current_context.is_none(), "{text:?}");
        }
        let config = parse("users: [{name: u, user: {exec: null, token: t, preferences: {}}}]").unwrap();
        let user = config.users[0].user.as_ref().unwrap();
        assert!(user.exec.is_none() && user.token.as_deref() == Some("t"));
    }
}
