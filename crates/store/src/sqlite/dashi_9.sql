-- Layouts

-- The last barrier that the partition's writer has passed: its version, 0 for none, and the numbers of partitions before and
-- behind it.
ALTER TABLE dashi_checkpoint ADD COLUMN layout_version INTEGER NOT NULL DEFAULT 0;
ALTER TABLE dashi_checkpoint ADD COLUMN layout_from INTEGER NOT NULL DEFAULT 0;
ALTER TABLE dashi_checkpoint ADD COLUMN layout_to INTEGER NOT NULL DEFAULT 0;

-- The numbers of partitions over which collectors spread the records of a log on Kafka. No projection: collectors read it
-- before they write the log, and it stays when tables are swapped. Times are milliseconds since 1970.
CREATE TABLE dashi_layout (
    log_id TEXT NOT NULL,
    version INTEGER NOT NULL,
    partitions INTEGER NOT NULL,
    state TEXT NOT NULL CHECK (state IN ('draining', 'committed', 'open', 'aborted')),
    changed_at INTEGER NOT NULL,
    -- A growth that is draining may be aborted by anybody from then on.
    expires_at INTEGER NOT NULL,
    PRIMARY KEY (log_id, version)
);
CREATE UNIQUE INDEX dashi_layout_pending_key ON dashi_layout (log_id) WHERE state IN ('draining', 'committed');

-- The processes that append to a log on Kafka, and the version of the layout that each has acknowledged. One that keeps to
-- a lease appends nothing when it has not read the layout for some seconds.
CREATE TABLE dashi_appender (
    run_id TEXT PRIMARY KEY,
    log_id TEXT NOT NULL,
    name TEXT NOT NULL,
    place TEXT NOT NULL,
    keeps_lease INTEGER NOT NULL,
    acknowledged INTEGER NOT NULL,
    seen_at INTEGER NOT NULL
);
CREATE INDEX dashi_appender_log_id_idx ON dashi_appender (log_id);
