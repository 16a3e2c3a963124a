//! Encryption between peers: [`noise`] for links, [`datagram`] for datagrams, with the current keys from the settings or from a
//! file. Neither knows what it carries.

pub mod datagram;
pub mod noise;

use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;

use chacha20poly1305::{KeyInit as _, XChaCha20Poly1305};
use ring::hkdf;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::config::{EncryptionConfig, KEY_BYTES, Keyring};
use crate::reload::{self, Reloads};

/// The name of a key in logs and status: 8 hexadecimal digits that reveal nothing of it. With the same cookie, a key has the
/// same name on all nodes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KeyId([u8; 4]);

impl fmt::Display for KeyId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:08x}", u32::from_be_bytes(self.0))
    }
}

/// A key, from which the keys of links and of datagrams are derived by HKDF (RFC 5869) with SHA-256 and the cookie as salt.
pub struct Key {
    /// The name in logs and status.
    pub id: KeyId,
    link: [u8; KEY_BYTES],
    datagram: XChaCha20Poly1305,
}

impl Key {
    fn new(cookie: &[u8], key: &[u8; KEY_BYTES]) -> Self {
        let prk = hkdf::Salt::new(hkdf::HKDF_SHA256, cookie).extract(key);
        let datagram: [u8; KEY_BYTES] = derive(&prk, b"kvasir 1 datagram");
        Self {
            id: KeyId(derive(&prk, b"kvasir 1 name")),
            link: derive(&prk, b"kvasir 1 link"),
            datagram: XChaCha20Poly1305::new(&datagram.into()),
        }
    }
}

fn derive<const N: usize>(prk: &hkdf::Prk, what: &[u8]) -> [u8; N] {
    struct Length(usize);
    impl hkdf::KeyType for Length {
        fn len(&self) -> usize {
            self.0
        }
    }
    let mut derived = [0; N];
    prk.expand(&[what], Length(N))
        .and_then(|okm| okm.fill(&mut derived))
        .expect("N is far below 255 times the hash's length, and both lengths are N");
    derived
}

/// The cookie and the keys, ready for use.
pub struct Ring {
    cookie: Vec<u8>,
    /// The primary key first; never empty.
    keys: Vec<Key>,
}

impl Ring {
    fn new(given: &Keyring) -> Self {
        Self { cookie: given.cookie.clone(), keys: given.keys.iter().map(|key| Key::new(&given.cookie, key)).collect() }
    }

    /// The key that encrypts.
    pub fn primary(&self) -> &Key {
        self.keys.first().expect("a ring is validated to have a key")
    }

    /// The names of all keys, the primary key first.
    pub fn names(&self) -> Vec<KeyId> {
        self.keys.iter().map(|key| key.id).collect()
    }
}

impl fmt::Debug for Ring {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Ring of {} keys", self.keys.len())
    }
}

/// The current keys.
#[derive(Clone, Debug)]
pub struct Keys(watch::Receiver<Arc<Ring>>);

impl Keys {
    /// Reads the keys. If they are in a file, follows its changes until `stop` is cancelled.
    pub fn start(config: &EncryptionConfig, reloads: &Reloads, stop: CancellationToken) -> Result<Self, String> {
        let (first, file) = match config {
            EncryptionConfig::Given(ring) => (ring.clone(), None),
            EncryptionConfig::File(path) => {
                let text = reload::read(path)?;
                let ring = Keyring::parse(&text).map_err(|error| format!("{}: {error}", path.display()))?;
                (ring, Some((path.clone(), text)))
            }
        };
        let (sender, keys) = watch::channel(Arc::new(Ring::new(&first)));
        if let Some((path, text)) = file {
            let follow = follow(path, text, sender, reloads.clone());
            tokio::spawn(stop.run_until_cancelled_owned(follow));
        }
        Ok(Self(keys))
    }

    /// The current keys.
    pub fn now(&self) -> Arc<Ring> {
        self.0.borrow().clone()
    }

    /// Returns once `holds` is no longer true of the keys, perhaps never.
    pub async fn until_not(&self, mut holds: impl FnMut(&Ring) -> bool) {
        let mut keys = self.0.clone();
        if keys.wait_for(|ring| !holds(ring)).await.is_err() {
            std::future::pending::<()>().await;
        }
    }

    #[cfg(test)]
    pub(crate) fn of(cookie: &str, keys: &[u8]) -> Self {
        Self(watch::channel(Arc::new(ring(cookie, keys))).1)
    }
}

async fn follow(path: PathBuf, text: Vec<u8>, sender: watch::Sender<Arc<Ring>>, reloads: Reloads) {
    let shown = path.display().to_string();
    let take = move |files: &[Vec<u8>]| {
        let ring = Keyring::parse(&files[0]).map_err(|error| format!("{shown}: {error}"))?;
        sender.send_replace(Arc::new(Ring::new(&ring)));
        Ok(())
    };
    reloads.follow("encryption", vec![path], vec![text], take).await;
}

/// A ring of keys that each repeat one byte.
#[cfg(test)]
fn ring(cookie: &str, keys: &[u8]) -> Ring {
    Ring::new(&Keyring { cookie: cookie.into(), keys: keys.iter().map(|key| [*key; KEY_BYTES]).collect() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn key_name_depends_on_key_and_cookie() {
        let (one, again, other) = (ring("c", &[1, 2]), ring("c", &[2, 1]), ring("d", &[1, 2]));
        assert_eq!(one.names(), [again.names()[1], again.names()[0]]);
        assert_ne!(one.names()[0], one.names()[1]);
        assert_ne!(one.names()[0], other.names()[0], "the name depends on the cookie");
        assert_ne!(one.primary().link, [1; KEY_BYTES]);
        assert_eq!(one.primary().id.to_string().len(), 8);
    }
}
