//! Reloads files when they change: keys, certificates, tokens. The content is compared every few seconds, because Kubernetes
//! replaces a mounted Secret by switching a symbolic link, which a watch on the file would not notice.

use std::collections::BTreeMap;
use std::io::Read as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tracing::{info, warn};

/// How often the files are read.
pub const LOOK: Duration = Duration::from_secs(2);
/// The longest file in bytes.
pub const MAX_FILE: u64 = 1 << 20;

/// The state of the files of one use.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Reload {
    /// How many reloads succeeded.
    pub times: u64,
    /// Why the current content cannot be used. The former content stays in force.
    pub error: Option<String>,
}

/// The state of all files, by use. Clones share it.
#[derive(Clone, Debug, Default)]
pub struct Reloads(Arc<Mutex<BTreeMap<&'static str, Reload>>>);

impl Reloads {
    /// The current state of the files of each use.
    pub fn read(&self) -> BTreeMap<&'static str, Reload> {
        self.0.lock().clone()
    }

    /// Reads `files` repeatedly, and passes their content to `take` when it differs from `last`. If `take` refuses the content,
    /// the former content stays in force.
    pub async fn follow(
        self,
        what: &'static str,
        files: Vec<PathBuf>,
        last: Vec<Vec<u8>>,
        take: impl FnMut(&[Vec<u8>]) -> Result<(), String> + Send,
    ) {
        self.follow_every(LOOK, what, files, last, take).await;
    }

    async fn follow_every(
        self,
        every: Duration,
        what: &'static str,
        files: Vec<PathBuf>,
        mut last: Vec<Vec<u8>>,
        mut take: impl FnMut(&[Vec<u8>]) -> Result<(), String> + Send,
    ) {
        self.0.lock().entry(what).or_default();
        loop {
            tokio::time::sleep(every).await;
            let paths = files.clone();
            let Ok(read) = tokio::task::spawn_blocking(move || read_all(&paths)).await else { return };
            let tried = match read {
                Ok(now) if now == last => self.read_failed(what).then_some(Ok(false)),
                Ok(now) => {
                    let taken = take(&now).map(|()| true);
                    last = now;
                    Some(taken)
                }
                Err(error) => Some(Err(error)),
            };
            if let Some(tried) = tried {
                self.note(what, tried);
            }
        }
    }

    /// Whether the last read failed. Then unchanged content means that all is well again.
    fn read_failed(&self, what: &'static str) -> bool {
        self.0.lock().get(what).and_then(|reload| reload.error.as_ref()).is_some_and(|error| error.starts_with(UNREAD))
    }

    /// Records a result, and logs it if it is new.
    fn note(&self, what: &'static str, tried: Result<bool, String>) {
        let mut all = self.0.lock();
        let reload = all.entry(what).or_default();
        match tried {
            Ok(taken) => {
                reload.error = None;
                reload.times += u64::from(taken);
                if taken {
                    info!(what, "reloaded changed files");
                }
            }
            Err(error) => {
                if reload.error.as_ref() != Some(&error) {
                    warn!(what, error, "cannot use changed files; the former content stays in force");
                }
                reload.error = Some(error);
            }
        }
    }
}

/// The start of the message on a file that cannot be read.
const UNREAD: &str = "cannot read ";

/// The content of a file of at most [`MAX_FILE`] bytes.
pub fn read(path: &Path) -> Result<Vec<u8>, String> {
    let unread = |why: &dyn std::fmt::Display| format!("{UNREAD}{}: {why}", path.display());
    let file = std::fs::File::open(path).map_err(|error| unread(&error))?;
    let mut bytes = Vec::new();
    file.take(MAX_FILE + 1).read_to_end(&mut bytes).map_err(|error| unread(&error))?;
    if bytes.len() as u64 > MAX_FILE {
        return Err(unread(&format_args!("the file is longer than {MAX_FILE} bytes")));
    }
    Ok(bytes)
}

/// The contents of files.
pub fn read_all(paths: &[PathBuf]) -> Result<Vec<Vec<u8>>, String> {
    paths.iter().map(|path| read(path)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn reload_takes_good_content_and_reports_bad() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("secret");
        std::fs::write(&path, "one").unwrap();
        let reloads = Reloads::default();
        let (sender, mut taken) = tokio::sync::mpsc::unbounded_channel();
        let take = move |files: &[Vec<u8>]| {
            if files[0] == b"bad" {
                return Err("it is bad".to_owned());
            }
            sender.send(files[0].clone()).map_err(|error| error.to_string())
        };
        let every = Duration::from_millis(1);
        tokio::spawn(reloads.clone().follow_every(every, "test", vec![path.clone()], vec![b"one".to_vec()], take));
        while !reloads.read().contains_key("test") {
            tokio::task::yield_now().await;
        }

        // Replaced as a whole: a read in the middle of a write would see an empty file, which would be a change.
        let exchange = |text| {
            std::fs::write(dir.path().join("new"), text).unwrap();
            std::fs::rename(dir.path().join("new"), &path).unwrap();
        };
        exchange("bad");
        while reloads.read()["test"].error.is_none() {
            tokio::time::sleep(every).await;
        }
        assert_eq!(reloads.read()["test"], Reload { times: 0, error: Some("it is bad".to_owned()) });

        // Like Kubernetes: a symbolic link is replaced.
        std::fs::remove_file(&path).unwrap();
        std::fs::write(dir.path().join("other"), "two").unwrap();
        std::os::unix::fs::symlink("other", &path).unwrap();
        assert_eq!(taken.recv().await.unwrap(), b"two");
        while reloads.read()["test"].error.is_some() {
            tokio::time::sleep(every).await;
        }
        assert_eq!(reloads.read()["test"].times, 1);

        std::fs::remove_file(&path).unwrap();
        while reloads.read()["test"].error.is_none() {
            tokio::time::sleep(every).await;
        }
        exchange("two");
        while reloads.read()["test"].error.is_some() {
            tokio::time::sleep(every).await;
        }
        assert_eq!(reloads.read()["test"].times, 1, "the content that came back is the one in force");
    }

    #[test]
    fn reload_refuses_a_file_without_end() {
        assert!(read(Path::new("/dev/zero")).unwrap_err().contains("longer than"));
    }
}
