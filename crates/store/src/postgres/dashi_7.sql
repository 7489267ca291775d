-- Dead letters

-- When the log took the record; the session in its envelope; how often it was folded, by which command last and when that
-- was given; when it was discarded; and whether it holds up the later records of its session (1) or waits behind an earlier
-- one (2). Times are milliseconds since 1970. Letters from before this step have neither of the first two.
ALTER TABLE dashi.dead_letter
    ADD COLUMN appended_at bigint,
    ADD COLUMN session_id uuid,
    ADD COLUMN tries integer NOT NULL DEFAULT 1,
    ADD COLUMN tried_by uuid,
    ADD COLUMN tried_at bigint,
    ADD COLUMN discarded_at bigint,
    ADD COLUMN parking integer NOT NULL DEFAULT 0;
CREATE INDEX dead_letter_session_id_idx ON dashi.dead_letter (log_id, partition, session_id, record_offset) WHERE parking > 0;

-- Spools

-- What collectors' spools hold: events that were accepted and that the log does not have yet. A spool that holds nothing
-- has no row. No projection: it is not made of the log, and stays when tables are swapped.
CREATE TABLE dashi.spool (
    spool_id text PRIMARY KEY,
    log_id text NOT NULL,
    collector text NOT NULL,
    directory text NOT NULL,
    state text NOT NULL,
    records bigint NOT NULL,
    bytes bigint NOT NULL,
    set_aside bigint NOT NULL,
    -- Milliseconds since 1970.
    oldest_at bigint,
    full_because text,
    trouble text,
    -- Lines of hour (milliseconds since 1970), website, link or pixel, and number of records.
    hours text NOT NULL,
    noted_at timestamptz NOT NULL DEFAULT clock_timestamp()
);
