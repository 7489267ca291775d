//! The generations of the tables in words, for `dashi status`.

use dashi_domain::calendar::iso_string;
use dashi_projector::{Building, Standing};
use dashi_store::{Generation, GenerationState};

use super::list::version;
use crate::clock::now_ms;
use crate::progress::duration;

/// One line for each generation, and one if a rebuild is due.
pub fn standing(standing: &Standing) -> String {
    let mut out = String::new();
    for Generation { number, state, projection_version, live_since_ms, .. } in &standing.generations {
        let text = match state {
            GenerationState::Live => {
                let since = live_since_ms.map(|ms| format!(" since {}", iso_string(ms))).unwrap_or_default();
                format!("is live{since}, of projection version {}", version(*projection_version))
            }
            GenerationState::Building => {
                standing.building.as_ref().map_or_else(|| "is being built".to_owned(), building)
            }
            GenerationState::Ready => {
                format!("is ready: dashi replay compare {number}, dashi replay swap {number}")
            }
            GenerationState::Kept => format!("is kept: dashi replay rollback, dashi replay drop {number}"),
        };
        out.push_str(&format!("generation {number} {text}\n"));
    }
    if let Some(due) = &standing.due {
        out.push_str(&format!("a rebuild is due: {due}\n  to rebuild: dashi replay run\n"));
    }
    out
}

fn building(Building { done, total, committed_at_ms, .. }: &Building) -> String {
    let share = done * 100 / (*total).max(1);
    let last = committed_at_ms.map_or_else(String::new, |ms| {
        format!(", last commit {} ago", duration((now_ms() - ms).max(0) as f64 / 1_000.0))
    });
    format!("is being built: {done} of {total} records ({share} %){last}; dashi replay run goes on with it")
}
