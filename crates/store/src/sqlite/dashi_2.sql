-- Links, pixels and recordings, as Umami has them.

ALTER TABLE website ADD COLUMN replay_enabled INTEGER NOT NULL DEFAULT 0;

CREATE TABLE link (
    link_id TEXT PRIMARY KEY,
    name TEXT NOT NULL,
    url TEXT NOT NULL,
    slug TEXT NOT NULL UNIQUE,
    created_at INTEGER NOT NULL,
    deleted_at INTEGER
);

CREATE TABLE pixel (
    pixel_id TEXT PRIMARY KEY,
    name TEXT NOT NULL,
    slug TEXT NOT NULL UNIQUE,
    created_at INTEGER NOT NULL,
    deleted_at INTEGER
);

CREATE TABLE session_replay (
    replay_id TEXT PRIMARY KEY,
    website_id TEXT NOT NULL,
    session_id TEXT NOT NULL,
    visit_id TEXT NOT NULL,
    chunk_index INTEGER NOT NULL,
    events BLOB NOT NULL,
    event_count INTEGER NOT NULL,
    started_at INTEGER NOT NULL,
    ended_at INTEGER NOT NULL,
    created_at INTEGER NOT NULL
);
CREATE INDEX session_replay_website_id_visit_id_idx ON session_replay (website_id, visit_id, chunk_index);
CREATE INDEX session_replay_session_id_idx ON session_replay (session_id);
