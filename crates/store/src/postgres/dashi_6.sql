-- Generations

-- Every complete projection of the log that is kept or being built, and the live one. The place is a schema: of the live
-- one that of Umami's tables.
CREATE TABLE dashi.generation (
    number integer PRIMARY KEY,
    state text NOT NULL CHECK (state IN ('building', 'ready', 'live', 'kept')),
    projection_version integer NOT NULL,
    rules text NOT NULL,
    place text NOT NULL,
    made_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    live_since timestamptz
);
CREATE UNIQUE INDEX generation_live_key ON dashi.generation (state) WHERE state = 'live';
CREATE UNIQUE INDEX generation_building_key ON dashi.generation (state) WHERE state = 'building';
