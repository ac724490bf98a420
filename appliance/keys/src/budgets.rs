//! Budgets of keys, projects and functions that were set by hand, in `budgets.json`. A key's goes before the one that it
//! was made with.
//!
//! As with keys, all cores read one snapshot behind an atomic pointer, and a change shows when the file is on disk.

use crate::{KeyError, file::Folder};
use appliance_price::{Budget, Owner};
use arc_swap::ArcSwap;
use serde::{Deserialize, Serialize};
use std::{
    collections::BTreeMap,
    path::Path,
    sync::{Arc, Mutex, PoisonError},
};

/// Most budgets.
pub const BUDGETS_MAX: usize = 10_000;

const FILE: &str = "budgets.json";
const VERSION: u32 = 1;

/// The budgets; one for all cores.
pub struct BudgetStore {
    folder: Folder,
    budgets: ArcSwap<BTreeMap<Owner, Budget>>,
    /// Held while a change is made, so that changes follow each other.
    change: Mutex<()>,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    version: u32,
    budgets: BTreeMap<String, Budget>,
}

impl BudgetStore {
    /// Opens the budgets in the folder `path`, which exists.
    ///
    /// # Errors
    /// The file cannot be read, or does not hold budgets.
    pub fn open(path: &Path) -> Result<Self, KeyError> {
        let folder = Folder { path: path.to_owned(), owner: None };
        let budgets = match folder.read(FILE)? {
            None => BTreeMap::new(),
            Some(bytes) => read(&bytes).map_err(|reason| KeyError::Corrupt { path: folder.path.join(FILE), reason })?,
        };
        Ok(Self { folder, budgets: ArcSwap::from_pointee(budgets), change: Mutex::new(()) })
    }

    /// The budget that was set for `owner`.
    pub fn get(&self, owner: &Owner) -> Option<Budget> {
        self.budgets.load().get(owner).copied()
    }

    /// All that were set, by owner.
    pub fn all(&self) -> Arc<BTreeMap<Owner, Budget>> {
        self.budgets.load_full()
    }

    /// Sets a budget in place of what there is. Writes a file: not for a serving core.
    ///
    /// # Errors
    /// Its soft limit is above it, there are too many, or the file cannot be written.
    pub fn set(&self, owner: Owner, budget: Budget) -> Result<(), KeyError> {
        if budget.soft_nanos.is_some_and(|soft| soft > budget.hard_nanos) {
            return Err(KeyError::SoftAboveHard);
        }
        self.change(|budgets| {
            budgets.insert(owner, budget);
            if budgets.len() > BUDGETS_MAX { Err(KeyError::BudgetsFull) } else { Ok(()) }
        })
    }

    /// Removes a budget; says whether there was one. Writes a file: not for a serving core.
    ///
    /// # Errors
    /// The file cannot be written; the budget then still holds.
    pub fn remove(&self, owner: &Owner) -> Result<bool, KeyError> {
        let mut was_there = false;
        self.change(|budgets| {
            was_there = budgets.remove(owner).is_some();
            Ok(())
        })?;
        Ok(was_there)
    }

    fn change(&self, edit: impl FnOnce(&mut BTreeMap<Owner, Budget>) -> Result<(), KeyError>) -> Result<(), KeyError> {
        // The lock guards no data, so a panic under it left nothing half changed.
        let _turn = self.change.lock().unwrap_or_else(PoisonError::into_inner);
        let mut budgets = BTreeMap::clone(&self.budgets.load());
        edit(&mut budgets)?;
        let stored = budgets.iter().map(|(owner, budget)| (owner.to_string(), *budget)).collect();
        let file = File { version: VERSION, budgets: stored };
        let bytes = serde_json::to_vec_pretty(&file).expect("budgets are strings and numbers");
        self.folder.replace(FILE, &bytes)?;
        self.budgets.store(Arc::new(budgets));
        Ok(())
    }
}

fn read(bytes: &[u8]) -> Result<BTreeMap<Owner, Budget>, String> {
    let unreadable = |error: &dyn std::fmt::Display| format!("not a file of budgets ({error}); restore it from a copy");
    let file: File = serde_json::from_slice(bytes).map_err(|error| unreadable(&error))?;
    if file.version != VERSION {
        return Err(format!("version {} of the format; this Ember reads version {VERSION}", file.version));
    }
    let one = |(owner, budget): (String, Budget)| Ok((owner.parse().map_err(|error| unreadable(&error))?, budget));
    file.budgets.into_iter().map(one).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn budgets_outlive_a_restart() {
        let folder = tempfile::tempdir().unwrap();
        let (owner, budget): (Owner, Budget) = ("project:shop".parse().unwrap(), "5.00/month".parse().unwrap());
        let store = BudgetStore::open(folder.path()).unwrap();
        store.set(owner.clone(), budget).unwrap();
        assert!(matches!(
            store.set(owner.clone(), Budget { soft_nanos: Some(u64::MAX), ..budget }),
            Err(KeyError::SoftAboveHard)
        ));
        let again = BudgetStore::open(folder.path()).unwrap();
        assert_eq!(again.get(&owner), Some(budget));
        assert!(again.remove(&owner).unwrap() && !again.remove(&owner).unwrap());
        assert_eq!(BudgetStore::open(folder.path()).unwrap().get(&owner), None);
        std::fs::write(folder.path().join(FILE), "{}").unwrap();
        assert!(matches!(BudgetStore::open(folder.path()), Err(KeyError::Corrupt { .. })));
    }
}
