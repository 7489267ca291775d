-- Of a record that leaves no row by whose key a copy of it would be known, that it was applied is written here. Times are
-- milliseconds since 1970.
CREATE TABLE dashi.applied (
    record_id uuid PRIMARY KEY,
    record_type text NOT NULL,
    website_id uuid NOT NULL,
    session_id uuid NOT NULL,
    received_at bigint NOT NULL
);
