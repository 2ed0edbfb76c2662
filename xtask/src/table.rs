use std::fmt;

/// A table in Markdown whose columns line up as plain text too: the first to the left, the others to the right.
pub(crate) struct Table {
    rows: Vec<Vec<String>>,
}

impl Table {
    pub(crate) fn new(head: &[&str]) -> Self {
        let head = head.iter().map(|&cell| cell.to_owned());
        Self {
            rows: vec![head.collect()],
        }
    }

    /// # Panics
    /// If the row has another number of cells than the head.
    pub(crate) fn push(&mut self, row: Vec<String>) {
        assert_eq!(row.len(), self.rows[0].len(), "one cell for each column");
        self.rows.push(row);
    }
}

impl fmt::Display for Table {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let count = |cell: &String| cell.chars().count();
        let widths: Vec<usize> = (0..self.rows[0].len())
            .map(|column| {
                let cells = self.rows.iter().map(|row| count(&row[column]));
                cells.max().unwrap_or(0).max(3)
            })
            .collect();
        for (number, row) in self.rows.iter().enumerate() {
            for (column, (cell, &width)) in row.iter().zip(&widths).enumerate() {
                if column == 0 {
                    write!(f, "| {cell:<width$} |")?;
                } else {
                    write!(f, " {cell:>width$} |")?;
                }
            }
            writeln!(f)?;
            if number == 0 {
                for (column, &width) in widths.iter().enumerate() {
                    let dashes = "-".repeat(width + 1);
                    let cell = if column == 0 {
                        format!("|{dashes}-|")
                    } else {
                        format!("{dashes}:|")
                    };
                    write!(f, "{cell}")?;
                }
                writeln!(f)?;
            }
        }
        Ok(())
    }
}

/// A part of a whole in percent, or a dash where it is not known.
pub(crate) fn percent(part: Option<f64>) -> String {
    part.map_or_else(|| "—".to_owned(), |part| format!("{:.0} %", 100.0 * part))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_line_up() {
        let mut table = Table::new(&["work", "tokens/s"]);
        table.push(vec!["decode".to_owned(), "12.5".to_owned()]);
        let lines = [
            "| work   | tokens/s |",
            "|--------|---------:|",
            "| decode |     12.5 |",
        ];
        assert_eq!(
            table.to_string(),
            lines.map(|line| format!("{line}\n")).concat()
        );
    }

    #[test]
    fn what_is_not_known_is_a_dash() {
        assert_eq!(percent(Some(0.805)), "80 %");
        assert_eq!(percent(None), "—");
    }
}
