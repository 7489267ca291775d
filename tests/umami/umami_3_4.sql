-- What the migrations from Umami 3.3 to 3.4 add: annotations and API keys; then what newer versions have beside:
-- addresses that a website blocks, and fewer and wider indexes of website_event.
INSERT INTO _prisma_migrations (id, checksum, finished_at, migration_name, started_at, applied_steps_count)
SELECT md5('id' || name)::uuid, md5('a' || name) || md5('b' || name), now(), name, now(), 1
FROM unnest(ARRAY['25_add_annotation', '26_add_api_key', '27_optimize_website_event_indexes']) AS name;
CREATE TABLE annotation (
    annotation_id uuid NOT NULL,
    website_id uuid NOT NULL,
    user_id uuid,
    date timestamptz(6) NOT NULL,
    all_day boolean NOT NULL DEFAULT true,
    note varchar(500) NOT NULL,
    created_at timestamptz(6) DEFAULT CURRENT_TIMESTAMP,
    updated_at timestamptz(6),
    CONSTRAINT annotation_pkey PRIMARY KEY (annotation_id)
);
CREATE UNIQUE INDEX annotation_annotation_id_key ON annotation (annotation_id);
CREATE INDEX annotation_website_id_date_idx ON annotation (website_id, date);
CREATE TABLE api_key (
    api_key_id uuid NOT NULL,
    user_id uuid NOT NULL,
    name varchar(255) NOT NULL,
    key_hash varchar(128) NOT NULL,
    key_prefix varchar(20) NOT NULL,
    last_used_at timestamptz(6),
    created_at timestamptz(6) DEFAULT CURRENT_TIMESTAMP,
    CONSTRAINT api_key_pkey PRIMARY KEY (api_key_id),
    CONSTRAINT api_key_user_id_fkey FOREIGN KEY (user_id) REFERENCES "user" (user_id) ON DELETE CASCADE
);
CREATE UNIQUE INDEX api_key_key_hash_key ON api_key (key_hash);
CREATE INDEX api_key_user_id_idx ON api_key (user_id);
ALTER TABLE website ADD COLUMN blocked_ips jsonb;
CREATE INDEX website_event_website_created_type_session_visit_idx
    ON website_event (website_id, created_at, event_type, session_id, visit_id);
CREATE INDEX website_event_website_created_path_type_session_idx
    ON website_event (website_id, created_at, url_path, event_type, session_id);
CREATE INDEX website_event_website_created_referrer_type_session_idx
    ON website_event (website_id, created_at, referrer_domain, event_type, session_id, hostname);
CREATE INDEX website_event_website_created_title_type_session_idx
    ON website_event (website_id, created_at, page_title, event_type, session_id);
CREATE INDEX website_event_website_created_event_type_session_idx
    ON website_event (website_id, created_at, event_name, event_type, session_id);
DROP INDEX website_event_website_id_created_at_url_path_idx;
DROP INDEX website_event_website_id_created_at_referrer_domain_idx;
DROP INDEX website_event_website_id_created_at_page_title_idx;
DROP INDEX website_event_website_id_created_at_event_name_idx;
