//! `kvctl`.
fn main() {}
