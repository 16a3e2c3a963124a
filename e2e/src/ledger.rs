//! The acknowledged writes of one client, and what a node must hold of them.
//!
//! Knows nothing of clusters.

use std::collections::{BTreeMap, BTreeSet};

/// Writes by key. A deleted key is never written again.
#[derive(Debug, Default)]
pub struct Ledger {
    /// Acknowledged puts that were not deleted since.
    held: BTreeMap<String, Vec<u8>>,
    /// Acknowledged deletes.
    deleted: BTreeSet<String>,
    /// Keys of calls without an answer: they may or may not be there.
    open: BTreeSet<String>,
}

/// The difference between a node's content and a [`Ledger`].
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Balance {
    /// Acknowledged puts and deletes that the node holds.
    pub found: usize,
    /// Keys of acknowledged puts that are missing or have another value.
    pub lost: Vec<String>,
    /// Keys of acknowledged deletes that are there.
    pub undone: Vec<String>,
    /// Keys under which nothing was ever put.
    pub strange: Vec<String>,
}

impl Balance {
    /// Whether the content matches everything that was acknowledged.
    pub fn is_even(&self) -> bool {
        self.lost.is_empty() && self.undone.is_empty() && self.strange.is_empty()
    }
}

impl Ledger {
    /// A put was acknowledged.
    pub fn put(&mut self, key: String, value: Vec<u8>) {
        self.held.insert(key, value);
    }

    /// A delete was acknowledged.
    pub fn delete(&mut self, key: &str) {
        self.held.remove(key);
        self.deleted.insert(key.to_owned());
    }

    /// Whether a put under this key was acknowledged and no delete was sent.
    pub fn holds(&self, key: &str) -> bool {
        self.held.contains_key(key)
    }

    /// A call for this key had no answer, or none that states its outcome.
    pub fn unknown(&mut self, key: &str) {
        self.held.remove(key);
        self.open.insert(key.to_owned());
    }

    /// Acknowledged puts and deletes that a node must hold. A put that was deleted no longer counts.
    pub fn acknowledged(&self) -> usize {
        self.held.len() + self.deleted.len()
    }

    /// The deletes among them.
    pub fn deletes(&self) -> usize {
        self.deleted.len()
    }

    /// Keys of calls without an answer.
    pub fn unanswered(&self) -> usize {
        self.open.len()
    }

    /// Compares a node's content with the ledger.
    pub fn balance(&self, node: &BTreeMap<String, Vec<u8>>) -> Balance {
        let (found, lost): (Vec<_>, Vec<_>) = self.held.iter().partition(|(key, value)| node.get(*key) == Some(value));
        let (undone, gone): (Vec<_>, Vec<_>) = self.deleted.iter().partition(|key| node.contains_key(*key));
        let known = |key: &String| self.held.contains_key(key) || self.deleted.contains(key) || self.open.contains(key);
        Balance {
            found: found.len() + gone.len(),
            lost: lost.into_iter().map(|(key, _)| key.clone()).collect(),
            undone: undone.into_iter().cloned().collect(),
            strange: node.keys().filter(|key| !known(key)).cloned().collect(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ledger_finds_what_is_lost_undone_and_strange() {
        let mut ledger = Ledger::default();
        for key in ["a", "b", "c", "d", "e"] {
            ledger.put(key.to_owned(), key.as_bytes().to_vec());
        }
        ledger.delete("c");
        ledger.delete("d");
        ledger.unknown("e");
        ledger.unknown("f");
        assert_eq!((ledger.acknowledged(), ledger.deletes(), ledger.unanswered()), (4, 2, 2));
        let node = |entries: &[(&str, &str)]| {
            entries.iter().map(|(key, value)| ((*key).to_owned(), value.as_bytes().to_vec())).collect()
        };
        let even = ledger.balance(&node(&[("a", "a"), ("b", "b"), ("f", "f")]));
        assert!(even.is_even() && even.found == 4, "{even:?}");
        let other = ledger.balance(&node(&[("a", "x"), ("c", "c"), ("g", "g")]));
        let keys = |keys: &[&str]| keys.iter().map(|key| (*key).to_owned()).collect::<Vec<_>>();
        assert_eq!(
            (other.found, other.lost, other.undone, other.strange),
            (1, keys(&["a", "b"]), keys(&["c"]), keys(&["g"]))
        );
    }
}
