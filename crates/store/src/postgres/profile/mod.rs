//! Profiles on PostgreSQL: written in the commit's transaction, read by anybody, and changes notified by NOTIFY.

mod change_feed;
mod read;
mod write;

use dashi_domain::decimal::Decimal;
use dashi_domain::flatten::DataType;
use dashi_domain::profile::{Settled, Stamp, TraitRow};
use dashi_domain::rows::DataValue;
use sqlx::Row as _;
use sqlx::postgres::PgRow;

pub(super) use change_feed::{CHANNEL, ChangeFeed, notify};

const TRAIT_COLUMNS: &str = "r.website_id, r.distinct_id, r.key, r.data_type, r.string_value,
    r.number_value::text, r.date_value, r.last_at, r.last_event_id, r.changed_at, r.changed_event_id,
    r.changed_by, r.conditional";

fn trait_row(row: &PgRow) -> Result<TraitRow, sqlx::Error> {
    Ok(TraitRow {
        website_id: row.try_get("website_id")?,
        distinct_id: row.try_get("distinct_id")?,
        key: row.try_get("key")?,
        settled: Settled {
            value: value(row)?,
            last: stamp(row, "last_at", "last_event_id")?,
            changed: stamp(row, "changed_at", "changed_event_id")?,
            changed_by: row.try_get("changed_by")?,
            conditional: row.try_get::<i32, _>("conditional")? != 0,
        },
    })
}

/// The value in `data_type` and its columns; `number_value` is text. None without a type.
fn value(row: &PgRow) -> Result<Option<DataValue>, sqlx::Error> {
    let Some(code) = row.try_get::<Option<i32>, _>("data_type")? else { return Ok(None) };
    let number: Option<String> = row.try_get("number_value")?;
    Ok(Some(DataValue {
        data_type: DataType::from_code(code)
            .ok_or_else(|| sqlx::Error::Decode(format!("data_type {code}").into()))?,
        string_value: row.try_get("string_value")?,
        number_value: number.and_then(|number| Decimal::parse(&number, 4)),
        date_value_ms: row.try_get("date_value")?,
    }))
}

fn stamp(row: &PgRow, at: &str, id: &str) -> Result<Stamp, sqlx::Error> {
    Ok(Stamp { received_at_ms: row.try_get(at)?, event_id: row.try_get(id)? })
}
