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
