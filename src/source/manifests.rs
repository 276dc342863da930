//! Objects from a folder of YAML and JSON files, for a node without an API server. Inotify tells when they change.
//!
//! A file that cannot be read keeps what it said when it last could: a slip of the pen must never take Services away.
//! Nothing allocates addresses here, so a Service must name its ClusterIP.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::errno::Errno;
use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify};
use serde_json::Value;
use smol::Async;
use smol::channel::{SendError, Sender};

use super::KINDS;
use super::decode::Decoder;
use crate::model::{Event, Kind};

/// A change is often several: an editor writes, renames and removes.
const SETTLE: Duration = Duration::from_millis(20);
/// Until a folder that disappeared is looked for again.
const MISSING: Duration = Duration::from_secs(1);

/// The folder itself was removed or renamed.
const GONE: AddWatchFlags = AddWatchFlags::IN_IGNORED.union(AddWatchFlags::IN_MOVE_SELF);

/// A folder of manifests.
pub struct Manifests {
    folder: PathBuf,
    watch: Async<Inotify>,
    /// What each file said when it could last be read.
    files: BTreeMap<PathBuf, Vec<(Kind, Event)>>,
}

// === impl Manifests ===

impl Manifests {
    /// Begins to watch the folder; call within the loop.
    ///
    /// # Errors
    /// When the folder does not exist or cannot be watched.
    pub fn open(folder: &Path) -> io::Result<Self> {
        let watch = watch(folder).map_err(|error| {
            let shown = folder.display();
            io::Error::new(error.kind(), format!("manifests folder {shown}: {error}; name a folder that can be read"))
        })?;
        Ok(Self { folder: folder.to_owned(), watch, files: BTreeMap::new() })
    }

    /// Tells what the files say, and again whenever they change.
    pub(super) async fn follow(mut self, node_name: String, events: Sender<Event>) {
        let mut decoder = Decoder::new(&node_name);
        loop {
            self.read(&node_name, &mut decoder);
            if self.tell(&events).await.is_err() {
                return;
            }
            if let Err(error) = self.changed().await {
                log::warn!("manifests folder {}: {error}; waiting for it to return", self.folder.display());
                self.watch = loop {
                    smol::Timer::after(MISSING).await;
                    if let Ok(watch) = watch(&self.folder) {
                        break watch;
                    }
                };
            }
        }
    }

    /// Waits for a change, and until the folder is quiet again.
    async fn changed(&self) -> io::Result<()> {
        self.watch.readable().await?;
        loop {
            self.drain()?;
            let more = smol::future::or(async { self.watch.readable().await.map(|()| true) }, async {
                smol::Timer::after(SETTLE).await;
                Ok(false)
            });
            if !more.await? {
                return Ok(());
            }
        }
    }

    fn drain(&self) -> io::Result<()> {
        match self.watch.get_ref().read_events() {
            Ok(events) if events.iter().any(|event| event.mask.intersects(GONE)) => {
                Err(io::Error::new(io::ErrorKind::NotFound, "it was removed"))
            }
            Ok(_) | Err(Errno::EAGAIN | Errno::EINTR) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }

    fn read(&mut self, node_name: &str, decoder: &mut Decoder) {
        let paths = match manifest_files(&self.folder) {
            Ok(paths) => paths,
            Err(error) => return log::warn!("manifests folder {}: {error}; nothing is changed", self.folder.display()),
        };
        self.files.retain(|path, _| paths.contains(path));
        for path in paths {
            match fs::read_to_string(&path).map_err(|error| error.to_string()).and_then(|text| parse(&path, &text)) {
                Ok(objects) => {
                    let ours = objects
                        .iter()
                        .filter(|object| object["kind"] != "Node" || object["metadata"]["name"] == *node_name);
                    let former = self.files.get(&path).map_or(&[][..], Vec::as_slice);
                    let found = ours.filter_map(|object| decode(&path, object, former, decoder)).collect();
                    self.files.insert(path, found);
                }
                Err(why) => {
                    let kept = if self.files.contains_key(&path) { "; what it said before still counts" } else { "" };
                    log::error!("manifest {} cannot be read: {why}{kept}", path.display());
                }
            }
        }
    }

    async fn tell(&self, events: &Sender<Event>) -> Result<(), SendError<Event>> {
        for kind in KINDS {
            events.send(Event::ListStart(kind)).await?;
            for (_, event) in self.files.values().flatten().filter(|(of, _)| *of == kind) {
                events.send(event.clone()).await?;
            }
            events.send(Event::ListEnd(kind)).await?;
        }
        Ok(())
    }
}

fn watch(folder: &Path) -> io::Result<Async<Inotify>> {
    let inotify = Inotify::init(InitFlags::IN_CLOEXEC | InitFlags::IN_NONBLOCK)?;
    let flags = AddWatchFlags::IN_CLOSE_WRITE
        | AddWatchFlags::IN_CREATE
        | AddWatchFlags::IN_MOVE
        | AddWatchFlags::IN_DELETE
        | AddWatchFlags::IN_MOVE_SELF
        | AddWatchFlags::IN_ONLYDIR;
    inotify.add_watch(folder, flags)?;
    Async::new(inotify)
}

/// The manifests in a folder, in the order of their names. Hidden files are an editor's, or a volume's, own.
fn manifest_files(folder: &Path) -> io::Result<Vec<PathBuf>> {
    let mut paths = Vec::new();
    for entry in fs::read_dir(folder)? {
        let path = entry?.path();
        let hidden = path.file_name().is_some_and(|name| name.as_encoded_bytes().starts_with(b"."));
        let manifest = matches!(path.extension().and_then(OsStr::to_str), Some("yaml" | "yml" | "json"));
        if manifest && !hidden && path.is_file() {
            paths.push(path);
        }
    }
    paths.sort();
    Ok(paths)
}

/// All objects of a file: of all its documents, and of the lists among them.
fn parse(path: &Path, text: &str) -> Result<Vec<Value>, String> {
    let documents: Vec<Value> = if path.extension().is_some_and(|extension| extension == "json") {
        let documents = serde_json::Deserializer::from_str(text).into_iter();
        documents.collect::<Result<_, _>>().map_err(|error| error.to_string())?
    } else {
        // Whoever may write here may do worse than write a long file.
        let options = serde_saphyr::options! { budget: None, with_snippet: false };
        let mut bytes = text.as_bytes();
        serde_saphyr::read_with_options(&mut bytes, options)
            .collect::<Result<_, _>>()
            .map_err(|error: serde_saphyr::Error| error.to_string().lines().next().unwrap_or_default().to_owned())?
    };
    let mut objects = Vec::new();
    for mut document in documents.into_iter().filter(|document| !document.is_null()) {
        let list = document["kind"].as_str().and_then(|kind| kind.strip_suffix("List")).map(str::to_owned);
        match (list, document.get_mut("items").map(Value::take)) {
            (Some(kind), Some(Value::Array(items))) => objects.extend(items.into_iter().map(|item| typed(item, &kind))),
            _ => objects.push(document),
        }
    }
    Ok(objects)
}

/// The items of a ServiceList need not say that they are Services.
fn typed(mut item: Value, kind: &str) -> Value {
    if let Some(fields) = item.as_object_mut() {
        fields.entry("kind").or_insert_with(|| kind.into());
    }
    item
}

/// What an object says; one that cannot be read says what it said in this file before.
fn decode(path: &Path, object: &Value, former: &[(Kind, Event)], decoder: &mut Decoder) -> Option<(Kind, Event)> {
    let shown = path.display();
    let kind = match object["kind"].as_str().unwrap_or_default() {
        "Service" => Kind::Service,
        "EndpointSlice" => Kind::EndpointSlice,
        "Node" => Kind::Node,
        "ServiceCIDR" => Kind::ServiceCidr,
        other => {
            log::debug!("manifest {shown}: kind {other:?} is not for a service proxy: ignored");
            return None;
        }
    };
    let mut object = object.clone();
    if matches!(kind, Kind::Service | Kind::EndpointSlice)
        && let Some(metadata) = object["metadata"].as_object_mut()
    {
        metadata.entry("namespace").or_insert_with(|| "default".into());
    }
    match decoder.object(kind, &object.to_string()) {
        Ok(Event::Service(_, None) | Event::EndpointSlice(_, None)) => None,
        Ok(event) => Some((kind, event)),
        Err(bad) => {
            let before = former.iter().find(|(of, event)| *of == kind && is_of(event, &object["metadata"]));
            let kept = if before.is_some() { "; what it said before still counts" } else { "" };
            log::error!("manifest {shown}: {kind:?} {bad}{kept}");
            before.cloned()
        }
    }
}

/// Whether an event is of the object that has this metadata.
fn is_of(event: &Event, metadata: &Value) -> bool {
    match event {
        Event::Service(name, _) | Event::EndpointSlice(name, _) => {
            metadata["namespace"] == *name.namespace() && metadata["name"] == *name.name()
        }
        Event::ServiceCidr(name, _) => metadata["name"] == **name,
        // Only ours is read.
        Event::Node(_) => true,
        Event::ListStart(_) | Event::ListEnd(_) => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const YAML: &str = "\
kind: Service
apiVersion: v1
metadata: {name: web}
spec: {clusterIP: 10.96.0.1, ports: [{port: 80}]}
---
# nothing
---
kind: List
items:
- {kind: Service, metadata: {name: dns, namespace: kube-system}, spec: {clusterIP: 10.96.0.10, ports: [{port: 53}]}}
- {kind: ConfigMap, metadata: {name: other}}
---
kind: EndpointSliceList
items:
- metadata: {name: web-1, labels: {kubernetes.io/service-name: web}}
  addressType: IPv4
  endpoints: [{addresses: [10.244.0.5]}]
  ports: [{name: '', port: 8080}]
";

    fn names(path: &str, text: &str) -> Vec<String> {
        let mut decoder = Decoder::new("us");
        let objects = parse(Path::new(path), text).unwrap();
        let found = objects.iter().filter_map(|object| decode(Path::new(path), object, &[], &mut decoder));
        found
            .map(|(kind, event)| match event {
                Event::Service(name, Some(_)) | Event::EndpointSlice(name, Some(_)) => format!("{kind:?} {name}"),
                other => panic!("{other:?}"),
            })
            .collect()
    }

    #[test]
    fn documents_and_lists_yield_their_objects() {
        let expected = ["Service default/web", "Service kube-system/dns", "EndpointSlice default/web-1"];
        assert_eq!(names("a.yaml", YAML), expected);
        let documents: Vec<Value> = serde_saphyr::from_multiple(YAML).unwrap();
        let json: String = documents.iter().map(ToString::to_string).collect();
        assert_eq!(names("a.json", &json), expected);
    }

    #[test]
    fn mistakes_are_located_in_one_line() {
        for (path, text) in [("a.yaml", "kind: Service\nmetadata: {name: web\n"), ("a.json", "{\n\"kind\": }")] {
            let why = parse(Path::new(path), text).unwrap_err();
            assert!(why.contains("line 2") && !why.contains('\n'), "{why}");
        }
    }
}
