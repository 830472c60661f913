//! Host-local IPAM: which pod of this node has which address.
//!
//! One file per address, named after it, holding the owner. `create_new` is the only lock needed, a crash leaves
//! either a whole reservation or none that counts, and reconciling is a directory walk.

use std::collections::HashSet;
use std::fs;
use std::io::{self, Write};
use std::net::Ipv4Addr;
use std::path::PathBuf;

use ipnet::Ipv4Net;

use crate::{Context, Error, Result};

const LAST_RESERVED: &str = "last_reserved_ip";

/// The addresses of one subnet and their owners, on disk.
#[derive(Clone, Debug)]
pub struct HostLocal {
    directory: PathBuf,
    subnet: Ipv4Net,
}

// === impl HostLocal ===

impl HostLocal {
    pub fn open(directory: PathBuf, subnet: Ipv4Net) -> Result<Self> {
        if subnet.prefix_len() > 30 {
            return Err(Error::Invalid(format!(
                "pod CIDR {subnet} has no room for pods"
            )));
        }
        fs::create_dir_all(&directory).context(|| format!("creating {}", directory.display()))?;
        Ok(Self {
            directory,
            subnet: subnet.trunc(),
        })
    }

    /// The subnet's first address, which the node's bridge owns.
    pub fn gateway(&self) -> Ipv4Addr {
        Ipv4Addr::from(u32::from(self.subnet.network()) + 1)
    }

    /// Reserves an address for `owner`; the same owner gets the address it has.
    pub fn allocate(&self, owner: &str) -> Result<Ipv4Addr> {
        if let Some(address) = self.find(owner)? {
            return Ok(address);
        }
        let first = u32::from(self.gateway()) + 1;
        let last = u32::from(self.subnet.broadcast()) - 1;
        // Going on after the last address leaves a released one unused for as long as possible.
        let start = match self.last_reserved() {
            Some(address) if (first..last).contains(&u32::from(address)) => u32::from(address) + 1,
            _ => first,
        };
        for candidate in (start..=last).chain(first..start) {
            let address = Ipv4Addr::from(candidate);
            if self.reserve(address, owner)? {
                return Ok(address);
            }
        }
        Err(Error::PoolExhausted(self.subnet))
    }

    /// The address that `owner` holds.
    pub fn find(&self, owner: &str) -> Result<Option<Ipv4Addr>> {
        Ok(self
            .reservations()?
            .into_iter()
            .find(|(_, holder)| holder == owner)
            .map(|(address, _)| address))
    }

    /// Gives back what `owner` holds, if anything.
    pub fn release(&self, owner: &str) -> Result<()> {
        self.release_where(|holder| holder == owner)
    }

    /// Gives back every address whose owner isn't in `live`.
    pub fn reconcile(&self, live: &HashSet<String>) -> Result<()> {
        self.release_where(|holder| !live.contains(holder))
    }

    fn release_where(&self, mut condition: impl FnMut(&str) -> bool) -> Result<()> {
        for (address, holder) in self.reservations()? {
            if condition(&holder) {
                let path = self.directory.join(address.to_string());
                match fs::remove_file(&path) {
                    Err(error) if error.kind() != io::ErrorKind::NotFound => {
                        return Err(error).context(|| format!("removing {}", path.display()));
                    }
                    _ => {}
                }
            }
        }
        Ok(())
    }

    fn reserve(&self, address: Ipv4Addr, owner: &str) -> Result<bool> {
        let path = self.directory.join(address.to_string());
        let mut file = match fs::File::options().write(true).create_new(true).open(&path) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => return Ok(false),
            Err(error) => return Err(error).context(|| format!("creating {}", path.display())),
        };
        file.write_all(owner.as_bytes())
            .context(|| format!("writing {}", path.display()))?;
        // Only a hint: losing it costs nothing but the order.
        let _ = fs::write(self.directory.join(LAST_RESERVED), address.to_string());
        Ok(true)
    }

    fn last_reserved(&self) -> Option<Ipv4Addr> {
        fs::read_to_string(self.directory.join(LAST_RESERVED))
            .ok()?
            .parse()
            .ok()
    }

    fn reservations(&self) -> Result<Vec<(Ipv4Addr, String)>> {
        let entries = fs::read_dir(&self.directory)
            .context(|| format!("reading {}", self.directory.display()))?;
        let mut found = Vec::new();
        for entry in entries {
            let entry = entry.context(|| format!("reading {}", self.directory.display()))?;
            let Some(address) = entry
                .file_name()
                .to_str()
                .and_then(|name| name.parse().ok())
            else {
                continue;
            };
            match fs::read_to_string(entry.path()) {
                Ok(owner) => found.push((address, owner)),
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => {
                    return Err(error).context(|| format!("reading {}", entry.path().display()));
                }
            }
        }
        Ok(found)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ipam(subnet: &str) -> (tempfile::TempDir, HostLocal) {
        let directory = tempfile::tempdir().unwrap();
        let ipam = HostLocal::open(directory.path().to_owned(), subnet.parse().unwrap()).unwrap();
        (directory, ipam)
    }

    #[test]
    fn addresses_are_unique_stable_and_survive_reopening() {
        let (directory, ipam) = ipam("10.244.3.0/24");
        assert_eq!(ipam.gateway(), Ipv4Addr::new(10, 244, 3, 1));
        let a = ipam.allocate("a").unwrap();
        let b = ipam.allocate("b").unwrap();
        assert_eq!(a, Ipv4Addr::new(10, 244, 3, 2));
        assert_eq!(b, Ipv4Addr::new(10, 244, 3, 3));
        let again = HostLocal::open(
            directory.path().to_owned(),
            "10.244.3.0/24".parse().unwrap(),
        )
        .unwrap();
        assert_eq!(again.allocate("a").unwrap(), a);
    }

    #[test]
    fn a_released_address_is_reused_last_and_a_full_pool_says_so() {
        let (_directory, ipam) = ipam("10.244.3.0/29");
        for owner in ["a", "b", "c", "d", "e"] {
            ipam.allocate(owner).unwrap();
        }
        assert!(matches!(ipam.allocate("f"), Err(Error::PoolExhausted(_))));
        ipam.release("b").unwrap();
        assert_eq!(ipam.allocate("f").unwrap(), Ipv4Addr::new(10, 244, 3, 3));
    }

    #[test]
    fn reconciling_frees_what_the_dead_hold() {
        let (_directory, ipam) = ipam("10.244.3.0/24");
        let a = ipam.allocate("a").unwrap();
        ipam.allocate("b").unwrap();
        ipam.reconcile(&HashSet::from(["a".to_owned()])).unwrap();
        assert_eq!(ipam.find("a").unwrap(), Some(a));
        assert_eq!(ipam.find("b").unwrap(), None);
    }
}
