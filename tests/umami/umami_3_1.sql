-- What the migrations from Umami 3.0 to 3.1 change: 19 are applied after them.
INSERT INTO _prisma_migrations (id, checksum, finished_at, migration_name, started_at, applied_steps_count)
SELECT md5('id' || n)::uuid, md5('a' || n) || md5('b' || n), now(), lpad(n::text, 2, '0') || '_migration', now(), 1
FROM generate_series(15, 19) AS n;
ALTER TABLE website_event
    ADD COLUMN lcp numeric(10,1), ADD COLUMN inp numeric(10,1), ADD COLUMN cls numeric(10,4),
    ADD COLUMN fcp numeric(10,1), ADD COLUMN ttfb numeric(10,1);
ALTER TABLE website ADD COLUMN replay_enabled boolean NOT NULL DEFAULT false, ADD COLUMN replay_config jsonb;
CREATE TABLE session_replay (
    replay_id uuid NOT NULL,
    website_id uuid NOT NULL,
    session_id uuid NOT NULL,
    visit_id uuid NOT NULL,
    chunk_index integer NOT NULL,
    events bytea NOT NULL,
    event_count integer NOT NULL,
    started_at timestamptz(6) NOT NULL,
    ended_at timestamptz(6) NOT NULL,
    created_at timestamptz(6) DEFAULT CURRENT_TIMESTAMP,
    CONSTRAINT session_replay_pkey PRIMARY KEY (replay_id)
);
CREATE INDEX session_replay_website_id_idx ON session_replay (website_id);
CREATE INDEX session_replay_session_id_idx ON session_replay (session_id);
CREATE INDEX session_replay_website_id_session_id_idx ON session_replay (website_id, session_id);
CREATE INDEX session_replay_website_id_visit_id_idx ON session_replay (website_id, visit_id);
CREATE INDEX session_replay_website_id_created_at_idx ON session_replay (website_id, created_at);
CREATE INDEX session_replay_session_id_chunk_index_idx ON session_replay (session_id, chunk_index);
CREATE TABLE session_replay_saved (
    saved_replay_id uuid NOT NULL,
    name varchar(100) NOT NULL,
    website_id uuid NOT NULL,
    visit_id uuid NOT NULL,
    created_at timestamptz(6) DEFAULT CURRENT_TIMESTAMP,
    updated_at timestamptz(6),
    CONSTRAINT session_replay_saved_pkey PRIMARY KEY (saved_replay_id)
);
CREATE UNIQUE INDEX session_replay_saved_website_id_visit_id_key ON session_replay_saved (website_id, visit_id);
