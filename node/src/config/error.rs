//! Why settings are refused.

use std::path::PathBuf;

/// Why the settings are refused. Every variant names the setting or the file.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file cannot be read.
    #[error("cannot read the configuration file {path}: {source}", path = path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// The error of the operating system.
        source: std::io::Error,
    },
    /// The file is not YAML.
    #[error("{path} is not valid YAML: {message}", path = path.display())]
    Syntax {
        /// The file.
        path: PathBuf,
        /// The parser's message, with the position.
        message: String,
    },
    /// A setting in the file has the wrong type or form, or does not exist.
    #[error("{path}: {field}: {message}", path = path.display())]
    Field {
        /// The file.
        path: PathBuf,
        /// The setting's path, such as `discovery.dns.port`.
        field: String,
        /// What is wrong.
        message: String,
    },
    /// A setting can be parsed but not used.
    #[error("{field}: {message}")]
    Invalid {
        /// The setting's path, such as `discovery.dns.port`.
        field: &'static str,
        /// What is wrong, and what would be right.
        message: String,
    },
}

pub(super) fn invalid(field: &'static str, message: impl Into<String>) -> ConfigError {
    ConfigError::Invalid { field, message: message.into() }
}
