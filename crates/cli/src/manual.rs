//! `dashi completions` and `dashi man`: the command line's own description, for shells and for `man`.

use std::fs;

use anyhow::Context as _;
use clap::CommandFactory as _;

use crate::args::{Cli, CompletionsArgs, ManArgs};
use crate::exit::Exit;
use crate::output::print;

/// Prints the completions of a shell.
pub fn completions(args: &CompletionsArgs) -> Exit {
    let mut script = Vec::new();
    clap_complete::generate(args.shell, &mut Cli::command(), "dashi", &mut script);
    print(&String::from_utf8_lossy(&script));
    Exit::Done
}

/// Prints the page of `dashi`, or writes a page for each command into a directory.
pub fn man(args: &ManArgs) -> anyhow::Result<Exit> {
    let command = Cli::command().disable_help_subcommand(true);
    let Some(directory) = &args.output else {
        let mut page = Vec::new();
        clap_mangen::Man::new(command).render(&mut page)?;
        print(&String::from_utf8(page)?);
        return Ok(Exit::Done);
    };
    fs::create_dir_all(directory)
        .and_then(|()| clap_mangen::generate_to(command, directory))
        .with_context(|| format!("cannot write the pages into {}", directory.display()))?;
    Ok(Exit::Done)
}
