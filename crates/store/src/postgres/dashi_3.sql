-- Whether a live projector has claimed the partition; a replay never writes into such a store. Of rows that are older than
-- this column nobody knows, and a live projection is the one that must not be disturbed.
ALTER TABLE dashi.checkpoint ADD COLUMN live boolean NOT NULL DEFAULT true;

-- What kind of error the last one was, and when it was over; null while it is not.
ALTER TABLE dashi.checkpoint ADD COLUMN last_error_kind text;
ALTER TABLE dashi.checkpoint ADD COLUMN last_error_over_at timestamptz;
