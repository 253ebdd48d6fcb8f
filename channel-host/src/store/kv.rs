//! LDK's view of the store.

use lightning::io;
use lightning::util::persist::KVStoreSync;

use super::{Change, EntryKey, Store};

impl KVStoreSync for Store {
    fn read(&self, space: &str, subspace: &str, name: &str) -> Result<Vec<u8>, io::Error> {
        self.get(EntryKey::new(space, subspace, name))?
            .ok_or_else(|| io::Error::new(io::ErrorKind::NotFound, "no such entry"))
    }

    fn write(
        &self,
        space: &str,
        subspace: &str,
        name: &str,
        bytes: Vec<u8>,
    ) -> Result<(), io::Error> {
        let change = Change::Put(EntryKey::new(space, subspace, name), bytes);
        Ok(Self::write(self, vec![change])?)
    }

    fn remove(&self, space: &str, subspace: &str, name: &str, lazy: bool) -> Result<(), io::Error> {
        let changes = vec![Change::Remove(EntryKey::new(space, subspace, name))];
        if lazy {
            self.write_lazily(changes)?;
        } else {
            Self::write(self, changes)?;
        }
        Ok(())
    }

    fn list(&self, space: &str, subspace: &str) -> Result<Vec<String>, io::Error> {
        Ok(self.names(space, subspace)?)
    }
}
