//! A cgroup (v1 or v2) with a memory limit for nodes to run in; removed at the end of the test. Needs root.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::time::Duration;

/// A cgroup of this test.
pub(crate) struct MemoryGroup {
    path: PathBuf,
    version: u8,
    most: Arc<AtomicU64>,
}

static MADE: AtomicU32 = AtomicU32::new(0);

impl MemoryGroup {
    /// A cgroup whose processes may use this many bytes together.
    pub(crate) fn new(bytes: u64) -> Self {
        let (top, version) = hierarchy();
        let name = format!("kvasir-test-{}-{}", std::process::id(), MADE.fetch_add(1, Ordering::Relaxed));
        if version == 2 {
            // Under systemd this is already so.
            write(&top.join("cgroup.subtree_control"), "+memory");
        }
        let group = Self { path: top.join(name), version, most: Arc::default() };
        fs::create_dir(&group.path)
            .unwrap_or_else(|error| panic!("cannot make the cgroup {} as root: {error}", group.path.display()));
        write(&group.path.join(if version == 1 { "memory.limit_in_bytes" } else { "memory.max" }), &bytes.to_string());
        // No swap either; a kernel without swap has no such file.
        let swap = if version == 1 { ("memory.swappiness", "0") } else { ("memory.swap.max", "0") };
        if group.path.join(swap.0).exists() {
            write(&group.path.join(swap.0), swap.1);
        }
        follow(group.path.clone(), version, group.most.clone());
        group
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// How many of its processes the kernel has killed for lack of memory.
    pub(crate) fn killed(&self) -> u64 {
        let file = self.path.join(if self.version == 1 { "memory.oom_control" } else { "memory.events" });
        let text = fs::read_to_string(&file).unwrap();
        let killed = text.lines().find_map(|line| line.strip_prefix("oom_kill "));
        killed.unwrap_or_else(|| panic!("{} does not count kills: {text}", file.display())).parse().unwrap()
    }

    /// The highest observed memory use of its processes, in bytes, without what the kernel can reclaim at any time.
    pub(crate) fn most_taken(&self) -> u64 {
        self.most.load(Ordering::Relaxed)
    }
}

/// Samples a cgroup's memory until the cgroup is removed.
fn follow(path: PathBuf, version: u8, most: Arc<AtomicU64>) {
    let field = if version == 1 { "total_rss " } else { "anon " };
    std::thread::spawn(move || {
        while let Ok(text) = fs::read_to_string(path.join("memory.stat")) {
            let taken = text.lines().find_map(|line| line.strip_prefix(field)?.parse().ok()).unwrap_or_default();
            most.fetch_max(taken, Ordering::Relaxed);
            std::thread::sleep(Duration::from_millis(5));
        }
    });
}

impl Drop for MemoryGroup {
    fn drop(&mut self) {
        // Killed processes may take a moment to disappear.
        for _ in 0..100 {
            if fs::remove_dir(&self.path).is_ok() {
                return;
            }
            std::thread::sleep(Duration::from_millis(50));
        }
        eprintln!("cannot remove the cgroup {}", self.path.display());
    }
}

/// Where cgroups that limit memory are mounted, and their version.
fn hierarchy() -> (PathBuf, u8) {
    let mounts = fs::read_to_string("/proc/self/mounts").unwrap();
    let mount = mounts.lines().find_map(|line| {
        let fields: Vec<_> = line.split(' ').collect();
        let [_, place, kind, options, ..] = fields[..] else { return None };
        let place = PathBuf::from(place);
        match kind {
            "cgroup" if options.split(',').any(|option| option == "memory") => Some((place, 1)),
            "cgroup2" => {
                let controllers = fs::read_to_string(place.join("cgroup.controllers")).unwrap_or_default();
                controllers.split_whitespace().any(|controller| controller == "memory").then_some((place, 2))
            }
            _ => None,
        }
    });
    mount.unwrap_or_else(|| panic!("no mounted cgroup limits memory: {mounts}"))
}

fn write(file: &Path, text: &str) {
    fs::write(file, text).unwrap_or_else(|error| panic!("cannot write {text} to {} as root: {error}", file.display()));
}
