-- Generations

-- Every complete projection of the log that is kept or being built, and the live one, which is in this file. Times are
-- milliseconds since 1970.
CREATE TABLE dashi_generation (
    number INTEGER PRIMARY KEY,
    state TEXT NOT NULL CHECK (state IN ('building', 'ready', 'live', 'kept')),
    projection_version INTEGER NOT NULL,
    rules TEXT NOT NULL,
    place TEXT NOT NULL,
    made_at INTEGER NOT NULL,
    live_since INTEGER
);
CREATE UNIQUE INDEX dashi_generation_live_key ON dashi_generation (state) WHERE state = 'live';
CREATE UNIQUE INDEX dashi_generation_building_key ON dashi_generation (state) WHERE state = 'building';
