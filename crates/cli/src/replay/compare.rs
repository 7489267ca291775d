//! `dashi replay compare`: compares a generation with the live tables.

use dashi_config::Loaded;
use dashi_projector::{GenerationComparison, RebuildError};

use super::{Opened, refuse, state};
use crate::args::CompareGenerationArgs;
use crate::compare;
use crate::exit::Exit;
use crate::output::print;
use crate::progress::ProgressDisplay;

/// Catches the generation up with the live checkpoints, compares and prints. Exit code 3 if there is none or they differ.
pub async fn run(loaded: &Loaded, args: &CompareGenerationArgs) -> anyhow::Result<Exit> {
    let opened = Opened::open(loaded, &args.archive, None).await?;
    let generation = match opened.generation(args.number).await? {
        Ok(generation) => generation,
        Err(reason) => return Ok(refuse(&reason)),
    };
    let progress = ProgressDisplay::new(args.json);
    let compared = opened
        .rebuild
        .compare(generation.number, |replayed| progress.show(state("catching up", &replayed)))
        .await;
    progress.finish();
    opened.close().await;
    let compared = match compared {
        Ok(compared) => compared,
        Err(RebuildError::Stopped) => return Ok(Exit::Overdue),
        Err(error) => return Err(error.into()),
    };
    print(&match args.json {
        true => format!("{}\n", serde_json::to_string(&compared)?),
        false => text(&compared),
    });
    Ok(if compared.equal { Exit::Done } else { Exit::No })
}

fn text(compared: &GenerationComparison) -> String {
    let GenerationComparison { generation, equal, foreign, tables } = compared;
    let name = format!("generation {generation}");
    let mut out = compare::text(tables, ["live", &name]);
    if *foreign > 0 {
        out.push_str(&format!(
            "foreign rows: {foreign}, which only the live tables have; they are not made of this log by these rules\n"
        ));
    }
    out.push_str(&match equal {
        true => format!("the live tables and {name} hold the same rows\n"),
        false => format!("the live tables and {name} differ\n"),
    });
    out
}
