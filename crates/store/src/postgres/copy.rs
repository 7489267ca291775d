//! Rows by `COPY` in PostgreSQL's binary format, which costs the server half as much as `INSERT`. It has no `ON CONFLICT`:
//! where a row is there already, or is refused for another reason, the transaction fails, and the same rows go by
//! `INSERT`, which decides about each.
//!
//! Source: PostgreSQL's documentation, "COPY", "Binary Format", and the `_recv` functions of its types.

use std::borrow::Borrow;

use dashi_domain::decimal::Decimal;

use super::catalogue::Catalogue;
use super::insert::{insert, name_of};
use super::pool::{COPY_PIECE, Session, quoted};
use crate::table::{ColumnType, Field, RowTable, Value};
use crate::tables;

/// How rows get into their tables.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Way {
    /// By `INSERT`, which leaves out rows that are there.
    Insert,
    /// By `COPY`, which fails where one is there.
    Copy,
}

/// Fewer rows go by `INSERT`: a `COPY` takes two answers of the server.
pub(super) const ROWS_MIN: usize = 256;

/// Writes rows by `COPY`, or few ones by an `INSERT` that fails alike; returns how many.
pub(super) async fn copy<R, B: Borrow<R> + Sync>(
    connection: &mut Session,
    table: &RowTable<R>,
    catalogue: &Catalogue,
    rows: &[B],
) -> Result<u64, sqlx::Error> {
    if rows.len() < ROWS_MIN {
        return insert(connection, table, Some(catalogue), "insert_few", rows, "").await;
    }
    let is_there = |field: &&Field<R>| {
        !field.column.optional || catalogue.has_column(table.table.name, field.column.name)
    };
    let fields: Vec<&Field<R>> = table.fields.iter().filter(is_there).collect();
    let columns: Vec<&str> = fields.iter().map(|field| field.column.name).collect();
    let name = match connection.generation_schema() {
        Some(schema) => format!("{}.{}", quoted(schema), table.table.name),
        None => name_of(&table.table),
    };
    let statement = format!("COPY {name} ({}) FROM STDIN (FORMAT binary)", columns.join(", "));
    let mut rest = rows.iter();
    let mut is_first = true;
    let fill = |out: &mut Vec<u8>| {
        if std::mem::take(&mut is_first) {
            out.extend_from_slice(HEADER);
        }
        while out.len() < COPY_PIECE {
            let Some(row) = rest.next() else {
                out.extend(TRAILER);
                return Ok(false);
            };
            put_row(out, &fields, row.borrow())?;
        }
        Ok(true)
    };
    connection.copy_in(&statement, fill).await
}

/// Before all rows.
const HEADER: &[u8] = b"PGCOPY\n\xff\r\n\0\0\0\0\0\0\0\0\0";

/// Behind all rows.
const TRAILER: [u8; 2] = (-1_i16).to_be_bytes();

/// A row in binary format.
///
/// # Errors
/// A value that the format cannot express, in words.
fn put_row<R>(out: &mut Vec<u8>, fields: &[&Field<R>], row: &R) -> Result<(), String> {
    out.extend((fields.len() as i16).to_be_bytes());
    for field in fields {
        put_field(out, field, row)?;
    }
    Ok(())
}

fn put_field<R>(out: &mut Vec<u8>, field: &Field<R>, row: &R) -> Result<(), String> {
    let is_time = field.column.column_type == ColumnType::Time;
    match field.value {
        Value::Uuid(get) => put(out, get(row).as_ref().map(|id| &id.as_bytes()[..])),
        Value::Text(get) => put(out, get(row).map(str::as_bytes)),
        Value::Bytes(get) => put(out, get(row)),
        Value::Integer(get) => put(out, get(row).map(i32::to_be_bytes).as_ref().map(|bytes| &bytes[..])),
        Value::BigInteger(get) => {
            let number = match get(row) {
                Some(ms) if is_time => Some(micros(ms).ok_or_else(|| format!("{ms} ms are no time"))?),
                number => number,
            };
            put(out, number.map(i64::to_be_bytes).as_ref().map(|bytes| &bytes[..]))
        }
        Value::Decimal(get) => put(out, get(row).map(numeric).as_deref()),
        Value::ChunkIndex(_) => {
            Err(format!("{} is numbered by the transaction, not by its row", field.column.name))
        }
    }
}

/// A value with its length; null is the length -1.
fn put(out: &mut Vec<u8>, value: Option<&[u8]>) -> Result<(), String> {
    let Some(value) = value else {
        out.extend((-1_i32).to_be_bytes());
        return Ok(());
    };
    let length = i32::try_from(value.len()).map_err(|_| format!("{} bytes are too many", value.len()))?;
    out.extend(length.to_be_bytes());
    out.extend_from_slice(value);
    Ok(())
}

/// A `timestamptz`: microseconds since 2000, of milliseconds since 1970.
fn micros(ms: i64) -> Option<i64> {
    const EPOCH_MS: i64 = 946_684_800_000;
    ms.checked_sub(EPOCH_MS)?.checked_mul(1_000)
}

/// A `numeric`: count of digits, weight of the first one, sign, decimal digits that are shown behind the point, and the
/// digits, each of four decimal ones, the highest first.
fn numeric(number: Decimal) -> Vec<u8> {
    const BASE: u128 = 10_000;
    const NEGATIVE: u16 = 0x4000;
    let scale = u32::from(number.scale());
    let behind_point = scale.div_ceil(4);
    let mut rest = number.units().unsigned_abs() * 10_u128.pow(behind_point * 4 - scale);
    // The lowest first.
    let mut digits: Vec<u16> = Vec::new();
    while rest > 0 {
        digits.push((rest % BASE) as u16);
        rest /= BASE;
    }
    let weight = digits.len() as i32 - behind_point as i32 - 1;
    let trailing = digits.iter().take_while(|digit| **digit == 0).count();
    let digits = &digits[trailing..];
    let weight = if digits.is_empty() { 0 } else { weight };
    let sign = if number.units() < 0 { NEGATIVE } else { 0 };
    let mut out = Vec::with_capacity(8 + 2 * digits.len());
    out.extend((digits.len() as u16).to_be_bytes());
    out.extend((weight as i16).to_be_bytes());
    out.extend(sign.to_be_bytes());
    out.extend((scale as u16).to_be_bytes());
    out.extend(digits.iter().rev().flat_map(|digit| digit.to_be_bytes()));
    out
}

/// The types in whose binary format the values of a column are.
fn types<R>(field: &Field<R>) -> &'static [&'static str] {
    match (&field.value, field.column.column_type) {
        (Value::Uuid(_), _) => &["uuid"],
        (Value::Text(_), _) => &["text", "character varying", "character"],
        (Value::Integer(_) | Value::ChunkIndex(_), _) => &["integer"],
        (Value::BigInteger(_), ColumnType::Time) => &["timestamp with time zone"],
        (Value::BigInteger(_), _) => &["bigint"],
        (Value::Decimal(_), _) => &["numeric"],
        (Value::Bytes(_), _) => &["bytea"],
    }
}

fn columns<R>(table: &RowTable<R>) -> Vec<(String, &'static str, &'static [&'static str])> {
    let name = name_of(&table.table);
    table.fields.iter().map(|field| (name.clone(), field.column.name, types(field))).collect()
}

/// Whether the columns of all tables that are written by [`copy`] have the types of its binary format, as far as they are
/// there, and no table has rules or row security, which `COPY` passes by or does not allow.
pub(super) async fn can_copy(connection: &mut Session) -> Result<bool, sqlx::Error> {
    let written: Vec<_> = columns(&tables::SESSION)
        .into_iter()
        .chain(columns(&tables::WEBSITE_EVENT))
        .chain(columns(&tables::EVENT_DATA))
        .chain(columns(&tables::SESSION_DATA))
        .chain(columns(&tables::REVENUE))
        .chain(columns(&tables::IDENTIFY))
        .collect();
    let schema = connection.generation_schema().map(quoted);
    let place = |table: &str| match &schema {
        Some(schema) => format!("{schema}.{}", table.trim_start_matches("dashi.")),
        None => table.to_owned(),
    };
    let (tables, names): (Vec<String>, Vec<&str>) =
        written.iter().map(|(table, column, _)| (place(table), *column)).unzip();
    let types: Vec<String> = written.iter().map(|(.., types)| types.join(",")).collect();
    sqlx::query_scalar(
        "/* catalogue */
         SELECT NOT EXISTS (
             SELECT 1 FROM unnest($1::text[], $2::text[], $3::text[]) AS t (place, name, types)
             JOIN pg_catalog.pg_class AS c ON c.oid = to_regclass(t.place)
             JOIN pg_catalog.pg_attribute AS a ON a.attrelid = c.oid AND a.attname = t.name
             WHERE NOT a.attisdropped AND (c.relrowsecurity OR c.relhasrules
                 OR format_type(a.atttypid, NULL) <> ALL (string_to_array(t.types, ','))))",
    )
    .bind(tables)
    .bind(names)
    .bind(types)
    .fetch_one(connection)
    .await
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The digits of a number in binary format, read as PostgreSQL reads them.
    fn read(bytes: &[u8]) -> String {
        let at = |place: usize| i16::from_be_bytes([bytes[2 * place], bytes[2 * place + 1]]);
        let (count, weight, sign, scale) = (at(0), at(1), at(2), at(3));
        assert_eq!(bytes.len(), 8 + 2 * count as usize);
        let digit = |power: i16| {
            let place = weight - power;
            if (0..count).contains(&place) { at(4 + place as usize) } else { 0 }
        };
        let integer: String = (0..=weight.max(0)).rev().map(|power| format!("{:04}", digit(power))).collect();
        let integer = integer.trim_start_matches('0');
        let behind: String = (1..=5).map(|power| format!("{:04}", digit(-power))).collect();
        let (shown, cut) = behind.split_at(scale as usize);
        assert!(cut.bytes().all(|digit| digit == b'0'), "{behind} has more than {scale} digits");
        let sign = if sign == 0x4000 { "-" } else { "" };
        let point = if scale == 0 { "" } else { "." };
        format!("{sign}{}{point}{shown}", if integer.is_empty() { "0" } else { integer })
    }

    #[test]
    fn numbers_have_the_digits_of_their_text() {
        let texts = [
            "0",
            "1",
            "-1",
            "9999",
            "10000",
            "10000.5",
            "0.0001",
            "-0.00019",
            "1234567.89",
            "100000000",
            "99999999999999.9999",
            "-0.5",
            "12.34",
            "0.1",
            "5000.0001",
        ];
        for text in texts {
            for scale in [0, 1, 4, 5, 18] {
                let number = Decimal::parse(text, scale).unwrap();
                assert_eq!(read(&numeric(number)), number.to_string(), "{text} with {scale} digits");
            }
        }
    }

    #[test]
    fn times_are_counted_from_2000() {
        assert_eq!(micros(946_684_800_000), Some(0));
        assert_eq!(micros(946_684_799_999), Some(-1_000));
        assert_eq!(micros(0), Some(-946_684_800_000_000));
        assert_eq!([micros(i64::MIN), micros(i64::MAX)], [None, None]);
    }
}
