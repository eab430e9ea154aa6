//! Sandboxes and containers by identifier, and the names that are taken.
//!
//! Both are short critical sections on a plain mutex: nothing is awaited inside.

use std::collections::{BTreeMap, HashMap};
use std::fmt::Debug;
use std::ops::Bound;
use std::sync::{Arc, Mutex, PoisonError};

/// No single entry answers to an identifier.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub(crate) enum LookupError {
    /// None does.
    #[error("no identifier begins with {0:?}")]
    None(String),
    /// Several do.
    #[error("more than one identifier begins with {0:?}")]
    Several(String),
}

/// Things by identifier.
#[derive(Debug)]
pub(crate) struct Table<T> {
    entries: Mutex<BTreeMap<String, Arc<T>>>,
}

impl<T> Default for Table<T> {
    fn default() -> Self {
        Self {
            entries: Mutex::default(),
        }
    }
}

impl<T> Table<T> {
    fn entries(&self) -> std::sync::MutexGuard<'_, BTreeMap<String, Arc<T>>> {
        self.entries.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Adds an entry under a full identifier.
    pub(crate) fn insert(&self, id: &str, entry: Arc<T>) {
        self.entries().insert(id.to_owned(), entry);
    }

    /// Removes the entry of a full identifier.
    pub(crate) fn remove(&self, id: &str) {
        self.entries().remove(id);
    }

    /// Every entry, by identifier.
    pub(crate) fn list(&self) -> Vec<Arc<T>> {
        self.entries().values().cloned().collect()
    }

    /// The entry of an identifier, or of a beginning that no other identifier shares: what
    /// containerd's users type.
    ///
    /// # Errors
    ///
    /// When no entry, or more than one, answers to it. The empty beginning names nothing.
    pub(crate) fn find(&self, beginning: &str) -> Result<Arc<T>, LookupError> {
        if beginning.is_empty() {
            return Err(LookupError::None(String::new()));
        }
        let entries = self.entries();
        let from = (Bound::Included(beginning), Bound::Unbounded);
        let mut matches = entries
            .range::<str, _>(from)
            .take_while(|(id, _)| id.starts_with(beginning));
        match (matches.next(), matches.next()) {
            (None, _) => Err(LookupError::None(beginning.to_owned())),
            (Some((id, entry)), another) if another.is_none() || id == beginning => {
                Ok(Arc::clone(entry))
            }
            (Some(_), _) => Err(LookupError::Several(beginning.to_owned())),
        }
    }
}

/// A name that another identifier holds.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("the name {name:?} is reserved for {holder}")]
pub(crate) struct NameTaken {
    /// What was asked for.
    pub(crate) name: String,
    /// Who has it.
    pub(crate) holder: String,
}

/// Names that at most one sandbox, or container, has at a time.
#[derive(Debug, Default, Clone)]
pub(crate) struct Names {
    holders: Arc<Mutex<HashMap<String, String>>>,
}

/// A name that is taken until this is dropped.
#[derive(Debug)]
pub(crate) struct Reservation {
    holders: Arc<Mutex<HashMap<String, String>>>,
    name: String,
}

impl Names {
    /// Takes a name for an identifier.
    ///
    /// # Errors
    ///
    /// [`NameTaken`] when another identifier has it.
    pub(crate) fn reserve(&self, name: String, id: &str) -> Result<Reservation, NameTaken> {
        let mut holders = self.holders.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(holder) = holders.get(&name) {
            return Err(NameTaken {
                name,
                holder: holder.clone(),
            });
        }
        holders.insert(name.clone(), id.to_owned());
        Ok(Reservation {
            holders: Arc::clone(&self.holders),
            name,
        })
    }
}

impl Drop for Reservation {
    fn drop(&mut self) {
        self.holders
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .remove(&self.name);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn table(ids: &[&str]) -> Table<String> {
        let table = Table::default();
        for id in ids {
            table.insert(id, Arc::new((*id).to_owned()));
        }
        table
    }

    #[test]
    fn unique_beginning_of_an_id_finds_its_entry() {
        let table = table(&["abc1", "abd2", "e"]);
        assert_eq!(*table.find("abc").unwrap(), "abc1");
        assert_eq!(*table.find("e").unwrap(), "e");
    }

    #[test]
    fn shared_beginning_is_refused_but_a_whole_id_is_not() {
        let table = table(&["ab", "abc"]);
        assert_eq!(table.find("a"), Err(LookupError::Several("a".into())));
        assert_eq!(*table.find("ab").unwrap(), "ab");
    }

    #[test]
    fn empty_and_unknown_ids_find_nothing() {
        let table = table(&["ab"]);
        assert_eq!(table.find(""), Err(LookupError::None(String::new())));
        assert_eq!(table.find("b"), Err(LookupError::None("b".into())));
    }

    #[test]
    fn name_is_free_again_once_its_reservation_is_dropped() {
        let names = Names::default();
        let first = names.reserve("web".into(), "1").unwrap();
        let taken = names.reserve("web".into(), "2").unwrap_err();
        assert_eq!(
            taken,
            NameTaken {
                name: "web".into(),
                holder: "1".into()
            }
        );
        drop(first);
        names.reserve("web".into(), "2").unwrap();
    }
}
