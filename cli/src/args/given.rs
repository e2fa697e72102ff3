//! Which options the user gave and which of them the job uses: one that is given and not used is refused.
//!
//! A job is put together by taking options, each where it decides something. What is left over decides nothing.

use std::cell::RefCell;
use std::collections::BTreeSet;

use anyhow::Result;
use clap::parser::ValueSource;
use clap::{ArgMatches, Command};

use crate::exit::usage;

/// The options on the command line.
#[derive(Debug, Default)]
pub(crate) struct Given {
    options: Vec<Opt>,
    taken: RefCell<BTreeSet<&'static str>>,
}

#[derive(Debug)]
struct Opt {
    /// The field that it fills.
    id: String,
    /// As the user writes it.
    name: String,
    /// The first line of its help.
    help: String,
}

impl Given {
    /// What was given to a command; values that are defaults were not.
    pub(crate) fn new(command: &Command, matches: &ArgMatches) -> Self {
        let options = command
            .get_arguments()
            .filter(|a| {
                let id = a.get_id().as_str();
                // `--help` and its like have no value to ask for.
                matches.try_contains_id(id).is_ok()
                    && matches.value_source(id) == Some(ValueSource::CommandLine)
            })
            .map(|a| Opt {
                id: a.get_id().to_string(),
                name: a.get_long().map_or(a.get_id().to_string(), |long| format!("--{long}")),
                help: a.get_help().map(ToString::to_string).unwrap_or_default(),
            })
            .collect();
        Self { options, taken: RefCell::default() }
    }

    /// Notes that the job uses an option; says whether it was given.
    pub(crate) fn take(&self, id: &'static str) -> bool {
        self.taken.borrow_mut().insert(id);
        self.options.iter().any(|o| o.id == id)
    }

    /// Refuses what was given and not taken.
    ///
    /// # Errors
    /// Such an option, with what it is for.
    pub(crate) fn refuse_the_rest(&self, job: &str) -> Result<()> {
        let taken = self.taken.borrow();
        match self.options.iter().find(|o| !taken.contains(o.id.as_str())) {
            None => Ok(()),
            Some(Opt { name, help, .. }) => Err(usage(format!(
                "{name} is not used by {job}; leave it out\n  {name} is: {help}"
            ))),
        }
    }
}

/// The value of an option, used from here on.
macro_rules! take {
    ($args:expr, $field:ident) => {{
        $args.given.take(stringify!($field));
        &$args.$field
    }};
}

/// The value of an option that has a default, if it was given; used from here on.
macro_rules! take_given {
    ($args:expr, $field:ident) => {
        if $args.given.take(stringify!($field)) { Some(&$args.$field) } else { None }
    };
}

pub(crate) use {take, take_given};
