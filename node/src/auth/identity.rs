//! Which client is calling, or why that is unknown.

/// The longest accepted token in bytes.
pub const MAX_TOKEN_BYTES: usize = 16 << 10;

/// An authenticated client.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Identity {
    /// Its subjects as in access rules: `token:NAME`, `cert:NAME`, `serviceaccount:NS/NAME`, `group:NAME`. Messages show the
    /// first.
    pub subjects: Vec<String>,
}

/// Why a client is not authenticated.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Unknown {
    /// It presented nothing.
    #[error("this node requires authentication: {0}")]
    Nothing(&'static str),
    /// Its token is unknown or no longer valid.
    #[error("the token is unknown or no longer valid")]
    Token,
    /// Its token could not be reviewed.
    #[error("the token could not be reviewed: {0}")]
    Unavailable(String),
}
