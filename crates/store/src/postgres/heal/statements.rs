//! The statements of healing. Times are passed as microseconds since 1970.

/// Sessions that have events or properties, and no row. $1 and $2: first and last id, inclusive; $3: a website or null.
///
/// The index on `visit_id` finds the other sessions of a visit.
pub(super) const FIND_SESSIONS: &str = "/* heal_find_sessions */
    WITH of_events AS (
        SELECT e.session_id, min(e.created_at) AS first_at, count(*) AS events,
            (array_agg(e.website_id ORDER BY e.created_at, e.event_id))[1] AS website_id,
            (array_agg(e.visit_id ORDER BY e.created_at, e.event_id))[1] AS visit_id
        FROM website_event AS e
        WHERE e.session_id BETWEEN $1 AND $2 AND ($3::uuid IS NULL OR e.website_id = $3)
            AND NOT EXISTS (SELECT 1 FROM session AS s WHERE s.session_id = e.session_id)
        GROUP BY e.session_id
    ), of_properties AS (
        SELECT p.session_id, min(p.created_at) AS first_at, count(*) AS properties,
            (array_agg(p.website_id ORDER BY p.created_at, p.session_data_id))[1] AS website_id,
            (array_agg(p.distinct_id ORDER BY p.created_at DESC, p.session_data_id)
                FILTER (WHERE p.distinct_id <> ''))[1] AS distinct_id
        FROM session_data AS p
        WHERE p.session_id BETWEEN $1 AND $2 AND ($3::uuid IS NULL OR p.website_id = $3)
            AND NOT EXISTS (SELECT 1 FROM session AS s WHERE s.session_id = p.session_id)
        GROUP BY p.session_id
    ), orphan AS (
        SELECT session_id, coalesce(e.website_id, p.website_id) AS website_id, e.visit_id,
            least(e.first_at, p.first_at) AS first_at, coalesce(e.events, 0) AS events,
            coalesce(p.properties, 0) AS properties, p.distinct_id
        FROM of_events AS e FULL JOIN of_properties AS p USING (session_id)
    )
    SELECT o.session_id, o.website_id, o.events, o.properties, o.distinct_id::text AS distinct_id,
        (extract(epoch FROM o.first_at) * 1000000)::bigint AS first_us,
        sibling.session_id AS sibling_id, sibling.website_id AS sibling_website_id,
        sibling.distinct_id::text AS sibling_distinct_id,
        (extract(epoch FROM sibling.event_at) * 1000000)::bigint AS sibling_us,
        w.website_id IS NOT NULL AS website_found, w.deleted_at IS NOT NULL AS website_deleted,
        w.reset_at IS NOT NULL AS website_reset
    FROM orphan AS o
    LEFT JOIN website AS w ON w.website_id = o.website_id
    LEFT JOIN LATERAL (
        SELECT s.session_id, s.website_id, s.distinct_id, other.created_at AS event_at
        FROM website_event AS other JOIN session AS s ON s.session_id = other.session_id
        WHERE other.visit_id = o.visit_id AND other.session_id <> o.session_id
        ORDER BY other.website_id <> o.website_id, abs(extract(epoch FROM other.created_at - o.first_at)), s.session_id
        LIMIT 1
    ) AS sibling ON true
    ORDER BY o.session_id";

/// Inserts the rows of sessions, with the attributes of the visit's other session that hold for them. Arrays of one
/// length: sessions, websites, times, distinct ids, other sessions, and whether the place holds, too. Returns the rows
/// that were inserted.
pub(super) const INSERT_SESSIONS: &str = "/* heal_insert_sessions */
    INSERT INTO session AS inserted (session_id, website_id, browser, os, device, screen, language, country, region, city,
        distinct_id, created_at)
    SELECT o.session_id, o.website_id, s.browser, s.os, s.device, s.screen, s.language,
        CASE WHEN o.keeps_place THEN s.country END, CASE WHEN o.keeps_place THEN s.region END,
        CASE WHEN o.keeps_place THEN s.city END, o.distinct_id,
        timestamptz 'epoch' + o.first_us * interval '1 microsecond'
    FROM unnest($1::uuid[], $2::uuid[], $3::bigint[], $4::text[], $5::uuid[], $6::boolean[])
        AS o (session_id, website_id, first_us, distinct_id, sibling_id, keeps_place)
    LEFT JOIN session AS s ON s.session_id = o.sibling_id
    ON CONFLICT DO NOTHING
    RETURNING to_jsonb(inserted)::text";

/// Rows of `session_data` of a session and key that has a newer one. $1 and $2: first and last session id, inclusive.
pub(super) const FIND_DOUBLED: &str = "/* heal_find_doubled */
    SELECT session_data_id, session_id, data_key::text FROM (
        SELECT session_data_id, session_id, data_key, row_number() OVER (
            PARTITION BY session_id, data_key ORDER BY created_at DESC NULLS LAST, session_data_id DESC
        ) AS place
        FROM session_data WHERE session_id BETWEEN $1 AND $2 AND ($3::uuid IS NULL OR website_id = $3)
    ) AS p WHERE place > 1
    ORDER BY session_id, data_key, session_data_id";

/// Deletes such rows as long as there is a newer one. $1: the rows, $2: their sessions.
pub(super) const DELETE_DOUBLED: &str = "/* heal_delete_doubled */
    DELETE FROM session_data AS p
    USING unnest($1::uuid[], $2::uuid[]) AS d (session_data_id, session_id)
    WHERE p.session_data_id = d.session_data_id AND p.session_id = d.session_id
        AND EXISTS (
            SELECT 1 FROM session_data AS newer
            WHERE newer.session_id = p.session_id AND newer.data_key = p.data_key
                AND newer.session_data_id <> ALL ($1)
        )
    RETURNING to_jsonb(p)::text";

/// First and last time in `event_data`.
pub(super) const EVENT_DATA_SPAN: &str = "/* heal_event_data_span */
    SELECT (extract(epoch FROM min(created_at)) * 1000000)::bigint,
        (extract(epoch FROM max(created_at)) * 1000000)::bigint
    FROM event_data";

/// Named events with an amount above 0 and a currency in their data, and without a row in `revenue`: Umami writes it
/// last. Amounts are numbers, or texts of plain decimal numbers. $1 and $2: first and last time, inclusive.
pub(super) const FIND_REVENUE: &str = "/* heal_find_revenue */
    SELECT DISTINCT ON (e.event_id) e.event_id, coalesce(amount.number_value::text, trim(amount.string_value)),
        left(currency.string_value, 10)
    FROM event_data AS amount
    JOIN event_data AS currency ON currency.website_event_id = amount.website_event_id
        AND currency.data_key = 'currency' AND currency.data_type = 1 AND currency.string_value <> ''
    JOIN website_event AS e ON e.event_id = amount.website_event_id AND e.event_name IS NOT NULL
    WHERE amount.created_at BETWEEN timestamptz 'epoch' + $1 * interval '1 microsecond'
            AND timestamptz 'epoch' + $2 * interval '1 microsecond'
        AND ($3::uuid IS NULL OR amount.website_id = $3)
        AND amount.data_key = 'revenue'
        AND CASE amount.data_type
            WHEN 2 THEN amount.number_value > 0
            WHEN 1 THEN CASE WHEN trim(amount.string_value) ~ '^[0-9]{1,15}([.][0-9]{1,15})?$'
                THEN trim(amount.string_value)::numeric > 0 ELSE false END
            ELSE false
        END
        AND NOT EXISTS (SELECT 1 FROM revenue AS r WHERE r.event_id = e.event_id)
    ORDER BY e.event_id, amount.event_data_id, currency.event_data_id";

/// Inserts rows of `revenue` for events that have none. Arrays of one length: events, ids, amounts, currencies.
pub(super) const INSERT_REVENUE: &str = "/* heal_insert_revenue */
    INSERT INTO revenue AS inserted (revenue_id, website_id, session_id, event_id, event_name, currency, revenue, created_at)
    SELECT h.revenue_id, e.website_id, e.session_id, e.event_id, e.event_name, h.currency, h.amount::numeric,
        e.created_at
    FROM unnest($1::uuid[], $2::uuid[], $3::text[], $4::text[]) AS h (event_id, revenue_id, amount, currency)
    JOIN website_event AS e ON e.event_id = h.event_id
    WHERE NOT EXISTS (SELECT 1 FROM revenue AS r WHERE r.event_id = h.event_id)
    ON CONFLICT DO NOTHING
    RETURNING to_jsonb(inserted)::text";

/// The number of rows of `event_data` without an event, and some of those events' ids. $4: how many ids.
pub(super) const FIND_STRAYS: &str = "/* heal_find_strays */
    SELECT count(*), coalesce((array_agg(DISTINCT d.website_event_id))[1:$4], '{}')
    FROM event_data AS d
    WHERE d.created_at BETWEEN timestamptz 'epoch' + $1 * interval '1 microsecond'
            AND timestamptz 'epoch' + $2 * interval '1 microsecond'
        AND ($3::uuid IS NULL OR d.website_id = $3)
        AND NOT EXISTS (SELECT 1 FROM website_event AS e WHERE e.event_id = d.website_event_id)";

/// Deletes the session's row if it is as it was inserted.
pub(super) const UNDO_SESSION: &str = "/* heal_undo_session */
    DELETE FROM session AS s USING (SELECT $1::text::jsonb AS row) AS was
    WHERE s.session_id = (was.row ->> 'session_id')::uuid
        AND to_jsonb(s) = to_jsonb(jsonb_populate_record(NULL::session, was.row))";

/// Inserts the property's row again if no row has its key.
pub(super) const UNDO_PROPERTY: &str = "/* heal_undo_property */
    INSERT INTO session_data SELECT * FROM jsonb_populate_record(NULL::session_data, $1::text::jsonb)
    ON CONFLICT DO NOTHING";

/// Deletes the row of revenue if it is as it was inserted.
pub(super) const UNDO_REVENUE: &str = "/* heal_undo_revenue */
    DELETE FROM revenue AS r USING (SELECT $1::text::jsonb AS row) AS was
    WHERE r.revenue_id = (was.row ->> 'revenue_id')::uuid
        AND to_jsonb(r) = to_jsonb(jsonb_populate_record(NULL::revenue, was.row))";
