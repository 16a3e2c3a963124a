//! Formats that more than one program of Kvasir reads or writes.
//!
//! A value that a user writes means the same in a `KvCluster`, in the settings of a node and on the command line of
//! `kvctl`, because each is read here. The crate knows nothing of the fields that hold such values, nor of which range
//! is allowed there, and without features it has no dependencies.
//!
//! | module | holds |
//! | --- | --- |
//! | [`duration`] | `500ms`, `1m30s` |
//! | [`quantity`] | `256Mi`, and every form that Kubernetes has |
//! | [`host_port`] | `name:7071`, `[fd00::1]:7071` |
//! | [`access`] | the verbs and subjects of access rules |
//! | `keyring` | key files (feature `keyring`) |
//! | [`defaults`] | ports, defaults and limits |

pub mod access;
pub mod defaults;
pub mod duration;
pub mod host_port;
#[cfg(feature = "keyring")]
pub mod keyring;
pub mod quantity;
#[cfg(feature = "serde")]
mod text;
