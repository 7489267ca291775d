-- The projection: Umami's tables, with identifiers as text and times as milliseconds since 1970. The indexes are
-- those that reading by site, session, visit and event needs.

CREATE TABLE website (
    website_id TEXT PRIMARY KEY,
    name TEXT NOT NULL,
    domain TEXT,
    created_at INTEGER,
    deleted_at INTEGER
);

CREATE TABLE session (
    session_id TEXT PRIMARY KEY,
    website_id TEXT NOT NULL,
    browser TEXT,
    os TEXT,
    device TEXT,
    screen TEXT,
    language TEXT,
    country TEXT,
    region TEXT,
    city TEXT,
    distinct_id TEXT,
    created_at INTEGER NOT NULL
);
CREATE INDEX session_website_id_created_at_idx ON session (website_id, created_at);

CREATE TABLE website_event (
    event_id TEXT PRIMARY KEY,
    website_id TEXT NOT NULL,
    session_id TEXT NOT NULL,
    visit_id TEXT NOT NULL,
    created_at INTEGER NOT NULL,
    url_path TEXT NOT NULL,
    url_query TEXT,
    utm_source TEXT,
    utm_medium TEXT,
    utm_campaign TEXT,
    utm_content TEXT,
    utm_term TEXT,
    gclid TEXT,
    fbclid TEXT,
    msclkid TEXT,
    ttclid TEXT,
    li_fat_id TEXT,
    twclid TEXT,
    referrer_path TEXT,
    referrer_query TEXT,
    referrer_domain TEXT,
    page_title TEXT,
    hostname TEXT,
    event_type INTEGER NOT NULL,
    event_name TEXT,
    tag TEXT,
    lcp REAL,
    inp REAL,
    cls REAL,
    fcp REAL,
    ttfb REAL
);
CREATE INDEX website_event_website_id_created_at_idx ON website_event (website_id, created_at);
CREATE INDEX website_event_session_id_created_at_idx ON website_event (session_id, created_at);

CREATE TABLE event_data (
    event_data_id TEXT PRIMARY KEY,
    website_id TEXT NOT NULL,
    website_event_id TEXT NOT NULL,
    data_key TEXT NOT NULL,
    data_type INTEGER NOT NULL,
    string_value TEXT,
    number_value REAL,
    date_value INTEGER,
    created_at INTEGER NOT NULL
);
CREATE INDEX event_data_website_event_id_idx ON event_data (website_event_id);
CREATE INDEX event_data_website_id_created_at_data_key_idx ON event_data (website_id, created_at, data_key);

CREATE TABLE session_data (
    session_data_id TEXT PRIMARY KEY,
    website_id TEXT NOT NULL,
    session_id TEXT NOT NULL,
    data_key TEXT NOT NULL,
    data_type INTEGER NOT NULL,
    string_value TEXT,
    number_value REAL,
    date_value INTEGER,
    distinct_id TEXT,
    created_at INTEGER NOT NULL
);
CREATE UNIQUE INDEX session_data_session_id_data_key_key ON session_data (session_id, data_key);
CREATE INDEX session_data_website_id_created_at_data_key_idx ON session_data (website_id, created_at, data_key);

CREATE TABLE revenue (
    revenue_id TEXT PRIMARY KEY,
    website_id TEXT NOT NULL,
    session_id TEXT NOT NULL,
    event_id TEXT NOT NULL,
    event_name TEXT NOT NULL,
    currency TEXT NOT NULL,
    revenue REAL,
    created_at INTEGER NOT NULL
);
CREATE INDEX revenue_website_id_created_at_idx ON revenue (website_id, created_at);
CREATE INDEX revenue_session_id_idx ON revenue (session_id);

-- Dashi's own.

-- One row per partition of a log: who may write (epoch), where the projection stands, what became of the records.
CREATE TABLE dashi_checkpoint (
    log_id TEXT NOT NULL,
    partition INTEGER NOT NULL,
    checkpoint INTEGER NOT NULL,
    epoch INTEGER NOT NULL,
    owner TEXT NOT NULL,
    applied INTEGER NOT NULL DEFAULT 0,
    duplicate INTEGER NOT NULL DEFAULT 0,
    dead INTEGER NOT NULL DEFAULT 0,
    updated_at INTEGER NOT NULL,
    last_error TEXT,
    last_error_at INTEGER,
    PRIMARY KEY (log_id, partition)
);

CREATE TABLE dashi_dead_letter (
    log_id TEXT NOT NULL,
    partition INTEGER NOT NULL,
    record_offset INTEGER NOT NULL,
    reason TEXT NOT NULL,
    record BLOB NOT NULL,
    set_aside_at INTEGER NOT NULL,
    PRIMARY KEY (log_id, partition, record_offset)
);

-- An identify leaves no row in website_event: that it was applied is written here, once per event.
CREATE TABLE dashi_identify (
    event_id TEXT PRIMARY KEY,
    website_id TEXT NOT NULL,
    session_id TEXT NOT NULL,
    distinct_id TEXT,
    created_at INTEGER NOT NULL
);
CREATE INDEX dashi_identify_session_id_idx ON dashi_identify (session_id, created_at);
