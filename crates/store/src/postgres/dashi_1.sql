CREATE TABLE dashi.migration (
    version bigint PRIMARY KEY,
    applied_at timestamptz NOT NULL DEFAULT clock_timestamp()
);

-- Milliseconds since 1970 as a time, exactly. PostgreSQL multiplies an interval by a float, which has too few digits for
-- all of a distant time's microseconds: so hours go by themselves, whose microseconds are multiples of 2^10.
CREATE FUNCTION dashi.at_ms(ms bigint) RETURNS timestamptz LANGUAGE sql STABLE PARALLEL SAFE
AS $$ SELECT timestamptz 'epoch' + ms / 3600000 * interval '1 hour' + ms % 3600000 * interval '1 millisecond' $$;

-- One row per partition of a log: who may write (epoch), where the projection stands, what became of the records.
CREATE TABLE dashi.checkpoint (
    log_id text NOT NULL,
    partition integer NOT NULL,
    checkpoint bigint NOT NULL,
    epoch bigint NOT NULL,
    owner text NOT NULL,
    applied bigint NOT NULL DEFAULT 0,
    duplicate bigint NOT NULL DEFAULT 0,
    dead bigint NOT NULL DEFAULT 0,
    updated_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    last_error text,
    last_error_at timestamptz,
    PRIMARY KEY (log_id, partition)
);

CREATE TABLE dashi.dead_letter (
    log_id text NOT NULL,
    partition integer NOT NULL,
    record_offset bigint NOT NULL,
    reason text NOT NULL,
    record bytea NOT NULL,
    set_aside_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    PRIMARY KEY (log_id, partition, record_offset)
);

-- An identify leaves no row in website_event: that it was applied is written here, once per event.
CREATE TABLE dashi.identify (
    event_id uuid PRIMARY KEY,
    website_id uuid NOT NULL,
    session_id uuid NOT NULL,
    distinct_id varchar(50),
    created_at timestamptz(6) NOT NULL
);
CREATE INDEX identify_session_id_idx ON dashi.identify (session_id, created_at);
