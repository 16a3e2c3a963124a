//! Encryption of datagrams, as membership sees it.

/// Encrypts and decrypts datagrams.
pub trait Seal: Send + Sync {
    /// Encrypts a datagram of at most [`MAX_DATAGRAM`](super::MAX_DATAGRAM) bytes.
    fn seal(&self, datagram: &[u8]) -> Vec<u8>;
    /// Decrypts a datagram. An error has the kind of refusal and its reason.
    fn open(&self, sealed: &[u8]) -> Result<Vec<u8>, (&'static str, String)>;
}
