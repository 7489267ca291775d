-- Offsets that the checkpoint passed without a record: records that are missing, markers of transactions; and those that it
-- went back over, because the log ended before it. checkpoint = applied + duplicate + dead + missing + markers - rewound.
ALTER TABLE dashi_checkpoint ADD COLUMN missing INTEGER NOT NULL DEFAULT 0;
ALTER TABLE dashi_checkpoint ADD COLUMN markers INTEGER NOT NULL DEFAULT 0;
ALTER TABLE dashi_checkpoint ADD COLUMN rewound INTEGER NOT NULL DEFAULT 0;

-- Tells the last record before the checkpoint from another one at its offset; null where that is not known. An older copy
-- of a log that has grown again is recognised by it.
ALTER TABLE dashi_checkpoint ADD COLUMN fingerprint INTEGER;

-- Where records are missing, in bounded detail: a range may stand for several, and then holds records, too.
CREATE TABLE dashi_missing (
    log_id TEXT NOT NULL,
    partition INTEGER NOT NULL,
    number INTEGER NOT NULL,
    start_offset INTEGER NOT NULL,
    end_offset INTEGER NOT NULL,
    records INTEGER NOT NULL,
    cause TEXT NOT NULL,
    noted_at INTEGER NOT NULL,
    PRIMARY KEY (log_id, partition, number)
);
