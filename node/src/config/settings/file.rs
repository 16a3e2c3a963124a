//! Reads a file of settings, with messages that name the setting.

use std::path::Path;

use super::Settings;
use crate::config::ConfigError;

impl Settings {
    /// Reads a file of settings.
    pub fn from_file(path: &Path) -> Result<Self, ConfigError> {
        let text =
            std::fs::read_to_string(path).map_err(|source| ConfigError::Read { path: path.to_owned(), source })?;
        Self::from_yaml(path, &text)
    }

    /// Parses the text of a file of settings; `path` is for the error.
    pub fn from_yaml(path: &Path, text: &str) -> Result<Self, ConfigError> {
        // Two steps, so that an error names the path of the setting instead of a position in the file.
        let tree: serde_json::Value = serde_yaml::from_str(text)
            .map_err(|error| ConfigError::Syntax { path: path.to_owned(), message: error.to_string() })?;
        if tree.is_null() {
            return Ok(Self::default());
        }
        serde_path_to_error::deserialize(tree).map_err(|error| {
            let message = error.inner().to_string();
            let message = match nearest_name(&message) {
                Some(nearest) => format!("{message}; did you mean `{nearest}`?"),
                None => message,
            };
            let field = match error.path().to_string() {
                root if root == "." => "the file".to_owned(),
                field => field,
            };
            ConfigError::Field { path: path.to_owned(), field, message }
        })
    }
}

/// The known name that is nearest to the unknown field of serde's message.
fn nearest_name(message: &str) -> Option<&str> {
    let mut quoted = message.strip_prefix("unknown field ")?.split('`').skip(1).step_by(2);
    let unknown = quoted.next()?;
    quoted
        .map(|known| (strsim::damerau_levenshtein(&unknown.to_lowercase(), &known.to_lowercase()), known))
        .filter(|(distance, known)| *distance <= known.len().div_ceil(3))
        .min()
        .map(|(_, known)| known)
}
