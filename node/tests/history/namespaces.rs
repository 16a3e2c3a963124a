//! The network: a namespace for each node, and one for the test, in which the links of all nodes meet.
//!
//! The test runs itself again in unnamed network, mount and process namespaces. When that process ends, in whatever way,
//! the kernel ends all its children and removes the namespaces: nothing is left to clean up.

use std::fmt::Write as _;
use std::io::{BufRead as _, BufReader, Write as _};
use std::process::{Command, Stdio};

/// Marks the inner process.
const INSIDE: &str = "KVASIR_HISTORY_INSIDE";
/// The prefix of the inner process's last line.
const VERDICT: &str = "verdict: ";
const NEEDED: [(&str, &str); 6] = [
    ("ip", "iproute2"),
    ("tc", "iproute2"),
    ("nft", "nftables"),
    ("unshare", "util-linux"),
    ("setpriv", "util-linux"),
    ("mount", "mount"),
];

pub(crate) fn inside() -> bool {
    std::env::var_os(INSIDE).is_some()
}

/// Runs the test of this name inside, forwards its output, and fails if it fails.
pub(crate) fn enter(test: &str) {
    let id = Command::new("id").arg("-u").output().expect("id is in every Debian");
    assert!(id.stdout.trim_ascii() == b"0", "this test makes network namespaces: run it as root");
    for (program, package) in NEEDED {
        // All run as root, whose directories PATH may lack.
        let found = Command::new("sh").args(["-c", &format!("command -v {program}")]).env("PATH", path()).output();
        assert!(found.unwrap().status.success(), "this test needs {program}: apt-get install {package}");
    }
    // If this process dies, setpriv has the kernel kill the next one, which ends all others.
    let mut inner = Command::new("setpriv")
        .args(["--pdeathsig", "KILL", "unshare", "--net", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc"])
        .arg(std::env::current_exe().unwrap())
        .args(["--exact", test, "--nocapture"])
        .env(INSIDE, "1")
        .env("PATH", path())
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut verdict = None;
    for line in BufReader::new(inner.stdout.take().expect("it is piped")).lines() {
        let line = line.unwrap();
        println!("{line}");
        verdict = line.strip_prefix(VERDICT).map(str::to_owned).or(verdict);
    }
    let status = inner.wait().unwrap();
    match verdict.as_deref() {
        Some("kept") => assert!(status.success(), "{status}"),
        Some(_) => panic!("promises were broken: see above"),
        None => panic!("no network, mount and process namespaces can be made here, or the test broke off: {status}"),
    }
}

/// Ends the inner process before the test harness prints its own count.
pub(crate) fn leave(kept: bool) -> ! {
    println!("{VERDICT}{}", if kept { "kept" } else { "broken" });
    std::io::stdout().flush().unwrap();
    std::process::exit(i32::from(!kept))
}

fn path() -> String {
    format!("{}:/usr/sbin:/sbin:/usr/bin:/bin", std::env::var("PATH").unwrap_or_default())
}

/// The namespace of a node.
pub(crate) fn name(node: usize) -> String {
    format!("n{node}")
}

/// The address of a node; clients use the address of the namespace in which the links meet.
pub(crate) fn address(node: usize) -> String {
    format!("10.77.0.{}", node + 1)
}

fn run(program: &str, args: &str) {
    run_with(program, args, "");
}

fn run_with(program: &str, args: &str, input: &str) {
    let mut child = Command::new(program)
        .args(args.split(' '))
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap_or_else(|error| panic!("{program}: {error}"));
    child.stdin.take().expect("it is piped").write_all(input.as_bytes()).unwrap();
    let output = child.wait_with_output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{program} {args}: {said}\n{input}");
}

/// The faults of each link.
#[derive(Debug)]
pub(crate) struct Network {
    /// By receiver and sender, how many packets of a hundred are lost, with a count for each rate, so that overlapping
    /// faults end independently.
    lost: Vec<Vec<Vec<u32>>>,
}

impl Network {
    /// Creates the namespaces and the links.
    pub(crate) fn new(nodes: usize) -> Self {
        // Only this process and its children see these names.
        std::fs::create_dir_all("/run/netns").unwrap();
        run("mount", "-t tmpfs tmpfs /run/netns");
        run("ip", "link set lo up");
        run("ip", "link add hub type bridge");
        run("ip", "addr add 10.77.0.254/24 dev hub");
        run("ip", "link set hub up");
        for node in 0..nodes {
            let (name, address) = (name(node), address(node));
            run("ip", &format!("netns add {name}"));
            run("ip", &format!("link add v{node} type veth peer name eth0 netns {name}"));
            run("ip", &format!("link set v{node} master hub up"));
            run("ip", &format!("-n {name} addr add {address}/24 dev eth0"));
            run("ip", &format!("-n {name} link set eth0 up"));
            run("ip", &format!("-n {name} link set lo up"));
        }
        Self { lost: vec![vec![Vec::new(); nodes]; nodes] }
    }

    /// Drops this many packets of a hundred from `from` to `to`, in addition to other losses.
    pub(crate) fn lose(&mut self, from: usize, to: usize, percent: u32) {
        self.lost[to][from].push(percent);
        self.apply(to);
    }

    /// Ends what [`Self::lose`] began.
    pub(crate) fn lose_no_more(&mut self, from: usize, to: usize, percent: u32) {
        let faults = &mut self.lost[to][from];
        if let Some(at) = faults.iter().position(|p| *p == percent) {
            faults.swap_remove(at);
        }
        self.apply(to);
    }

    fn apply(&self, to: usize) {
        let mut rules = String::from(
            "flush ruleset\ntable inet faults {\nchain arriving {\ntype filter hook input priority 0; policy accept;\n",
        );
        for (from, faults) in self.lost[to].iter().enumerate() {
            let what = match faults.iter().max() {
                None => continue,
                Some(100) => "drop".to_owned(),
                Some(percent) => format!("numgen random mod 100 < {percent} drop"),
            };
            writeln!(rules, "ip saddr {} {what}", address(from)).expect("a string takes all");
        }
        run_with("ip", &format!("netns exec {} nft -f -", name(to)), &(rules + "}\n}\n"));
    }

    /// Limits the bandwidth of everything a node sends, with a queue of half a second: packets arrive late, and some
    /// are lost.
    pub(crate) fn narrow(node: usize, kbit: u32) {
        let name = name(node);
        run("tc", &format!("-n {name} qdisc replace dev eth0 root tbf rate {kbit}kbit burst 8kb latency 500ms"));
    }

    /// Ends what [`Self::narrow`] began.
    pub(crate) fn widen(node: usize) {
        run("tc", &format!("-n {} qdisc del dev eth0 root", name(node)));
    }

    /// Unplugs a node's cable, or plugs it in again.
    pub(crate) fn plug(node: usize, plugged: bool) {
        run("ip", &format!("link set v{node} {}", if plugged { "up" } else { "down" }));
    }
}
