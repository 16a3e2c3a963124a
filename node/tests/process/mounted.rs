//! Files that are replaced as Kubernetes replaces those of a mounted Secret.

use std::path::PathBuf;

use tempfile::TempDir;

/// A directory of files, as a mounted Secret.
pub(crate) struct Mounted(TempDir);

impl Mounted {
    pub(crate) fn new(files: &[(&str, &str)]) -> Self {
        let mounted = Self(tempfile::tempdir().unwrap());
        std::os::unix::fs::symlink("..data", mounted.0.path().join("current")).unwrap();
        mounted.put(files);
        mounted
    }

    /// Replaces all files at once, by a symbolic link.
    pub(crate) fn put(&self, files: &[(&str, &str)]) {
        let name = format!("{:x}", rand::random::<u64>());
        let version = self.0.path().join(&name);
        std::fs::create_dir(&version).unwrap();
        for (file, text) in files {
            std::fs::write(version.join(file), text).unwrap();
        }
        let link = self.0.path().join("..new");
        std::os::unix::fs::symlink(name, &link).unwrap();
        std::fs::rename(link, self.0.path().join("..data")).unwrap();
    }

    pub(crate) fn path(&self, file: &str) -> PathBuf {
        self.0.path().join("current").join(file)
    }

    pub(crate) fn text(&self, file: &str) -> String {
        self.path(file).to_str().unwrap().to_owned()
    }
}
