//! `kube-proxy demo` as people start it: as root, as nobody in particular, and where it is forbidden.

use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::process::{Command, Output, Stdio};

/// The program where every user can run it: the build folder may be out of reach. Removed when dropped.
struct Program(PathBuf);

impl Program {
    fn new(name: &str) -> Self {
        let folder = std::env::temp_dir().join(format!("kube-proxy-demo-{name}-{}", std::process::id()));
        std::fs::create_dir_all(&folder).unwrap();
        std::fs::set_permissions(&folder, PermissionsExt::from_mode(0o755)).unwrap();
        std::fs::copy(env!("CARGO_BIN_EXE_kube-proxy"), folder.join("kube-proxy")).unwrap();
        Self(folder)
    }

    /// Runs a shell command line in which `$demo` is the program's path.
    fn run(&self, line: &str) -> Output {
        Command::new("sh")
            .args(["-c", line])
            .env("demo", self.0.join("kube-proxy"))
            .current_dir("/")
            .stdin(Stdio::null())
            .output()
            .expect("sh starts")
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// The whole show went well, and says so in a table that adds up.
fn assert_shown(output: &Output) {
    let (out, err) = (text(&output.stdout), text(&output.stderr));
    assert!(output.status.success() && err.is_empty(), "{out}{err}");
    assert!(out.lines().all(|line| line.chars().count() <= 80), "wider than 80 columns:\n{out}");

    let rows: Vec<Row> = out.lines().filter_map(Row::read).collect();
    let find = |place: usize, what: &str, at: &str| {
        let found = rows.iter().enumerate().find(|(index, row)| *index >= place && row.what == what && row.at == at);
        found.unwrap_or_else(|| panic!("no row {what:?} {at} from {place} on:\n{out}"))
    };
    let ipv6 = std::path::Path::new("/proc/net/if_inet6").exists();
    let mut everywhere =
        vec![("ClusterIP", "10.96.0.80:80"), ("NodePort", "192.0.2.1:30080"), ("UDP", "10.96.0.53:53")];
    everywhere.extend(ipv6.then_some(("ClusterIP", "[fd00:10:96::80]:80")));
    everywhere.extend(ipv6.then_some(("NodePort", "[2001:db8::1]:30080")));
    for (what, at) in everywhere {
        let counts = find(0, what, at).1.counts;
        assert_eq!(counts.iter().sum::<u32>(), 60, "{what} {at}:\n{out}");
        assert!(counts[..3].iter().all(|count| *count > 0) && counts[3] == 0, "{what} {at}:\n{out}");
    }
    let (place, sticky) = find(0, "affinity", "10.96.0.81:80");
    assert!(sticky.counts.contains(&60), "affinity:\n{out}");
    assert!(out.contains("refused"), "{out}");
    let (place, _) = find(place, "ClusterIP", "10.96.0.80:80");
    let after = find(place + 1, "ClusterIP", "10.96.0.80:80").1.counts;
    assert!(after[0] > 0 && after[1] > 0 && after[2] == 0 && after[3] == 0, "web-3 left:\n{out}");
    assert!(out.contains("failures: 0\n") && out.contains(" ms") && out.contains("Try next:"), "{out}");
}

/// A row with an answer count for each pod, and the failed requests.
struct Row {
    what: String,
    at: String,
    counts: [u32; 4],
}

impl Row {
    fn read(line: &str) -> Option<Self> {
        let words: Vec<&str> = line.split_whitespace().collect();
        let [_, what, at, counts @ ..] = &words[..] else { return None };
        let counts: Vec<u32> = counts.iter().map_while(|count| count.parse().ok()).collect();
        Some(Self { what: (*what).to_owned(), at: (*at).to_owned(), counts: counts.try_into().ok()? })
    }
}

fn is_root() -> bool {
    nix::unistd::geteuid().is_root()
}

#[test]
fn it_shows_services_to_whoever_runs_it() {
    let program = Program::new("self");
    assert_shown(&program.run("exec $demo demo"));
}

#[test]
fn it_needs_no_root_where_the_kernel_lets_users_have_namespaces() {
    if !is_root() {
        // Then the test above has shown it.
        return;
    }
    let program = Program::new("nobody");
    let nobody = "setpriv --reuid=65534 --regid=65534 --clear-groups";
    let output = program.run(&format!("exec {nobody} $demo demo"));
    if program.run(&format!("exec {nobody} unshare --user --map-root-user --net true")).status.success() {
        assert_shown(&output);
        assert!(text(&output.stdout).contains("without root"), "{}", text(&output.stdout));
    } else {
        assert_eq!(output.status.code(), Some(1));
        assert!(text(&output.stderr).contains("run it as root: sudo "), "{}", text(&output.stderr));
    }
}

#[test]
fn where_it_is_forbidden_it_says_in_one_line_what_to_do() {
    let program = Program::new("forbidden");
    let output = program.run(
        "exec unshare --user --map-root-user sh -ec '
             echo 0 >/proc/sys/user/max_user_namespaces
             exec setpriv --bounding-set=-all --inh-caps=-all $demo demo'",
    );
    let err = text(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{err}");
    assert!(output.stdout.is_empty() && err.lines().count() == 1, "{err}");
    assert!(err.contains("cannot make namespaces") && err.contains("--privileged"), "{err}");
}

#[test]
fn it_leaves_nothing_behind_and_touches_nothing_outside() {
    let program = Program::new("traces");
    let traces = "ls -A ${TMPDIR:-/tmp}; cat /proc/net/dev | cut -d: -f1; cat /proc/sys/net/ipv4/ip_forward";
    let output = program.run(&format!(
        "mkdir $demo.d && export TMPDIR=$demo.d && ({traces}) >$demo.1; $demo demo >$demo.out; ({traces}) >$demo.2
         cmp $demo.1 $demo.2 && grep 'failures: 0' $demo.out"
    ));
    assert!(output.status.success(), "{}{}", text(&output.stdout), text(&output.stderr));
}

#[test]
fn a_reader_who_leaves_is_no_reason_to_panic() {
    let program = Program::new("pipe");
    let output = program.run("($demo demo 2>&1 >&3 3>&- | cat >&2) 3>&1 | true");
    let err = text(&output.stderr);
    assert!(err.starts_with("Error: cannot write to stdout") && err.lines().count() == 1, "{err}");
}

#[test]
fn flags_that_mean_nothing_here_are_refused() {
    let program = Program::new("flags");
    let output = program.run("exec $demo demo --proxy-mode=ipvs");
    assert_eq!(output.status.code(), Some(1));
    assert!(text(&output.stderr).contains("no use for --proxy-mode"), "{}", text(&output.stderr));
}
