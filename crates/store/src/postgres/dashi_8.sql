-- Layouts

-- The last barrier that the partition's writer has passed: its version, 0 for none, and the numbers of partitions before and
-- behind it.
ALTER TABLE dashi.checkpoint ADD COLUMN layout_version integer NOT NULL DEFAULT 0;
ALTER TABLE dashi.checkpoint ADD COLUMN layout_from integer NOT NULL DEFAULT 0;
ALTER TABLE dashi.checkpoint ADD COLUMN layout_to integer NOT NULL DEFAULT 0;

-- The numbers of partitions over which collectors spread the records of a log on Kafka. No projection: collectors read it
-- before they write the log, and it stays when tables are swapped.
CREATE TABLE dashi.layout (
    log_id text NOT NULL,
    version integer NOT NULL,
    partitions integer NOT NULL,
    state text NOT NULL CHECK (state IN ('draining', 'committed', 'open', 'aborted')),
    changed_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    -- A growth that is draining may be aborted by anybody from then on.
    expires_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    PRIMARY KEY (log_id, version)
);
CREATE UNIQUE INDEX layout_pending_key ON dashi.layout (log_id) WHERE state IN ('draining', 'committed');

-- The processes that append to a log on Kafka, and the version of the layout that each has acknowledged. One that keeps to
-- a lease appends nothing when it has not read the layout for some seconds.
CREATE TABLE dashi.appender (
    run_id uuid PRIMARY KEY,
    log_id text NOT NULL,
    name text NOT NULL,
    place text NOT NULL,
    keeps_lease boolean NOT NULL,
    acknowledged integer NOT NULL,
    seen_at timestamptz NOT NULL DEFAULT clock_timestamp()
);
CREATE INDEX appender_log_id_idx ON dashi.appender (log_id);
