//! Rows of events: the events themselves, identifies, records that leave no other row, and the leaves of data and revenue.

use dashi_domain::rows::{AppliedRow, EventDataRow, EventRow, IdentifyRow, RevenueRow};

use crate::postgres::catalogue::Catalogue;
use crate::postgres::copy::{Way, copy};
use crate::postgres::insert::{ChunkIndexes, bind, insert, insert_sql};
use crate::postgres::pool::Session;
use crate::tables;

/// Leaves out events that are applied already, in this table or as an identify: an id is one event, whichever its type.
/// Of two partitions that commit an event and an identify of one id in the same moment neither sees the other's row,
/// and both are applied; that takes one client id for two things of different visitors. Two events, or two identifies,
/// are kept apart by the table's key.
pub(super) async fn insert_events(
    connection: &mut Session,
    rows: &[EventRow],
    catalogue: &Catalogue,
) -> Result<u64, sqlx::Error> {
    if rows.is_empty() {
        return Ok(0);
    }
    let sql = insert_sql(
        &tables::WEBSITE_EVENT,
        "insert_events",
        Some(catalogue),
        "WHERE NOT EXISTS (SELECT 1 FROM dashi.identify AS i WHERE i.event_id = t.event_id)
         ON CONFLICT (event_id) DO NOTHING",
    );
    let query = bind(&tables::WEBSITE_EVENT, sql, rows, &ChunkIndexes::new());
    Ok(query.execute(connection).await?.rows_affected())
}

pub(super) async fn insert_identifies(
    connection: &mut Session,
    rows: &[IdentifyRow],
) -> Result<u64, sqlx::Error> {
    // Not by a join: before its first statistics PostgreSQL takes `website_event`, whose columns are wide, for a table of
    // one row, and would read all of it. The first parameter are the ids.
    let rest = "WHERE t.event_id <> ALL (ARRAY(SELECT e.event_id FROM website_event AS e WHERE e.event_id = ANY ($1)))
         ON CONFLICT (event_id) DO NOTHING";
    insert(connection, &tables::IDENTIFY, None, "insert_identifies", rows, rest).await
}

/// Writes events and identifies by `COPY`. Their keys keep apart events, and identifies; an event and an identify of one id
/// are looked for before. Returns how many
/// were written: none if there is one.
pub(super) async fn copy_events(
    connection: &mut Session,
    events: &[EventRow],
    identifies: &[IdentifyRow],
    catalogue: &Catalogue,
) -> Result<u64, sqlx::Error> {
    let is_elsewhere: bool = sqlx::query_scalar(
        "/* applied_as_another_type */
         SELECT EXISTS (SELECT 1 FROM unnest($1::uuid[]) AS t (id) JOIN dashi.identify AS i ON i.event_id = t.id)
             OR EXISTS (SELECT 1 FROM website_event AS e WHERE e.event_id = ANY ($2))",
    )
    .bind(column!(events, row => row.event_id))
    .bind(column!(identifies, row => row.event_id))
    .fetch_one(&mut *connection)
    .await?;
    if is_elsewhere {
        return Ok(0);
    }
    Ok(copy(connection, &tables::WEBSITE_EVENT, catalogue, events).await?
        + copy(connection, &tables::IDENTIFY, catalogue, identifies).await?)
}

pub(super) async fn insert_applied(
    connection: &mut Session,
    rows: &[AppliedRow],
) -> Result<u64, sqlx::Error> {
    let rest = "ON CONFLICT (record_id) DO NOTHING";
    insert(connection, &tables::APPLIED, None, "insert_applied", rows, rest).await
}

pub(super) async fn insert_event_data(
    connection: &mut Session,
    rows: &[EventDataRow],
    catalogue: &Catalogue,
    way: Way,
) -> Result<(), sqlx::Error> {
    if way == Way::Copy {
        copy(connection, &tables::EVENT_DATA, catalogue, rows).await?;
        return Ok(());
    }
    let rest = "ON CONFLICT (event_data_id) DO NOTHING";
    insert(connection, &tables::EVENT_DATA, Some(catalogue), "insert_event_data", rows, rest).await?;
    Ok(())
}

pub(super) async fn insert_revenue(
    connection: &mut Session,
    rows: &[RevenueRow],
    catalogue: &Catalogue,
    way: Way,
) -> Result<(), sqlx::Error> {
    if way == Way::Copy {
        copy(connection, &tables::REVENUE, catalogue, rows).await?;
        return Ok(());
    }
    let rest = "ON CONFLICT (revenue_id) DO NOTHING";
    insert(connection, &tables::REVENUE, Some(catalogue), "insert_revenue", rows, rest).await?;
    Ok(())
}
