//! Notes and progress on standard error, and the wish to stop.

use std::io::Write as _;
use std::sync::Once;
use std::sync::atomic::{AtomicBool, Ordering};

use indicatif::{MultiProgress, ProgressBar, ProgressDrawTarget, ProgressStyle};
use muon_cuda::Printable;

use crate::output::plain_lines;

/// A message on standard error; where that cannot be written, nobody can be told.
pub(crate) fn to_stderr(text: &str) {
    let _ = writeln!(std::io::stderr(), "{text}");
}

/// Notes for people; results go to standard output instead.
#[derive(Debug)]
pub(crate) struct Notes {
    quiet: bool,
    bars: MultiProgress,
}

impl Notes {
    /// Bars show only where standard error is a terminal.
    pub(crate) fn new(quiet: bool) -> Self {
        let target =
            if quiet { ProgressDrawTarget::hidden() } else { ProgressDrawTarget::stderr() };
        Self { quiet, bars: MultiProgress::with_draw_target(target) }
    }

    /// One note.
    pub(crate) fn say(&self, text: &str) {
        if !self.quiet {
            self.bars.suspend(|| to_stderr(&plain_lines(text)));
        }
    }

    /// A bar for that many steps.
    pub(crate) fn bar(&self, name: &str, steps: u64) -> ProgressBar {
        let bar = self.bars.add(ProgressBar::new(steps));
        // The template is fixed; should it not parse, the default one serves.
        if let Ok(style) = ProgressStyle::with_template(
            "{prefix:38!} {bar:30.cyan/dim} {pos:>5}/{len} {msg:14} {eta:>4}",
        ) {
            bar.set_style(style.progress_chars("━━─"));
        }
        bar.set_prefix(Printable(name).to_string());
        bar
    }
}

static STOP: AtomicBool = AtomicBool::new(false);

/// Whether the user wants to stop; nothing waits for Ctrl-C yet where nobody called [`stop_requested`].
pub(crate) fn is_stopping() -> bool {
    STOP.load(Ordering::Relaxed)
}

/// Set by the first Ctrl-C; the second one ends the program on the spot.
pub(crate) fn stop_requested() -> &'static AtomicBool {
    static HANDLER: Once = Once::new();
    HANDLER.call_once(|| {
        // Without a handler Ctrl-C ends the program at once; the last checkpoint still is whole.
        let _ = ctrlc::set_handler(|| {
            if STOP.swap(true, Ordering::Relaxed) {
                std::process::exit(130);
            }
            to_stderr("stopping after what is being done; Ctrl-C again ends at once");
        });
    });
    &STOP
}
