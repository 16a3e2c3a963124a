//! The processes whose writes the store holds, so that an entry has a small number for its origin.

use std::collections::HashMap;

#[derive(Debug, Default)]
pub(crate) struct Origins {
    /// Each origin and how many entries have it. A number without entries is used again.
    all: Vec<(u64, u64)>,
    free: Vec<u32>,
    numbers: HashMap<u64, u32>,
    /// The one that was last asked for.
    last: u32,
}

impl Origins {
    /// The origin of a number.
    pub(crate) fn get(&self, number: u32) -> u64 {
        self.all[number as usize].0
    }

    /// The number of an origin, for one more entry.
    pub(crate) fn take(&mut self, origin: u64) -> u32 {
        let number = match self.all.get(self.last as usize) {
            Some((last, 1..)) if *last == origin => self.last,
            _ => self.number(origin),
        };
        self.all[number as usize].1 += 1;
        self.last = number;
        number
    }

    fn number(&mut self, origin: u64) -> u32 {
        *self.numbers.entry(origin).or_insert_with(|| {
            let number = self.free.pop().unwrap_or_else(|| {
                self.all.push((0, 0));
                u32::try_from(self.all.len() - 1).expect("fewer origins than entries in memory")
            });
            self.all[number as usize].0 = origin;
            number
        })
    }

    /// One entry less has this number.
    pub(crate) fn give_back(&mut self, number: u32) {
        let (origin, entries) = &mut self.all[number as usize];
        *entries -= 1;
        if *entries == 0 {
            self.numbers.remove(origin);
            self.free.push(number);
        }
        if self.numbers.is_empty() {
            *self = Self::default();
        }
    }
}
