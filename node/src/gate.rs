//! Who may connect to a port: so many connections altogether, and so many from
//! one address.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::Arc;

use parking_lot::Mutex;

/// Lets connections in up to limits.
#[derive(Debug)]
pub struct Gate {
    max: usize,
    max_per_address: usize,
    inside: Mutex<Inside>,
}

#[derive(Debug, Default)]
struct Inside {
    all: usize,
    /// No address is here that has no connection, so this is bounded as they are.
    by_address: HashMap<IpAddr, usize>,
}

/// Why a connection is not let in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Closed {
    /// There are too many.
    Full,
    /// There are too many from this address.
    AddressFull,
}

/// A connection's place, given back when it is dropped.
#[derive(Debug)]
pub struct Place {
    gate: Arc<Gate>,
    address: IpAddr,
}

impl Gate {
    /// With these limits.
    pub fn new(max: usize, max_per_address: usize) -> Arc<Self> {
        Arc::new(Self { max, max_per_address, inside: Mutex::default() })
    }

    /// Lets a connection in, if there is room.
    pub fn enter(self: &Arc<Self>, address: IpAddr) -> Result<Place, Closed> {
        let address = address.to_canonical();
        let mut inside = self.inside.lock();
        if inside.all >= self.max {
            return Err(Closed::Full);
        }
        let here = inside.by_address.get(&address).copied().unwrap_or(0);
        if here >= self.max_per_address {
            return Err(Closed::AddressFull);
        }
        inside.all += 1;
        inside.by_address.insert(address, here + 1);
        Ok(Place { gate: self.clone(), address })
    }

    /// How many are inside.
    pub fn inside(&self) -> usize {
        self.inside.lock().all
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut inside = self.gate.inside.lock();
        inside.all -= 1;
        if let Some(here) = inside.by_address.get_mut(&self.address) {
            *here -= 1;
            if *here == 0 {
                inside.by_address.remove(&self.address);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_address_has_its_part_and_places_come_back() {
        let gate = Gate::new(3, 2);
        let at = |n: u8| IpAddr::from([10, 0, 0, n]);
        let (one, two) = (gate.enter(at(1)).unwrap(), gate.enter(at(1)).unwrap());
        let mapped: IpAddr = "::ffff:10.0.0.1".parse().unwrap();
        assert_eq!(gate.enter(mapped).unwrap_err(), Closed::AddressFull, "the same address in another form");
        let three = gate.enter(at(2)).unwrap();
        assert_eq!(gate.enter(at(3)).unwrap_err(), Closed::Full);
        drop((one, two));
        let four = gate.enter(at(3)).unwrap();
        assert_eq!(gate.inside(), 2);
        drop((three, four));
        assert_eq!((gate.inside(), gate.inside.lock().by_address.len()), (0, 0));
    }
}
