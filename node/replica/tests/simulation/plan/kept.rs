//! Plans in files: the reduced plans of runs that failed once.

use std::fmt::Write as _;
use std::fs;
use std::path::PathBuf;

use serde::Deserialize;
use serde_json::Value;

use super::Plan;

const DIRECTORY: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/simulation/kept");
const MUTATIONS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/mutations.toml");

/// A file of `kept/`.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Kept {
    #[serde(skip)]
    pub name: String,
    /// One line: what the run found.
    pub found: String,
    /// The bug of mutations.toml with which the plan must fail.
    pub planted: Option<String>,
    pub plan: Plan,
}

impl Kept {
    /// A plan that is still to be explained.
    pub fn new(name: &str, plan: Plan) -> Self {
        Self { name: name.to_owned(), found: String::new(), planted: None, plan }
    }

    /// All kept plans, by name.
    pub fn all() -> Vec<Self> {
        let files = fs::read_dir(DIRECTORY).expect("the directory is part of the source");
        let mut names: Vec<_> =
            files.filter_map(|file| Some(file.ok()?.file_name().to_str()?.strip_suffix(".yaml")?.to_owned())).collect();
        names.sort_unstable();
        names.iter().map(|name| Self::read(name)).collect()
    }

    /// Checks that the file says what the plan is for.
    pub fn check_notes(&self) {
        assert!(!self.found.is_empty(), "{}.yaml: say in `found`, in one line, what the run found", self.name);
        if let Some(planted) = &self.planted {
            let mutations = fs::read_to_string(MUTATIONS).expect("the file is part of the source");
            let is_there = mutations.contains(&format!("\n{planted} = "));
            assert!(is_there, "{}.yaml: mutations.toml has no '{planted}'", self.name);
        }
    }

    pub fn read(name: &str) -> Self {
        let file = Self::file(name);
        let text = fs::read_to_string(&file).unwrap_or_else(|error| panic!("{}: {error}", file.display()));
        let kept = serde_yaml::from_str(&text).unwrap_or_else(|error| panic!("{}: {error}", file.display()));
        Self { name: name.to_owned(), ..kept }
    }

    /// Writes the file, and returns its path.
    pub fn write(&self) -> PathBuf {
        let file = Self::file(&self.name);
        fs::write(&file, self.to_yaml()).unwrap_or_else(|error| panic!("{}: {error}", file.display()));
        file
    }

    fn file(name: &str) -> PathBuf {
        PathBuf::from(DIRECTORY).join(name).with_extension("yaml")
    }

    /// One line for each field and each operation: a value in JSON is YAML as well.
    fn to_yaml(&self) -> String {
        let mut text = format!("found: {}\n", Value::from(&*self.found));
        if let Some(planted) = &self.planted {
            _ = writeln!(text, "planted: {}", Value::from(&**planted));
        }
        text.push_str("plan:\n");
        let Ok(Value::Object(mut fields)) = serde_json::to_value(&self.plan) else { unreachable!("a struct") };
        let ops = fields.remove("ops");
        for (name, value) in fields {
            _ = writeln!(text, "  {name}: {value}");
        }
        text.push_str("  ops:\n");
        for op in ops.iter().filter_map(Value::as_array).flatten() {
            _ = writeln!(text, "    - {op}");
        }
        text
    }
}
