//! The memory limit of this process by its cgroups, of versions 1 and 2. Knows nothing of what the limit is used for.
//!
//! No crate is used, because those that read limits either manage cgroups in general, read one version only, or read only the
//! root of the hierarchy, where the limit of a systemd service is not.

use std::fs::read_to_string;
use std::path::{Component, Path, PathBuf};

/// From here on a limit means "no limit", which version 1 writes as the largest multiple of the page size.
const NO_LIMIT: u64 = 1 << 60;

/// A memory limit of this process.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Limit {
    /// The limit.
    pub bytes: u64,
    /// The file that contains it.
    pub file: PathBuf,
}

/// The lowest limit of this process's cgroups; `None` if there is no limit.
pub fn limit() -> Option<Limit> {
    limit_below(Path::new("/"))
}

/// [`limit`], with another folder for `/`.
fn limit_below(root: &Path) -> Option<Limit> {
    let read = |path: &str| read_to_string(root.join(path)).unwrap_or_default();
    let (cgroups, mounts) = (read("proc/self/cgroup"), read("proc/self/mountinfo"));
    mounts
        .lines()
        .filter_map(Hierarchy::parse)
        .flat_map(|hierarchy| hierarchy.limits(root, &cgroups))
        .min_by_key(|limit| limit.bytes)
}

/// A mounted hierarchy of cgroups that can limit memory.
struct Hierarchy<'a> {
    version: Version,
    /// The cgroup that is mounted.
    top: &'a str,
    /// Where it is mounted.
    mounted: &'a str,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Version {
    One,
    Two,
}

impl<'a> Hierarchy<'a> {
    /// From a line of `/proc/self/mountinfo`: `ID PARENT DEVICE TOP MOUNTED OPTIONS... - TYPE SOURCE OPTIONS`.
    fn parse(line: &'a str) -> Option<Self> {
        let (place, kind) = line.split_once(" - ")?;
        let mut place = place.split(' ').skip(3);
        let (top, mounted) = (place.next()?, place.next()?);
        let mut kind = kind.split(' ');
        let version = match (kind.next()?, kind.nth(1).unwrap_or_default()) {
            ("cgroup2", _) => Version::Two,
            ("cgroup", options) if options.split(',').any(|option| option == "memory") => Version::One,
            _ => return None,
        };
        Some(Self { version, top, mounted })
    }

    /// The limits of the process's cgroup and of its mounted ancestors.
    fn limits(&self, root: &Path, cgroups: &str) -> Vec<Limit> {
        let mounted = root.join(self.mounted.trim_start_matches('/'));
        // In a container the path may be the machine's, although only the container's own cgroup is mounted.
        let own = self.path(cgroups).map_or_else(|| mounted.clone(), |below| mounted.join(below));
        let own = if own.is_dir() { own } else { mounted.clone() };
        let folders = own.ancestors().take_while(|folder| folder.starts_with(&mounted));
        let mut limits: Vec<_> = folders.filter_map(|folder| self.limit_of(folder)).collect();
        if self.version == Version::One {
            // The kubelet limits all pods together to about the machine's memory. That is not a limit of this process.
            let shared = memory_of_machine(root).map_or(u64::MAX, |bytes| bytes / 4 * 3);
            limits.extend(hierarchical(&own).filter(|limit| limit.bytes < shared));
        }
        limits
    }

    /// The process's cgroup in this hierarchy, below the one that is mounted.
    fn path(&self, cgroups: &str) -> Option<PathBuf> {
        let path = cgroups.lines().find_map(|line| {
            let (controllers, path) = line.split_once(':')?.1.split_once(':')?;
            let here = match self.version {
                Version::One => controllers.split(',').any(|controller| controller == "memory"),
                Version::Two => controllers.is_empty(),
            };
            here.then_some(path)
        })?;
        let below = Path::new(path).strip_prefix(self.top).ok()?;
        // A cgroup outside the process's namespace has a path with "..".
        let inside = below.components().all(|component| matches!(component, Component::Normal(_)));
        inside.then(|| below.to_owned())
    }

    fn limit_of(&self, folder: &Path) -> Option<Limit> {
        let file = folder.join(match self.version {
            Version::One => "memory.limit_in_bytes",
            Version::Two => "memory.max",
        });
        let text = read_to_string(&file).ok()?;
        limit_in(text.trim(), file)
    }
}

/// In version 1 a cgroup also shows the lowest limit of its ancestors, which are not all mounted in a container.
fn hierarchical(folder: &Path) -> Option<Limit> {
    let file = folder.join("memory.stat");
    let text = read_to_string(&file).ok()?;
    let limit = text.lines().find_map(|line| line.strip_prefix("hierarchical_memory_limit "))?;
    limit_in(limit.trim(), file)
}

/// The machine's memory, if known.
fn memory_of_machine(root: &Path) -> Option<u64> {
    let text = read_to_string(root.join("proc/meminfo")).ok()?;
    let kib = text.lines().find_map(|line| line.strip_prefix("MemTotal:"))?.trim().strip_suffix(" kB")?;
    kib.parse::<u64>().ok()?.checked_mul(1024)
}

/// Parses a limit as the kernel writes it; "max" means none.
fn limit_in(text: &str, file: PathBuf) -> Option<Limit> {
    let bytes = text.parse().ok().filter(|bytes| *bytes < NO_LIMIT)?;
    Some(Limit { bytes, file })
}

#[cfg(test)]
mod tests {
    use super::*;

    const PAGE_COUNTER_MAX: &str = "9223372036854771712\n";

    /// The limit's bytes and file on a machine with these files.
    fn found(files: &[(&str, &str)]) -> Option<(u64, String)> {
        let root = tempfile::tempdir().unwrap();
        for (path, text) in files {
            let file = root.path().join(path);
            std::fs::create_dir_all(file.parent().unwrap()).unwrap();
            std::fs::write(file, text).unwrap();
        }
        let limit = limit_below(root.path())?;
        let file = limit.file.strip_prefix(root.path()).unwrap().to_str().unwrap().to_owned();
        Some((limit.bytes, file))
    }

    const V2: (&str, &str) = (
        "proc/self/mountinfo",
        "22 1 8:1 / / rw - ext4 /dev/sda1 rw\n\
         30 22 0:26 / /sys/fs/cgroup rw,nosuid shared:4 - cgroup2 cgroup2 rw,nsdelegate\n",
    );
    const V1: (&str, &str) = (
        "proc/self/mountinfo",
        "31 30 0:27 / /sys/fs/cgroup/cpu rw - cgroup cgroup rw,cpu,cpuacct\n\
         32 30 0:28 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory\n\
         33 30 0:29 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw\n",
    );

    #[test]
    fn limit_v2_lowest_of_all_ancestors() {
        let own = ("proc/self/cgroup", "0::/kubepods/pod1/node\n");
        let files = |pod, node| {
            [
                V2,
                own,
                ("sys/fs/cgroup/kubepods/memory.max", "8589934592\n"),
                ("sys/fs/cgroup/kubepods/pod1/memory.max", pod),
                ("sys/fs/cgroup/kubepods/pod1/node/memory.max", node),
            ]
        };
        let at = |path: &str| format!("sys/fs/cgroup/kubepods/{path}memory.max");
        assert_eq!(found(&files("max\n", "100663296\n")), Some((100_663_296, at("pod1/node/"))));
        assert_eq!(found(&files("1000\n", "100663296\n")), Some((1000, at("pod1/"))));
        assert_eq!(found(&files("max\n", "max\n")), Some((8_589_934_592, at(""))));
    }

    #[test]
    fn limit_v2_of_a_namespaced_container() {
        let max = ("sys/fs/cgroup/memory.max", "100663296\n");
        let expected = Some((100_663_296, "sys/fs/cgroup/memory.max".to_owned()));
        for own in ["0::/\n", "0::/../outside\n", "0::/of/the/machine\n", ""] {
            assert_eq!(found(&[V2, max, ("proc/self/cgroup", own)]), expected, "{own}");
        }
    }

    #[test]
    fn limit_v1_own_ancestors_and_hierarchical() {
        let own = ("proc/self/cgroup", "0::/\n4:memory:/a/b\n3:cpu,cpuacct:/c\n");
        let at = |file: &str| format!("sys/fs/cgroup/memory/{file}");
        let files = |a, b, stat| {
            [
                V1,
                own,
                ("sys/fs/cgroup/memory/memory.limit_in_bytes", PAGE_COUNTER_MAX),
                ("sys/fs/cgroup/memory/a/memory.limit_in_bytes", a),
                ("sys/fs/cgroup/memory/a/b/memory.limit_in_bytes", b),
                ("sys/fs/cgroup/memory/a/b/memory.stat", stat),
            ]
        };
        let none = "cache 1\nhierarchical_memory_limit 9223372036854771712\n";
        let some = "cache 1\nhierarchical_memory_limit 500\n";
        assert_eq!(found(&files(PAGE_COUNTER_MAX, "1000\n", none)), Some((1000, at("a/b/memory.limit_in_bytes"))));
        assert_eq!(found(&files("900\n", "1000\n", none)), Some((900, at("a/memory.limit_in_bytes"))));
        assert_eq!(found(&files("900\n", "1000\n", some)), Some((500, at("a/b/memory.stat"))));
        assert_eq!(found(&files(PAGE_COUNTER_MAX, PAGE_COUNTER_MAX, none)), None);
    }

    #[test]
    fn limit_v1_where_only_the_own_cgroup_is_mounted() {
        let mounts = (
            "proc/self/mountinfo",
            "32 30 0:28 /docker/abc /sys/fs/cgroup/memory ro,nosuid - cgroup cgroup rw,memory\n",
        );
        let own = ("proc/self/cgroup", "4:memory:/docker/abc\n");
        let max = ("sys/fs/cgroup/memory/memory.limit_in_bytes", "1000\n");
        let expected = Some((1000, "sys/fs/cgroup/memory/memory.limit_in_bytes".to_owned()));
        assert_eq!(found(&[mounts, own, max]), expected);
    }

    #[test]
    fn limit_of_all_pods_together_is_none() {
        let files = |stat| {
            [
                (
                    "proc/self/mountinfo",
                    "32 30 0:28 /kubepods/p/c /sys/fs/cgroup/memory ro - cgroup cgroup rw,memory\n",
                ),
                ("proc/self/cgroup", "4:memory:/kubepods/p/c\n"),
                ("proc/meminfo", "MemTotal:        1000 kB\nMemFree:          10 kB\n"),
                ("sys/fs/cgroup/memory/memory.limit_in_bytes", PAGE_COUNTER_MAX),
                ("sys/fs/cgroup/memory/memory.stat", stat),
            ]
        };
        assert_eq!(found(&files("hierarchical_memory_limit 800000\n")), None);
        let of_the_pod = Some((700_000, "sys/fs/cgroup/memory/memory.stat".to_owned()));
        assert_eq!(found(&files("hierarchical_memory_limit 700000\n")), of_the_pod);
    }

    #[test]
    fn limit_none_where_there_are_no_cgroups() {
        assert_eq!(found(&[]), None);
        assert_eq!(found(&[("proc/self/mountinfo", "not a line\n"), ("proc/self/cgroup", "neither\n")]), None);
    }
}
