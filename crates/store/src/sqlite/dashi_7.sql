-- Generations

-- Every complete projection of the log that is kept or being built, and the live one, which is in this file. Times are
-- milliseconds since 1970.
CREATE TABLE dashi_generation (
    number INTEGER PRIMARY KEY,
    state TEXT NOT NULL CHECK (state IN ('building', 'ready', 'live', 'kept')),
    projection_version INTEGER NOT NULL,
    rules TEXT NOT NULL,
    place TEXT NOT NULL,
    made_at INTEGER NOT NULL,
    live_since INTEGER,
    replayed_per_s INTEGER
);
CREATE UNIQUE INDEX dashi_generation_live_key ON dashi_generation (state) WHERE state = 'live';
CREATE UNIQUE INDEX dashi_generation_building_key ON dashi_generation (state) WHERE state = 'building';

-- Audit

-- Records by the hour in which a collector had them (milliseconds since 1970), their website, link or pixel (nil where
-- the record does not tell) and their outcome. Records that were applied before there was this table are not counted.
CREATE TABLE dashi_hour_count (
    log_id TEXT NOT NULL,
    partition INTEGER NOT NULL,
    hour INTEGER NOT NULL,
    source_id TEXT NOT NULL,
    applied INTEGER NOT NULL,
    duplicate INTEGER NOT NULL,
    dead INTEGER NOT NULL,
    PRIMARY KEY (log_id, partition, hour, source_id)
);

-- Submissions by the run of a collector, the hour and the outcome, as the collectors count them. No projection: it is not
-- made of the log, and stays with the file when tables are swapped.
CREATE TABLE dashi_tally (
    log_id TEXT NOT NULL,
    run_id TEXT NOT NULL,
    hour INTEGER NOT NULL,
    source_id TEXT NOT NULL,
    subject TEXT NOT NULL,
    outcome TEXT NOT NULL,
    collector TEXT NOT NULL,
    count INTEGER NOT NULL,
    noted_at INTEGER NOT NULL,
    PRIMARY KEY (log_id, run_id, hour, source_id, subject, outcome)
);

-- Erasures

-- The erasures of the log: the subject is a distinct id, a session, or "" for a whole website.
CREATE TABLE dashi_erasure (
    erasure_id TEXT PRIMARY KEY,
    website_id TEXT NOT NULL,
    kind TEXT NOT NULL,
    subject TEXT NOT NULL,
    erased_at INTEGER NOT NULL
);

-- Which session made a link of profile_link to an anonymous session: an erasure takes away the links that the erased
-- sessions made. Links that are older than this table have no source.
CREATE TABLE dashi_link_source (
    website_id TEXT NOT NULL,
    by_session TEXT NOT NULL,
    session_id TEXT NOT NULL,
    distinct_id TEXT NOT NULL,
    first_at INTEGER NOT NULL,
    PRIMARY KEY (website_id, by_session, session_id, distinct_id)
);
CREATE INDEX dashi_link_source_session_id_idx ON dashi_link_source (website_id, session_id, distinct_id);

-- The records by which the erasures were applied, one in each partition: what lies before them is covered.
CREATE TABLE dashi_erasure_copy (
    copy_id TEXT PRIMARY KEY,
    erasure_id TEXT NOT NULL,
    log_id TEXT NOT NULL,
    partition INTEGER NOT NULL,
    record_offset INTEGER NOT NULL
);
