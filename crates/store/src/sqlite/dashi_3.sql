-- Profiles: people, their traits, and the sessions that belong to them. Times are milliseconds since 1970. What a column
-- means is told by the row types of crates/domain/src/profile.rs.

CREATE TABLE dashi_profile (
    website_id TEXT NOT NULL,
    distinct_id TEXT NOT NULL,
    created_at INTEGER NOT NULL,
    PRIMARY KEY (website_id, distinct_id)
);

-- The value of a trait now; no type and no value if it is deleted.
CREATE TABLE dashi_profile_trait (
    website_id TEXT NOT NULL,
    distinct_id TEXT NOT NULL,
    key TEXT NOT NULL,
    data_type INTEGER,
    string_value TEXT,
    number_value REAL,
    date_value INTEGER,
    last_at INTEGER NOT NULL,
    last_event_id TEXT NOT NULL,
    changed_at INTEGER NOT NULL,
    changed_event_id TEXT NOT NULL,
    changed_by TEXT NOT NULL,
    conditional INTEGER NOT NULL,
    PRIMARY KEY (website_id, distinct_id, key)
);

-- Who changed what, when: what the values are made of.
CREATE TABLE dashi_profile_write (
    website_id TEXT NOT NULL,
    distinct_id TEXT NOT NULL,
    key TEXT NOT NULL,
    received_at INTEGER NOT NULL,
    event_id TEXT NOT NULL,
    session_id TEXT NOT NULL,
    device TEXT NOT NULL,
    data_type INTEGER,
    string_value TEXT,
    number_value REAL,
    date_value INTEGER,
    base_received_at INTEGER,
    base_event_id TEXT,
    PRIMARY KEY (website_id, distinct_id, key, received_at, event_id)
);

-- What a device of a session last sent: what its next send is compared with.
CREATE TABLE dashi_profile_base (
    session_id TEXT NOT NULL,
    device TEXT NOT NULL,
    distinct_id TEXT NOT NULL,
    key TEXT NOT NULL,
    data_type INTEGER,
    string_value TEXT,
    number_value REAL,
    date_value INTEGER,
    received_at INTEGER NOT NULL,
    event_id TEXT NOT NULL,
    PRIMARY KEY (session_id, device, distinct_id, key)
);

CREATE TABLE dashi_profile_link (
    website_id TEXT NOT NULL,
    session_id TEXT NOT NULL,
    distinct_id TEXT NOT NULL,
    kind INTEGER NOT NULL,
    first_at INTEGER NOT NULL,
    PRIMARY KEY (website_id, session_id, distinct_id, kind)
);
CREATE INDEX dashi_profile_link_distinct_id_idx ON dashi_profile_link (website_id, distinct_id, first_at);
