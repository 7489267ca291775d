-- What the migration from Umami 3.1 to 3.2 changes: the recorder's switch is renamed, what it switches lies in its
-- settings, and there are heatmaps.
INSERT INTO _prisma_migrations (id, checksum, finished_at, migration_name, started_at, applied_steps_count)
VALUES (md5('id20')::uuid, md5('a20') || md5('b20'), now(), '20_add_heatmap', now(), 1);
ALTER TABLE website RENAME COLUMN replay_enabled TO recorder_enabled;
UPDATE website SET replay_config = jsonb_set(coalesce(replay_config, '{}'), '{replayEnabled}', 'true')
WHERE recorder_enabled;
CREATE TABLE heatmap_event (
    heatmap_event_id uuid NOT NULL,
    website_id uuid NOT NULL,
    session_id uuid NOT NULL,
    visit_id uuid NOT NULL,
    url_path varchar(500) NOT NULL,
    event_type integer NOT NULL,
    node_id integer,
    x integer,
    y integer,
    page_x integer,
    page_y integer,
    page_w integer,
    viewport_w integer,
    viewport_h integer,
    page_h integer,
    scroll_pct integer,
    replay_chunk_index integer,
    replay_event_index integer,
    replay_time_ms bigint,
    created_at timestamptz(6) NOT NULL DEFAULT CURRENT_TIMESTAMP,
    CONSTRAINT heatmap_event_pkey PRIMARY KEY (heatmap_event_id)
);
CREATE INDEX heatmap_event_website_id_idx ON heatmap_event (website_id);
CREATE INDEX heatmap_event_visit_id_idx ON heatmap_event (visit_id);
CREATE INDEX heatmap_event_website_id_created_at_idx ON heatmap_event (website_id, created_at);
CREATE INDEX heatmap_event_website_id_url_path_event_type_created_at_idx
    ON heatmap_event (website_id, url_path, event_type, created_at);
CREATE INDEX heatmap_event_website_id_visit_id_replay_chunk_index_replay_eve
    ON heatmap_event (website_id, visit_id, replay_chunk_index, replay_event_index);
