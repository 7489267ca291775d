-- Heatmaps, as Umami has them from 3.2 on, and what its newer versions keep of a website and of a link.

CREATE TABLE heatmap_event (
    heatmap_event_id TEXT PRIMARY KEY,
    website_id TEXT NOT NULL,
    session_id TEXT NOT NULL,
    visit_id TEXT NOT NULL,
    url_path TEXT NOT NULL,
    event_type INTEGER NOT NULL,
    node_id INTEGER,
    x INTEGER,
    y INTEGER,
    page_x INTEGER,
    page_y INTEGER,
    page_w INTEGER,
    viewport_w INTEGER,
    viewport_h INTEGER,
    page_h INTEGER,
    scroll_pct INTEGER,
    replay_chunk_index INTEGER,
    replay_event_index INTEGER,
    replay_time_ms INTEGER,
    created_at INTEGER NOT NULL
);
CREATE INDEX heatmap_event_website_id_url_path_event_type_created_at_idx
    ON heatmap_event (website_id, url_path, event_type, created_at);
CREATE INDEX heatmap_event_visit_id_idx ON heatmap_event (visit_id);

-- Null: clicks are read out of recordings, and posts are taken where those are. 1: they are posted. 0: there are none.
ALTER TABLE website ADD COLUMN heatmap_enabled INTEGER;
ALTER TABLE website ADD COLUMN blocked_ips TEXT;

ALTER TABLE link ADD COLUMN utm_source TEXT;
ALTER TABLE link ADD COLUMN utm_medium TEXT;
ALTER TABLE link ADD COLUMN utm_campaign TEXT;
ALTER TABLE link ADD COLUMN utm_term TEXT;
ALTER TABLE link ADD COLUMN utm_content TEXT;

-- Of a record that leaves no row by whose key a copy of it would be known, that it was applied is written here.
CREATE TABLE dashi_applied (
    record_id TEXT PRIMARY KEY,
    record_type TEXT NOT NULL,
    website_id TEXT NOT NULL,
    session_id TEXT NOT NULL,
    received_at INTEGER NOT NULL
);
