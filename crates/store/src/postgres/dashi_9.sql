-- Tails

-- The tail of a partition that has a backlog: from where (inclusive) and to where (exclusive) records are applied before it,
-- and how many of them are that the checkpoint has not passed. NULL: there is none.
ALTER TABLE dashi.checkpoint ADD COLUMN tail_from bigint;
ALTER TABLE dashi.checkpoint ADD COLUMN tail_to bigint;
ALTER TABLE dashi.checkpoint ADD COLUMN tail_applied bigint NOT NULL DEFAULT 0;
-- The fingerprint of the record before its end, if it is known.
ALTER TABLE dashi.checkpoint ADD COLUMN tail_fingerprint bigint;

-- The same for generations that are there: one that is being built goes on, one that is kept can be gone back to.
DO $$
DECLARE
    schema text;
BEGIN
    FOR schema IN SELECT place FROM dashi.generation WHERE state <> 'live' LOOP
        IF to_regclass(format('%I.checkpoint', schema)) IS NOT NULL THEN
            EXECUTE format(
                'ALTER TABLE %I.checkpoint ADD COLUMN tail_from bigint, ADD COLUMN tail_to bigint,
                     ADD COLUMN tail_applied bigint NOT NULL DEFAULT 0, ADD COLUMN tail_fingerprint bigint', schema);
        END IF;
    END LOOP;
END
$$;

-- The sessions that have records in the backlog before the tail, as a filter. It is of use together with the tail alone.
CREATE TABLE dashi.tail_sessions (
    log_id text NOT NULL,
    partition integer NOT NULL,
    sessions bytea NOT NULL,
    PRIMARY KEY (log_id, partition)
);
