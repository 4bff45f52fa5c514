//! What is shown to people: lines and plain text tables.

use std::{
    fmt::{self, Write as _},
    io::Write as _,
    sync::atomic::{AtomicBool, Ordering::Relaxed},
};

static READER_IS_GONE: AtomicBool = AtomicBool::new(false);

/// Whether nobody reads standard output any more, as after `| head`: what runs on should end, quietly.
pub(super) fn reader_is_gone() -> bool {
    READER_IS_GONE.load(Relaxed)
}

/// Prints to standard output; nothing if nobody reads it.
pub(super) fn print(text: fmt::Arguments<'_>) {
    let mut out = std::io::stdout().lock();
    if out.write_fmt(text).and_then(|()| out.flush()).is_err() {
        READER_IS_GONE.store(true, Relaxed);
    }
}

/// Prints a line to standard output; nothing if nobody reads it.
macro_rules! say {
    ($($text:tt)*) => {
        $crate::cli::terminal::print(format_args!("{}\n", format_args!($($text)*)))
    };
}

pub(super) use say;

/// Rows of cells under their titles, columns aligned.
#[derive(Debug)]
pub(super) struct Table {
    rows: Vec<Vec<String>>,
}

impl Table {
    pub(super) fn new(titles: &[&str]) -> Self {
        Self {
            rows: vec![titles.iter().map(|title| (*title).to_owned()).collect()],
        }
    }

    pub(super) fn row(&mut self, cells: Vec<String>) {
        self.rows.push(cells);
    }

    pub(super) fn render(&self) -> String {
        let columns = self.rows.iter().map(Vec::len).max().unwrap_or(0);
        let width = |column: usize| {
            self.rows
                .iter()
                .filter_map(|row| row.get(column))
                .map(|cell| cell.chars().count())
                .max()
                .unwrap_or(0)
        };
        let widths: Vec<usize> = (0..columns).map(width).collect();
        let mut text = String::new();
        for row in &self.rows {
            let mut line = String::new();
            for (cell, width) in row.iter().zip(&widths) {
                let _ = write!(line, "{cell:width$}  ");
            }
            text.push_str(line.trim_end());
            text.push('\n');
        }
        text
    }
}
