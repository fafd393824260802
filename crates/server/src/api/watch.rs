//! What the engines count, as metrics: read when somebody looks.

use std::sync::Arc;

use super::{Model, Served};
use crate::metrics::{Metric, Metrics};
use crate::state::State;

/// What an engine has now; nothing when its model is unloaded.
pub(super) const GAUGES: [Metric; 5] = [
    Metric::QueueDepth,
    Metric::Running,
    Metric::CachePagesUsed,
    Metric::CachePages,
    Metric::PrefixPages,
];

impl Served {
    /// Lets the server's metrics say what the models' engines do.
    pub fn watch(self: &Arc<Served>, state: &State) {
        let served = Arc::downgrade(self);
        state.metrics().watch(move |metrics| {
            if let Some(served) = served.upgrade() {
                let all = served.loaded(|_| true);
                all.iter().for_each(|m| show(metrics, m));
            }
        });
    }
}

fn show(metrics: &Metrics, model: &Model) {
    let (id, stats) = (&[model.id.as_str()][..], model.scheduler.stats());
    let (used, there) = stats.pages;
    let now = [stats.waiting, stats.running, used, there, stats.kept];
    for (metric, now) in GAUGES.into_iter().zip(now) {
        metrics.set(metric, id, i64::try_from(now).unwrap_or(i64::MAX));
    }
    let totals = [
        (Metric::PrefixEvictions, stats.evictions),
        (Metric::Preemptions, stats.preemptions),
        (Metric::FolderWritten, stats.written),
        (Metric::FolderRead, stats.restored),
        (Metric::FolderErrors, stats.folder_errors),
        (Metric::SpeculativeDrafted, stats.drafted),
        (Metric::SpeculativeAccepted, stats.accepted),
    ];
    for (metric, total) in totals {
        metrics.total(metric, id, total);
    }
    let (sizes, gaps) = (&stats.batches, stats.gaps);
    metrics.counted(Metric::BatchSize, id, sizes, stats.chunks as f64);
    let seconds = gaps.sum.as_secs_f64();
    metrics.counted(Metric::InterTokenLatency, id, &gaps.counts, seconds);
}
