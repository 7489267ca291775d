-- Offsets that the checkpoint passed without a record: records that are missing, markers of transactions; and those that it
-- went back over, because the log ended before it. checkpoint = applied + duplicate + dead + missing + markers - rewound.
ALTER TABLE dashi.checkpoint ADD COLUMN missing bigint NOT NULL DEFAULT 0;
ALTER TABLE dashi.checkpoint ADD COLUMN markers bigint NOT NULL DEFAULT 0;
ALTER TABLE dashi.checkpoint ADD COLUMN rewound bigint NOT NULL DEFAULT 0;

-- Tells the last record before the checkpoint from another one at its offset; null where that is not known. An older copy
-- of a log that has grown again is recognised by it.
ALTER TABLE dashi.checkpoint ADD COLUMN fingerprint bigint;

-- Where records are missing, in bounded detail: a range may stand for several, and then holds records, too.
CREATE TABLE dashi.missing (
    log_id text NOT NULL,
    partition integer NOT NULL,
    number integer NOT NULL,
    start_offset bigint NOT NULL,
    end_offset bigint NOT NULL,
    records bigint NOT NULL,
    cause text NOT NULL,
    noted_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    PRIMARY KEY (log_id, partition, number)
);
