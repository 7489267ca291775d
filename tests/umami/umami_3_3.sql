-- What the migrations from Umami 3.1 to 3.3 change, as far as docs/umami-contract.md §23 tells: sessions are linked to
-- distinct ids, a property of a session is unique, and website_event has fewer and wider indexes.
INSERT INTO _prisma_migrations (id, checksum, finished_at, migration_name, started_at, applied_steps_count)
SELECT md5('id' || n)::uuid, md5('a' || n) || md5('b' || n), now(), lpad(n::text, 2, '0') || '_migration', now(), 1
FROM generate_series(20, 27) AS n;
CREATE TABLE session_link (
    website_id uuid NOT NULL,
    session_id uuid NOT NULL,
    distinct_id varchar(50) NOT NULL,
    created_at timestamptz(6) DEFAULT CURRENT_TIMESTAMP,
    CONSTRAINT session_link_pkey PRIMARY KEY (website_id, distinct_id, session_id)
);
CREATE INDEX session_link_website_id_session_id_idx ON session_link (website_id, session_id);
CREATE TABLE heatmap_event (
    heatmap_event_id uuid NOT NULL,
    website_id uuid NOT NULL,
    session_id uuid NOT NULL,
    visit_id uuid NOT NULL,
    url_path varchar(500) NOT NULL,
    created_at timestamptz(6) DEFAULT CURRENT_TIMESTAMP,
    CONSTRAINT heatmap_event_pkey PRIMARY KEY (heatmap_event_id)
);
DELETE FROM session_data AS older USING session_data AS newer
WHERE older.session_id = newer.session_id AND older.data_key = newer.data_key
    AND (older.created_at, older.session_data_id) < (newer.created_at, newer.session_data_id);
CREATE UNIQUE INDEX session_data_session_id_data_key_key ON session_data (session_id, data_key);
ALTER TABLE website ADD COLUMN blocked_ips jsonb;
DROP INDEX website_event_website_id_created_at_url_path_idx;
DROP INDEX website_event_website_id_created_at_referrer_domain_idx;
DROP INDEX website_event_website_id_created_at_page_title_idx;
DROP INDEX website_event_website_id_created_at_event_name_idx;
CREATE INDEX website_event_wide_type_idx
    ON website_event (website_id, created_at, event_type, session_id, visit_id);
CREATE INDEX website_event_wide_path_idx
    ON website_event (website_id, created_at, url_path, event_type, session_id);
CREATE INDEX website_event_wide_referrer_idx
    ON website_event (website_id, created_at, referrer_domain, event_type, session_id, hostname);
