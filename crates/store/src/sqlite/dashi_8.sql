-- Dead letters

-- When the log took the record; the session in its envelope; how often it was folded, by which command last and when that
-- was given; when it was discarded; and whether it holds up the later records of its session (1) or waits behind an earlier
-- one (2). Times are milliseconds since 1970. Letters from before this step have neither of the first two.
ALTER TABLE dashi_dead_letter ADD COLUMN appended_at INTEGER;
ALTER TABLE dashi_dead_letter ADD COLUMN session_id TEXT;
ALTER TABLE dashi_dead_letter ADD COLUMN tries INTEGER NOT NULL DEFAULT 1;
ALTER TABLE dashi_dead_letter ADD COLUMN tried_by TEXT;
ALTER TABLE dashi_dead_letter ADD COLUMN tried_at INTEGER;
ALTER TABLE dashi_dead_letter ADD COLUMN discarded_at INTEGER;
ALTER TABLE dashi_dead_letter ADD COLUMN parking INTEGER NOT NULL DEFAULT 0;
CREATE INDEX dashi_dead_letter_session_id_idx ON dashi_dead_letter (log_id, partition, session_id, record_offset) WHERE parking > 0;

-- Spools

-- What collectors' spools hold: events that were accepted and that the log does not have yet. A spool that holds nothing
-- has no row. No projection: it is not made of the log, and stays when tables are swapped. Times are milliseconds since
-- 1970.
CREATE TABLE dashi_spool (
    spool_id TEXT PRIMARY KEY,
    log_id TEXT NOT NULL,
    collector TEXT NOT NULL,
    directory TEXT NOT NULL,
    state TEXT NOT NULL,
    records INTEGER NOT NULL,
    bytes INTEGER NOT NULL,
    set_aside INTEGER NOT NULL,
    oldest_at INTEGER,
    full_because TEXT,
    trouble TEXT,
    -- Lines of hour, website, link or pixel, and number of records.
    hours TEXT NOT NULL,
    noted_at INTEGER NOT NULL
);
