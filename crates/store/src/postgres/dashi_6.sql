-- Generations

-- Every complete projection of the log that is kept or being built, and the live one. The place is a schema: of the live
-- one that of Umami's tables.
CREATE TABLE dashi.generation (
    number integer PRIMARY KEY,
    state text NOT NULL CHECK (state IN ('building', 'ready', 'live', 'kept')),
    projection_version integer NOT NULL,
    rules text NOT NULL,
    place text NOT NULL,
    made_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    live_since timestamptz,
    replayed_per_s bigint
);
CREATE UNIQUE INDEX generation_live_key ON dashi.generation (state) WHERE state = 'live';
CREATE UNIQUE INDEX generation_building_key ON dashi.generation (state) WHERE state = 'building';

-- Audit

-- Records by the hour in which a collector had them (milliseconds since 1970), their website, link or pixel (nil where
-- the record does not tell) and their outcome. Records that were applied before there was this table are not counted.
CREATE TABLE dashi.hour_count (
    log_id text NOT NULL,
    partition integer NOT NULL,
    hour bigint NOT NULL,
    source_id uuid NOT NULL,
    applied bigint NOT NULL,
    duplicate bigint NOT NULL,
    dead bigint NOT NULL,
    PRIMARY KEY (log_id, partition, hour, source_id)
);

-- Submissions by the run of a collector, the hour and the outcome, as the collectors count them. No projection: it is not
-- made of the log, and stays with the database when tables are swapped.
CREATE TABLE dashi.tally (
    log_id text NOT NULL,
    run_id uuid NOT NULL,
    hour bigint NOT NULL,
    source_id uuid NOT NULL,
    subject text NOT NULL,
    outcome text NOT NULL,
    collector text NOT NULL,
    count bigint NOT NULL,
    noted_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    PRIMARY KEY (log_id, run_id, hour, source_id, subject, outcome)
);

-- Erasures

-- The erasures of the log: the subject is a distinct id, a session, or "" for a whole website.
CREATE TABLE dashi.erasure (
    erasure_id uuid PRIMARY KEY,
    website_id uuid NOT NULL,
    kind text NOT NULL,
    subject text NOT NULL COLLATE "C",
    erased_at bigint NOT NULL
);

-- Which session made a link of profile_link to an anonymous session: an erasure takes away the links that the erased
-- sessions made. Links that are older than this table have no source.
CREATE TABLE dashi.link_source (
    website_id uuid NOT NULL,
    by_session uuid NOT NULL,
    session_id uuid NOT NULL,
    distinct_id text NOT NULL COLLATE "C",
    first_at bigint NOT NULL,
    PRIMARY KEY (website_id, by_session, session_id, distinct_id)
);
CREATE INDEX link_source_session_id_idx ON dashi.link_source (website_id, session_id, distinct_id);

-- The records by which the erasures were applied, one in each partition: what lies before them is covered.
CREATE TABLE dashi.erasure_copy (
    copy_id uuid PRIMARY KEY,
    erasure_id uuid NOT NULL,
    log_id text NOT NULL,
    partition integer NOT NULL,
    record_offset bigint NOT NULL
);
