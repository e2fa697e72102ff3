//! The form of every table.

use std::fmt;

use comfy_table::{CellAlignment, presets};
use muon_cuda::Printable;

/// A table for a terminal.
pub(crate) struct Table(comfy_table::Table);

/// One cell: a line of text with control characters written out, whatever name is in it.
pub(crate) struct Cell(String);

impl Cell {
    pub(crate) fn new(content: impl ToString) -> Self {
        Self(Printable(&content.to_string()).to_string())
    }
}

impl<T: AsRef<str>> From<T> for Cell {
    fn from(text: T) -> Self {
        Self::new(text.as_ref())
    }
}

/// An empty table; columns after the first are right-aligned.
pub(crate) fn table<H>(header: H) -> Table
where
    H: IntoIterator,
    H::Item: Into<Cell>,
{
    let mut table = comfy_table::Table::new();
    table.load_style(presets::UTF8_FULL_CONDENSED);
    table.set_header(header.into_iter().map(|title| title.into().0));
    for column in table.column_iter_mut().skip(1) {
        column.set_cell_alignment(CellAlignment::Right);
    }
    Table(table)
}

impl Table {
    /// Adds a row.
    pub(crate) fn add_row<R>(&mut self, row: R)
    where
        R: IntoIterator,
        R::Item: Into<Cell>,
    {
        self.0.add_row(row.into_iter().map(|cell| cell.into().0));
    }
}

impl fmt::Display for Table {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_forges_neither_lines_nor_colours() {
        let mut table = table(["name", "value"]);
        table.add_row(["w\n│ forged ┆ 1 │\u{1b}[31m".to_owned(), "1".to_owned()]);
        let shown = table.to_string();
        assert!(shown.contains("w\\n│ forged ┆ 1 │\\u001b[31m"), "{shown}");
        assert_eq!(shown.lines().count(), 5, "{shown}");
    }
}
