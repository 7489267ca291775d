//! `dashi completions` and `dashi man`: the command line's own description, for shells and for `man`.

use std::fs;

use anyhow::Context as _;
use clap::{Command, CommandFactory as _};
use serde_json::json;

use crate::args::{Cli, CompletionsArgs, ManArgs};
use crate::exit::Exit;
use crate::output::print_result;

/// Prints the completions of a shell.
pub fn completions(args: &CompletionsArgs) -> Exit {
    let mut script = Vec::new();
    clap_complete::generate(args.shell, &mut Cli::command(), "dashi", &mut script);
    let script = String::from_utf8_lossy(&script).into_owned();
    let shell = args.shell.to_string();
    print_result(args.json, || json!({ "shell": shell, "script": &script }), || script.clone());
    Exit::Done
}

/// Prints the page of `dashi`, or writes a page for each command into a directory.
pub fn man(args: &ManArgs) -> anyhow::Result<Exit> {
    let command = Cli::command().disable_help_subcommand(true);
    let Some(directory) = &args.output else {
        let mut page = Vec::new();
        clap_mangen::Man::new(command).render(&mut page)?;
        let page = String::from_utf8(page)?;
        print_result(args.json, || json!({ "page": &page }), || page.clone());
        return Ok(Exit::Done);
    };
    fs::create_dir_all(directory)
        .and_then(|()| clap_mangen::generate_to(command.clone(), directory))
        .with_context(|| format!("cannot write the pages into {}", directory.display()))?;
    if args.json {
        let files: Vec<_> =
            names(&command, "dashi").iter().map(|name| directory.join(format!("{name}.1"))).collect();
        print_result(true, || json!({ "files": files }), String::new);
    }
    Ok(Exit::Done)
}

/// The names of the pages of a command and all below it.
fn names(command: &Command, name: &str) -> Vec<String> {
    let below = command.get_subcommands().filter(|sub| !sub.is_hide_set());
    let below = below.flat_map(|sub| names(sub, &format!("{name}-{}", sub.get_name())));
    std::iter::once(name.to_owned()).chain(below).collect()
}
