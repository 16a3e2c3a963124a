//! The store as a whole, beside a plain map.

mod model;
mod random;
mod rules;
