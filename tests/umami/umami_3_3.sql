-- What the migrations from Umami 3.2 to 3.3 change: sessions are linked to distinct ids, a property of a session is
-- unique, and users have second factors.
INSERT INTO _prisma_migrations (id, checksum, finished_at, migration_name, started_at, applied_steps_count)
SELECT md5('id' || name)::uuid, md5('a' || name) || md5('b' || name), now(), name, now(), 1
FROM unnest(ARRAY['21_add_session_link', '22_add_2fa', '23_update_session_data', '24_lowercase_username']) AS name;
CREATE TABLE session_link (
    website_id uuid NOT NULL,
    session_id uuid NOT NULL,
    distinct_id varchar(50) NOT NULL,
    created_at timestamptz(6) DEFAULT CURRENT_TIMESTAMP,
    CONSTRAINT session_link_pkey PRIMARY KEY (website_id, distinct_id, session_id)
);
CREATE INDEX session_link_website_id_session_id_idx ON session_link (website_id, session_id);
ALTER TABLE team ADD COLUMN two_factor_required boolean NOT NULL DEFAULT false;
ALTER TABLE "user" ADD COLUMN two_factor_required boolean NOT NULL DEFAULT false;
CREATE TABLE two_factor_auth (
    id text NOT NULL,
    user_id uuid NOT NULL,
    secret text NOT NULL,
    is_enabled boolean NOT NULL DEFAULT false,
    created_at timestamptz(6) NOT NULL DEFAULT CURRENT_TIMESTAMP,
    updated_at timestamptz(6) NOT NULL,
    CONSTRAINT two_factor_auth_pkey PRIMARY KEY (id)
);
CREATE TABLE app_setting (
    key text NOT NULL,
    value text NOT NULL,
    CONSTRAINT app_setting_pkey PRIMARY KEY (key)
);
CREATE INDEX IF NOT EXISTS session_replay_visit_id_idx ON session_replay (visit_id);
DELETE FROM session_data AS older USING session_data AS newer
WHERE older.session_id = newer.session_id AND older.data_key = newer.data_key
    AND (older.created_at, older.session_data_id) < (newer.created_at, newer.session_data_id);
CREATE UNIQUE INDEX session_data_session_id_data_key_key ON session_data (session_id, data_key);
