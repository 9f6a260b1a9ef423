//! What the values of a table's column are, seen while the table is indexed: images, numbers of
//! many digits, missing ones.
//!
//! Flow: each value of a column -> [`SeenValues`] -> whether it is a column of images, and what is
//! uncertain about it; called by `table`.
//! Memory: counts and an example each.

use tidegate_decode::header::{self, Probe};
use tidegate_decode::{Field, Kind};

use super::arrow_values::Cell;
use super::columns::Columns;
use crate::index::probe::Images;

/// What was seen of the values of a column.
#[derive(Debug, Clone, Default)]
pub(super) struct SeenValues {
    pub(super) missing: u64,
    /// Values that are images, and that are not, with the first of these.
    images: u64,
    others: u64,
    other: Option<String>,
    /// Numbers that come as text because they have too many digits.
    digits: u64,
    /// The first path where only the path of a file is stored, not its bytes.
    path: Option<String>,
}

/// How a row is called: by its key, if it has one, and by its file and number.
#[derive(Debug, Clone, Copy)]
pub(super) struct RowName<'a> {
    pub(super) key: Option<&'a str>,
    pub(super) number: &'a str,
}

impl SeenValues {
    /// Sees the value of column `c` in a row, and notes an image.
    pub(super) fn see(
        &mut self,
        value: &Cell<'_>,
        row: RowName<'_>,
        (columns, c): (&Columns, usize),
        images: &mut Images,
    ) {
        match value {
            Cell::Missing => {
                self.missing += 1;
                let path = row.key.filter(|_| columns.has_paths(c));
                self.path = self.path.take().or_else(|| path.map(str::to_owned));
            }
            Cell::Bytes(bytes) if columns.may_hold_images(c) => match header::probe(bytes) {
                Probe::Found(header) => {
                    self.images += 1;
                    images.add(header);
                }
                Probe::Short | Probe::Unknown => {
                    self.others += 1;
                    self.other.get_or_insert_with(|| row.number.to_owned());
                }
            },
            Cell::Bytes(_) if columns.is_number(c) => self.digits += 1,
            _ => {}
        }
    }

    /// Whether the column is one of images: more of its values are than are not.
    pub(super) fn are_images(&self) -> bool {
        self.images > self.others
    }

    /// What is uncertain about the values of a field, in words.
    pub(super) fn doubts(&self, field: &Field) -> impl Iterator<Item = String> {
        let name = &field.name;
        let other = self.other.as_ref().filter(|_| self.are_images()).map(|example| {
            format!(
                "field {name:?} is an image in {} samples and no JPEG, PNG or WebP in {}, such as {example}: those \
                 fail",
                self.images, self.others
            )
        });
        let digits = (self.digits > 0).then(|| {
            let (kind, digits) = (&field.kind, self.digits);
            let holds = match kind {
                Kind::Int => "int64 holds, and they fail",
                _ => "float64 keeps, and they are rounded",
            };
            format!(
                "column {name:?} has {digits} numbers of more digits than {holds}: tg.Text() has all of them"
            )
        });
        let path = self.path.as_ref().map(|path| {
            format!(
                "column {name:?} has paths without bytes, such as {path:?}, which are not read: embed the files, or \
                 open their folder"
            )
        });
        [other, digits, path].into_iter().flatten()
    }
}
