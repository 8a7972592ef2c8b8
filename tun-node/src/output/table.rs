//! A table of text with aligned columns.

use std::fmt;

/// How a column is aligned.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Align {
    /// Text.
    Left,
    /// Numbers.
    Right,
}

/// Rows of `N` columns, each as wide as its widest cell.
#[derive(Debug)]
pub(super) struct Table<const N: usize> {
    columns: [Align; N],
    rows: Vec<[String; N]>,
}

impl<const N: usize> Table<N> {
    pub(super) const fn new(columns: [Align; N]) -> Self {
        Self {
            columns,
            rows: Vec::new(),
        }
    }

    pub(super) fn head(&mut self, names: [&str; N]) {
        self.row(names.map(str::to_owned));
    }

    pub(super) fn row(&mut self, cells: [String; N]) {
        self.rows.push(cells);
    }
}

impl<const N: usize> fmt::Display for Table<N> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut widths = [0; N];
        for row in &self.rows {
            for (width, cell) in widths.iter_mut().zip(row) {
                *width = (*width).max(cell.chars().count());
            }
        }
        for row in &self.rows {
            let mut line = String::new();
            for ((cell, width), align) in row.iter().zip(widths).zip(self.columns) {
                if !line.is_empty() || width > 0 {
                    let padded = match align {
                        Align::Left => format!("{cell:<width$}  "),
                        Align::Right => format!("{cell:>width$}  "),
                    };
                    line.push_str(&padded);
                }
            }
            writeln!(f, "{}", line.trim_end())?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_as_wide_as_their_widest_cell() {
        let mut table = Table::new([Align::Left, Align::Right]);
        table.head(["NAME", "N"]);
        table.row(["a".to_owned(), "1000".to_owned()]);
        table.row(["a long name".to_owned(), "1".to_owned()]);
        assert_eq!(
            table.to_string(),
            "NAME            N\na            1000\na long name     1\n"
        );
    }
}
