//! How far a node is on its way to a map: which sponsor it asked, and which process has its name.

use super::link::LinkId;
use super::types::Namesake;

/// What matters until the node has its map.
#[derive(Debug)]
pub(super) struct Joining {
    /// When the node began to join.
    pub(super) started_ms: u64,
    /// The link on which a snapshot was last requested.
    pub(super) sponsor: LinkId,
    /// The peer of that link.
    pub(super) sponsor_origin: Option<u64>,
    /// The sponsor whose map other nodes refused last.
    pub(super) misled_by: Option<u64>,
    /// Beats since this seat was taken.
    pub(super) beats: u32,
    /// Which process has this node's name, once that is certain.
    pub(super) refused: Option<Namesake>,
}

impl Joining {
    pub(super) const fn new(now_ms: u64) -> Self {
        Self { started_ms: now_ms, sponsor: 0, sponsor_origin: None, misled_by: None, beats: 0, refused: None }
    }

    /// Begins again, for another seat. `misled`: other nodes refused the map, so its sponsor is not asked again at once.
    pub(super) fn restart(&mut self, misled: bool, now_ms: u64) {
        let Self { sponsor_origin, refused, .. } = *self;
        *self = Self { misled_by: sponsor_origin.filter(|_| misled), refused, ..Self::new(now_ms) };
    }

    /// The sponsor to leave out for `wait_ms`: the one whose map other nodes refused.
    pub(super) fn not_yet(&self, wait_ms: u64, now_ms: u64) -> Option<u64> {
        let long = now_ms.saturating_sub(self.started_ms) >= wait_ms || planted!("refused-map-asked-again");
        self.misled_by.filter(|_| !long)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_misleading_sponsor_is_left_out_for_a_while() {
        let mut joining = Joining::new(0);
        joining.sponsor_origin = Some(7);
        joining.restart(true, 100);
        assert_eq!((joining.not_yet(50, 149), joining.not_yet(50, 150)), (Some(7), None));
        joining.restart(true, 200);
        assert_eq!(joining.not_yet(50, 200), None, "no snapshot came since");
    }

    #[test]
    fn a_refusal_outlives_a_restart() {
        let mut joining = Joining::new(0);
        joining.refused = Some(Namesake { origin: 3, started_ms: 4 });
        joining.restart(false, 100);
        assert_eq!(joining.refused, Some(Namesake { origin: 3, started_ms: 4 }));
    }
}
