//! Limits the open connections of a port, in total and for each address.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::Arc;

use parking_lot::Mutex;

/// Admits connections up to limits.
#[derive(Debug)]
pub struct Gate {
    max: usize,
    max_per_address: usize,
    open: Mutex<Open>,
}

#[derive(Debug, Default)]
struct Open {
    total: usize,
    /// Only addresses with a connection, so the map is bounded by the limit on connections.
    by_address: HashMap<IpAddr, usize>,
}

/// Why a connection is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Closed {
    /// Too many connections are open.
    Full,
    /// Too many connections from this address are open.
    AddressFull,
}

/// Permission to have a connection open; returned when it is dropped.
#[derive(Debug)]
pub struct Permit {
    gate: Arc<Gate>,
    address: IpAddr,
}

impl Gate {
    /// An empty gate with these limits.
    pub fn new(max: usize, max_per_address: usize) -> Arc<Self> {
        Arc::new(Self { max, max_per_address, open: Mutex::default() })
    }

    /// Admits a connection, if the limits allow it.
    pub fn enter(self: &Arc<Self>, address: IpAddr) -> Result<Permit, Closed> {
        let address = address.to_canonical();
        let mut open = self.open.lock();
        if open.total >= self.max {
            return Err(Closed::Full);
        }
        let here = open.by_address.get(&address).copied().unwrap_or(0);
        if here >= self.max_per_address {
            return Err(Closed::AddressFull);
        }
        open.total += 1;
        open.by_address.insert(address, here + 1);
        Ok(Permit { gate: self.clone(), address })
    }

    /// How many connections are open.
    pub fn open(&self) -> usize {
        self.open.lock().total
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        let mut open = self.gate.open.lock();
        open.total -= 1;
        if let Some(here) = open.by_address.get_mut(&self.address) {
            *here -= 1;
            if *here == 0 {
                open.by_address.remove(&self.address);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn gate_limits_total_and_each_address() {
        let gate = Gate::new(3, 2);
        let at = |n: u8| IpAddr::from([10, 0, 0, n]);
        let (one, two) = (gate.enter(at(1)).unwrap(), gate.enter(at(1)).unwrap());
        let mapped: IpAddr = "::ffff:10.0.0.1".parse().unwrap();
        assert_eq!(gate.enter(mapped).unwrap_err(), Closed::AddressFull, "the same address in another form");
        let three = gate.enter(at(2)).unwrap();
        assert_eq!(gate.enter(at(3)).unwrap_err(), Closed::Full);
        drop((one, two));
        let four = gate.enter(at(3)).unwrap();
        assert_eq!(gate.open(), 2);
        drop((three, four));
        assert_eq!((gate.open(), gate.open.lock().by_address.len()), (0, 0));
    }
}
