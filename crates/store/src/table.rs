//! How a table is described: its name, its columns, and where each column's value stands in the row that the fold
//! makes. Both backends make their inserts from it, the catalogue its widths, and `dashi compare` its columns.

use dashi_domain::decimal::Decimal;
use uuid::Uuid;

/// A table that Dashi writes.
#[derive(Debug)]
pub struct Table {
    /// Its name, without the schema or prefix of Dashi's own.
    pub name: &'static str,
    /// Whose table it is.
    pub owner: Owner,
    /// Its columns; the first ones are the key that rows are ordered by.
    pub columns: &'static [Column],
    /// How many of the columns are the key.
    pub key: usize,
}

/// Whose a table is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Owner {
    /// Dashi's own: in the schema `dashi` (PostgreSQL) or with the prefix `dashi_` (SQLite).
    Dashi,
    /// Umami's, in every version from 3.0 on.
    Umami,
    /// Umami's, in some versions only: rows are written where the table is.
    NewerUmami,
}

impl Table {
    /// Whether it is Dashi's own.
    pub fn is_own(&self) -> bool {
        self.owner == Owner::Dashi
    }

    /// Assignments for `DO UPDATE SET`: every column but those of the key and `kept` takes the new row's value.
    pub fn replacing(&self, kept: &[&str]) -> String {
        let columns = self.columns[self.key..].iter().map(|column| column.name);
        let assigned =
            columns.filter(|name| !kept.contains(name)).map(|name| format!("{name} = excluded.{name}"));
        assigned.collect::<Vec<_>>().join(", ")
    }
}

/// A column.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Column {
    /// Its name.
    pub name: &'static str,
    /// How its values are compared.
    pub column_type: ColumnType,
    /// How many characters it holds in Umami 3.1, and in Dashi's own tables: the fold cuts to it. `None` for texts without a
    /// limit and other types.
    pub width: Option<usize>,
    /// Whether some version of Umami has the table without it: it is written where it is.
    pub optional: bool,
}

impl Column {
    /// A column that every version of its table has.
    pub const fn new(name: &'static str, column_type: ColumnType) -> Self {
        Self { name, column_type, width: None, optional: false }
    }
}

/// How a column's value is written as text, the same from every backend.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ColumnType {
    /// 36 lower-case characters.
    Uuid,
    /// As it is.
    Text,
    /// Decimal.
    Integer,
    /// Milliseconds since 1970.
    Time,
    /// Decimal with this many digits behind the point.
    Decimal(u8),
    /// Hexadecimal.
    Bytes,
}

/// A table whose rows are values of type `R`, inserted column by column.
pub struct RowTable<R: 'static> {
    /// Its description.
    pub table: Table,
    /// Its columns with their values, in the same order.
    pub fields: &'static [Field<R>],
}

/// A column and its value in a row.
pub struct Field<R: 'static> {
    /// The column.
    pub column: Column,
    /// Where a row has its value.
    pub value: Value<R>,
    /// The same text to be changed, of texts that may have to be cut or replaced.
    pub text_mut: Option<fn(&mut R) -> Option<&mut String>>,
}

/// The value of a column in a row, by the type that backends bind it as; null for `None`.
pub enum Value<R: 'static> {
    /// A uuid.
    Uuid(fn(&R) -> Option<Uuid>),
    /// A text.
    Text(fn(&R) -> Option<&str>),
    /// An integer of 32 bits.
    Integer(fn(&R) -> Option<i32>),
    /// An integer of 64 bits: a number, or a time in milliseconds since 1970.
    BigInteger(fn(&R) -> Option<i64>),
    /// An exact decimal.
    Decimal(fn(&R) -> Option<Decimal>),
    /// Bytes.
    Bytes(fn(&R) -> Option<&[u8]>),
    /// The index of this chunk of a recording, which the transaction gives it; see [`crate::chunk_index`].
    ChunkIndex(fn(&R) -> Option<Uuid>),
}

impl<R> Field<R> {
    const fn new(name: &'static str, column_type: ColumnType, value: Value<R>) -> Self {
        Self { column: Column::new(name, column_type), value, text_mut: None }
    }

    pub const fn uuid(name: &'static str, get: fn(&R) -> Option<Uuid>) -> Self {
        Self::new(name, ColumnType::Uuid, Value::Uuid(get))
    }

    /// A text that is stored as it is; see also [`text!`].
    pub const fn text(name: &'static str, get: fn(&R) -> Option<&str>) -> Self {
        Self::new(name, ColumnType::Text, Value::Text(get))
    }

    pub const fn integer(name: &'static str, get: fn(&R) -> Option<i32>) -> Self {
        Self::new(name, ColumnType::Integer, Value::Integer(get))
    }

    pub const fn big_integer(name: &'static str, get: fn(&R) -> Option<i64>) -> Self {
        Self::new(name, ColumnType::Integer, Value::BigInteger(get))
    }

    /// A time in milliseconds since 1970.
    pub const fn time(name: &'static str, get: fn(&R) -> Option<i64>) -> Self {
        Self::new(name, ColumnType::Time, Value::BigInteger(get))
    }

    /// A decimal with `digits` behind the point.
    pub const fn decimal(name: &'static str, digits: u8, get: fn(&R) -> Option<Decimal>) -> Self {
        Self::new(name, ColumnType::Decimal(digits), Value::Decimal(get))
    }

    pub const fn bytes(name: &'static str, get: fn(&R) -> Option<&[u8]>) -> Self {
        Self::new(name, ColumnType::Bytes, Value::Bytes(get))
    }

    /// The index of the chunk with this id.
    pub const fn chunk_index(name: &'static str, chunk_id: fn(&R) -> Option<Uuid>) -> Self {
        Self::new(name, ColumnType::Integer, Value::ChunkIndex(chunk_id))
    }

    /// Holds at most this many characters.
    pub const fn width(mut self, characters: usize) -> Self {
        self.column.width = Some(characters);
        self
    }

    /// Not in every version of Umami's table.
    pub const fn optional(mut self) -> Self {
        self.column.optional = true;
        self
    }

    /// May be changed before it is stored.
    pub const fn changed_by(mut self, text_mut: fn(&mut R) -> Option<&mut String>) -> Self {
        self.text_mut = Some(text_mut);
        self
    }
}

/// A text of a row, null or not.
pub trait TextField {
    fn get(&self) -> Option<&str>;
    fn get_mut(&mut self) -> Option<&mut String>;
}

impl TextField for String {
    fn get(&self) -> Option<&str> {
        Some(self)
    }

    fn get_mut(&mut self) -> Option<&mut String> {
        Some(self)
    }
}

impl TextField for Option<String> {
    fn get(&self) -> Option<&str> {
        self.as_deref()
    }

    fn get_mut(&mut self) -> Option<&mut String> {
        self.as_mut()
    }
}

/// A text column that is a field of the row, a `String` or an `Option<String>`, at most so many characters wide:
/// `text!("utm_source", 255, campaign.utm_source)`.
macro_rules! text {
    ($name:literal, $width:literal, $($field:ident).+) => {
        Field::text($name, |row| $crate::table::TextField::get(&row.$($field).+))
            .changed_by(|row| $crate::table::TextField::get_mut(&mut row.$($field).+))
            .width($width)
    };
}

/// The columns of fields.
pub const fn columns_of<R, const N: usize>(fields: &[Field<R>]) -> [Column; N] {
    let mut columns = [Column::new("", ColumnType::Text); N];
    let mut place = 0;
    while place < N {
        columns[place] = fields[place].column;
        place += 1;
    }
    columns
}

/// `rows! { NAME: Row = Owner, "name", key 1, [fields] }`: a static [`RowTable`].
macro_rules! rows {
    ($(#[$doc:meta])* $id:ident: $row:ty = $owner:ident, $name:literal, key $key:literal, [$($field:expr),+ $(,)?]) => {
        $(#[$doc])*
        pub static $id: $crate::table::RowTable<$row> = {
            // The fields are written as this type's.
            type Field = $crate::table::Field<$row>;
            const FIELDS: &[Field] = &[$($field),+];
            const COLUMNS: [$crate::table::Column; FIELDS.len()] = $crate::table::columns_of(FIELDS);
            $crate::table::RowTable {
                table: $crate::table::Table {
                    name: $name,
                    owner: $crate::table::Owner::$owner,
                    columns: &COLUMNS,
                    key: $key,
                },
                fields: FIELDS,
            }
        };
    };
}

pub(crate) use {rows, text};
