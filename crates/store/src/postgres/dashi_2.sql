-- Profiles: people, their traits, and the sessions that belong to them. Times are milliseconds since 1970. What a column
-- means is told by the row types of crates/domain/src/profile.rs.

CREATE TABLE dashi.profile (
    website_id uuid NOT NULL,
    distinct_id text NOT NULL COLLATE "C",
    created_at bigint NOT NULL,
    PRIMARY KEY (website_id, distinct_id)
);

-- The value of a trait now; no type and no value if it is deleted.
CREATE TABLE dashi.profile_trait (
    website_id uuid NOT NULL,
    distinct_id text NOT NULL COLLATE "C",
    key text NOT NULL COLLATE "C",
    data_type integer,
    string_value text,
    number_value numeric(19, 4),
    date_value bigint,
    last_at bigint NOT NULL,
    last_event_id uuid NOT NULL,
    changed_at bigint NOT NULL,
    changed_event_id uuid NOT NULL,
    changed_by uuid NOT NULL,
    conditional integer NOT NULL,
    PRIMARY KEY (website_id, distinct_id, key)
);

-- Who changed what, when: what the values are made of.
CREATE TABLE dashi.profile_write (
    website_id uuid NOT NULL,
    distinct_id text NOT NULL COLLATE "C",
    key text NOT NULL COLLATE "C",
    received_at bigint NOT NULL,
    event_id uuid NOT NULL,
    session_id uuid NOT NULL,
    device uuid NOT NULL,
    data_type integer,
    string_value text,
    number_value numeric(19, 4),
    date_value bigint,
    base_received_at bigint,
    base_event_id uuid,
    PRIMARY KEY (website_id, distinct_id, key, received_at, event_id)
);

-- What a device of a session last sent: what its next send is compared with.
CREATE TABLE dashi.profile_base (
    session_id uuid NOT NULL,
    device uuid NOT NULL,
    distinct_id text NOT NULL COLLATE "C",
    key text NOT NULL COLLATE "C",
    data_type integer,
    string_value text,
    number_value numeric(19, 4),
    date_value bigint,
    received_at bigint NOT NULL,
    event_id uuid NOT NULL,
    PRIMARY KEY (session_id, device, distinct_id, key)
);

CREATE TABLE dashi.profile_link (
    website_id uuid NOT NULL,
    session_id uuid NOT NULL,
    distinct_id text NOT NULL COLLATE "C",
    kind integer NOT NULL,
    first_at bigint NOT NULL,
    PRIMARY KEY (website_id, session_id, distinct_id, kind)
);
CREATE INDEX profile_link_distinct_id_idx ON dashi.profile_link (website_id, distinct_id, first_at);
