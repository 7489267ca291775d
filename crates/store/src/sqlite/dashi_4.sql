-- Whether a live projector has claimed the partition; a replay never writes into such a store. Of rows that are older than
-- this column nobody knows, and a live projection is the one that must not be disturbed.
ALTER TABLE dashi_checkpoint ADD COLUMN live INTEGER NOT NULL DEFAULT 1;

-- What kind of error the last one was, and when it was over; null while it is not.
ALTER TABLE dashi_checkpoint ADD COLUMN last_error_kind TEXT;
ALTER TABLE dashi_checkpoint ADD COLUMN last_error_over_at INTEGER;
