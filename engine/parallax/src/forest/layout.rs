//! Where everything stands in a drawing.
//!
//! Invariants:
//! * From left to right is from earlier to later, over all lanes; distances are even, not proportional to time, so
//!   that a burst of snapshots stays readable and a quiet year takes no room.
//! * Dots of one lane are at least [`STEP`] apart, dots of different lanes at least [`SHIFT`].
//! * Lanes do not overlap, labels included.

use super::Forest;

/// Least distance of two dots on one lane.
pub(super) const STEP: f64 = 28.0;

/// Least distance of dots on different lanes.
pub(super) const SHIFT: f64 = 9.0;

/// Distance from a snapshot to where the clone's own line begins.
pub(super) const TURN: f64 = 24.0;

/// Slope of labels, in degrees.
pub(super) const SLOPE: f64 = 38.0;

/// Width of a character of a label.
const LABEL_CHARACTER: f64 = 5.9;

/// Longest label that is drawn in full.
pub(super) const LABEL_MAX: usize = 24;

/// Short histories are stretched to this width, but no further than so many times.
const COMFORTABLE: f64 = 460.0;
const STRETCH_MAX: f64 = 3.2;

/// Where the drawing begins.
pub(super) const LEFT: f64 = 44.0;
pub(super) const TOP: f64 = 92.0;

/// From the last event to the names.
const TAIL: f64 = 48.0;

/// Names: width of a character, least width of the column.
const NAME_CHARACTER: f64 = 8.0;
const NAMES_MIN: f64 = 170.0;

/// Height of a lane below its line, and above it without labels.
const BELOW: f64 = 30.0;
const ABOVE: f64 = 26.0;

/// Between two trees.
const GAP: f64 = 18.0;

/// Most marks on the axis of time.
const TICKS: usize = 7;

/// Least distance of two marks.
const TICK_STEP: f64 = 150.0;

/// One lane.
#[derive(Debug, Clone)]
pub(super) struct Row {
    /// Top of its band.
    pub(super) top: f64,
    /// Its line.
    pub(super) y: f64,
    /// Height of its band.
    pub(super) height: f64,
    /// Where its line begins.
    pub(super) start: f64,
    /// Its snapshots.
    pub(super) dots: Vec<f64>,
}

/// A mark on the axis of time.
#[derive(Debug, Clone, Copy)]
pub(super) struct Tick {
    pub(super) x: f64,
    pub(super) at_ms: i64,
}

/// See the module.
#[derive(Debug, Clone)]
pub(super) struct Layout {
    pub(super) rows: Vec<Row>,
    pub(super) ticks: Vec<Tick>,
    /// Where the lines end and the names begin.
    pub(super) now: f64,
    pub(super) width: f64,
    pub(super) height: f64,
}

/// Something that happened on a lane.
struct Event {
    at_ms: i64,
    lane: usize,
    /// `None` for the beginning of the lane.
    snapshot: Option<usize>,
}

pub(super) fn lay_out(forest: &Forest) -> Layout {
    let mut rows = rows(forest);
    let mut ticks: Vec<Tick> = Vec::new();
    let mut last_x = LEFT - SHIFT;
    for event in events(forest) {
        let lane = &forest.lanes[event.lane];
        let mut x = last_x + SHIFT;
        match event.snapshot {
            None => {
                if let Some(origin) = lane.origin {
                    let parent = &rows[origin.lane];
                    let from = origin.snapshot.and_then(|number| parent.dots.get(number)).copied();
                    x = x.max(from.unwrap_or(parent.start) + TURN);
                }
                rows[event.lane].start = x;
            }
            Some(_) => {
                let row = &mut rows[event.lane];
                x = x.max(row.dots.last().copied().unwrap_or(row.start) + STEP);
                row.dots.push(x);
            }
        }
        last_x = last_x.max(x);
        ticks.push(Tick { x, at_ms: event.at_ms });
    }
    let stretch = (COMFORTABLE / (last_x - LEFT).max(1.0)).clamp(1.0, STRETCH_MAX);
    let move_to = |x: &mut f64| *x = LEFT + (*x - LEFT) * stretch;
    for row in &mut rows {
        move_to(&mut row.start);
        row.dots.iter_mut().for_each(move_to);
    }
    ticks.iter_mut().for_each(|tick| move_to(&mut tick.x));
    move_to(&mut last_x);
    let now = last_x.max(LEFT + 120.0) + TAIL;
    let names = forest
        .lanes
        .iter()
        .map(|lane| lane.volume.shown().chars().count() as f64 * NAME_CHARACTER + 60.0)
        .fold(NAMES_MIN, f64::max);
    let height = rows.last().map_or(TOP, |row| row.top + row.height) + 24.0;
    Layout { rows, ticks: thin(&ticks), now, width: now + names, height }
}

/// Bands, from the top down, as high as their labels want.
fn rows(forest: &Forest) -> Vec<Row> {
    let mut top = TOP;
    let mut rows = Vec::with_capacity(forest.lanes.len());
    for (number, lane) in forest.lanes.iter().enumerate() {
        if lane.origin.is_none() && number > 0 {
            top += GAP;
        }
        let longest = lane
            .snapshots
            .iter()
            .map(|snapshot| snapshot.label.chars().count().min(LABEL_MAX))
            .max()
            .unwrap_or(0);
        let labels = if longest == 0 {
            0.0
        } else {
            longest as f64 * LABEL_CHARACTER * SLOPE.to_radians().sin() + 4.0
        };
        let height = ABOVE + labels + BELOW;
        rows.push(Row { top, y: top + ABOVE + labels, height, start: 0.0, dots: vec![] });
        top += height;
    }
    rows
}

/// Everything that happened, in order; a lane begins before its snapshots, whatever the clocks said.
fn events(forest: &Forest) -> Vec<Event> {
    let mut events = Vec::new();
    let mut begun: Vec<i64> = Vec::with_capacity(forest.lanes.len());
    for (number, lane) in forest.lanes.iter().enumerate() {
        let mut last = lane.volume.created_at_ms;
        if let Some(origin) = lane.origin {
            let parent = &forest.lanes[origin.lane];
            last = last.max(begun[origin.lane]);
            if let Some(snapshot) = origin.snapshot {
                last = last.max(parent.snapshots[snapshot].created_at_ms);
            }
        }
        begun.push(last);
        events.push(Event { at_ms: last, lane: number, snapshot: None });
        for (place, snapshot) in lane.snapshots.iter().enumerate() {
            last = last.max(snapshot.created_at_ms);
            events.push(Event { at_ms: last, lane: number, snapshot: Some(place) });
        }
    }
    // Parents stand before children, so a stable sort keeps every cause before its effect.
    events.sort_by_key(|event| event.at_ms);
    events
}

/// A few marks, evenly spread, the first event among them.
fn thin(all: &[Tick]) -> Vec<Tick> {
    let Some((first, last)) = all.first().zip(all.last()) else { return vec![] };
    let step = TICK_STEP.max((last.x - first.x) / (TICKS - 1) as f64);
    let mut kept = vec![*first];
    let mut latest = *first;
    for tick in all {
        if tick.x - latest.x >= step {
            kept.push(*tick);
            latest = *tick;
        }
    }
    kept
}

#[cfg(test)]
mod tests {
    use super::{super::fixtures::*, *};

    #[test]
    fn later_is_further_right_and_nothing_overlaps() {
        for forest in [small(), large()] {
            let layout = lay_out(&forest);
            for (lane, row) in forest.lanes.iter().zip(&layout.rows) {
                assert_eq!(row.dots.len(), lane.snapshots.len());
                let mut before = row.start;
                for dot in &row.dots {
                    assert!(dot - before >= STEP - 1e-6, "{}", lane.volume.name);
                    before = *dot;
                }
                assert!(before < layout.now && layout.now < layout.width);
                if let Some(origin) = lane.origin {
                    let parent = &layout.rows[origin.lane];
                    let from = origin.snapshot.map_or(parent.start, |snapshot| parent.dots[snapshot]);
                    assert!(row.start - from >= TURN - 1e-6);
                    assert!(row.y > parent.y);
                }
            }
            for pair in layout.rows.windows(2) {
                assert!(pair[0].top + pair[0].height <= pair[1].top + 1e-6);
            }
            assert!(layout.ticks.len() <= TICKS && layout.ticks.is_sorted_by(|one, other| one.x < other.x));
        }
    }

    #[test]
    fn a_clock_that_went_back_does_not_turn_the_drawing_around() {
        let forest = Forest::grow(
            vec![volume("a", 100, None), volume("b", 0, Some("a@1"))],
            vec![snapshot("a", 1, 50, ""), snapshot("a", 2, 20, "")],
        );
        let layout = lay_out(&forest);
        assert!(layout.rows[0].start < layout.rows[0].dots[0]);
        assert!(layout.rows[0].dots[0] < layout.rows[0].dots[1]);
        assert!(layout.rows[1].start > layout.rows[0].dots[0]);
    }
}
