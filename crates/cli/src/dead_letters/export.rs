//! Writing dead letters to a file.

use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};

use anyhow::Context as _;
use clap::Args;

use super::list::line;
use super::select::FilterArgs;
use super::{Opened, Selection};
use crate::exit::Exit;
use crate::output::print;
use crate::progress::{ProgressDisplay, State, Unit};

#[derive(Debug, Args)]
pub struct ExportArgs {
    #[command(flatten)]
    pub filter: FilterArgs,

    /// Those that were discarded, instead of those that were not
    #[arg(long)]
    pub discarded: bool,

    /// The file, which is replaced; standard output if omitted
    #[arg(long, value_name = "FILE")]
    pub to: Option<PathBuf>,

    /// Print the number of letters as JSON; on standard error if the letters go to standard output
    #[arg(long)]
    pub json: bool,
}

/// Writes the letters that are selected.
pub async fn run(opened: &Opened<'_>, args: &ExportArgs) -> anyhow::Result<Exit> {
    let selection =
        Selection::new(&opened.loaded.settings, opened.log_id().clone(), &args.filter, Some(args.discarded))?;
    let display = ProgressDisplay::new(args.json);
    let total = if args.filter.is_empty() { all(opened, args.discarded).await? } else { 0 };
    let show = |done| {
        let (part, unit) = ("exporting", Unit::Of("dead letters"));
        display.show(State { part, done, total, unit, note: None });
    };
    let letters = match &args.to {
        Some(path) => to_file(opened, &selection, path, show)
            .await
            .with_context(|| format!("the dead letters cannot be written to {}", path.display()))?,
        None => write(opened, &selection, &mut std::io::stdout().lock(), show).await?,
    };
    display.finish();
    let report = if args.json {
        format!("{}\n", serde_json::json!({ "dead_letters": letters, "file": args.to }))
    } else {
        format!("exported {letters} dead letters\n")
    };
    if args.to.is_some() {
        print(&report)
    } else {
        eprint!("{report}")
    }
    Ok(Exit::Done)
}

/// The file has all letters, or is as it was before.
async fn to_file(
    opened: &Opened<'_>,
    selection: &Selection,
    path: &Path,
    show: impl Fn(u64),
) -> anyhow::Result<u64> {
    let mut part = path.as_os_str().to_owned();
    part.push(".part");
    let part = PathBuf::from(part);
    let mut out = BufWriter::new(File::create(&part)?);
    let letters = write(opened, selection, &mut out, show).await?;
    out.into_inner()?.sync_all()?;
    std::fs::rename(&part, path)?;
    Ok(letters)
}

/// How many there are to be exported, if no filter is given.
async fn all(opened: &Opened<'_>, discarded: bool) -> anyhow::Result<u64> {
    let counts = opened.store.letter_counts().await?;
    let of_log = counts.iter().filter(|counts| counts.log == *opened.log_id());
    Ok(of_log.map(|counts| if discarded { counts.discarded } else { counts.open + counts.waiting }).sum())
}

async fn write(
    opened: &Opened<'_>,
    selection: &Selection,
    out: &mut impl Write,
    show: impl Fn(u64),
) -> anyhow::Result<u64> {
    let mut letters = 0;
    selection
        .each(&opened.store, None, |letter| {
            out.write_all(&line(&letter)?)?;
            letters += 1;
            show(letters);
            Ok(true)
        })
        .await?;
    out.flush()?;
    Ok(letters)
}
