-- Tails

-- The tail of a partition that has a backlog: from where (inclusive) and to where (exclusive) records are applied before it,
-- and how many of them are that the checkpoint has not passed. NULL: there is none.
ALTER TABLE dashi_checkpoint ADD COLUMN tail_from INTEGER;
ALTER TABLE dashi_checkpoint ADD COLUMN tail_to INTEGER;
ALTER TABLE dashi_checkpoint ADD COLUMN tail_applied INTEGER NOT NULL DEFAULT 0;
-- The fingerprint of the record before its end, if it is known.
ALTER TABLE dashi_checkpoint ADD COLUMN tail_fingerprint INTEGER;

-- The sessions that have records in the backlog before the tail, as a filter. It is of use together with the tail alone.
CREATE TABLE dashi_tail_sessions (
    log_id TEXT NOT NULL,
    partition INTEGER NOT NULL,
    sessions BLOB NOT NULL,
    PRIMARY KEY (log_id, partition)
) WITHOUT ROWID;
