-- What the migrations of Umami 2.18 leave in a database, as far as an import meets in it (docs/umami-contract.md §15, §22):
-- as 3.0, without links, pixels, revenue, and without Prisma's own table.
CREATE TABLE website (
    website_id uuid NOT NULL,
    name varchar(100) NOT NULL,
    domain varchar(500),
    reset_at timestamptz(6),
    user_id uuid,
    team_id uuid,
    created_by uuid,
    created_at timestamptz(6) DEFAULT CURRENT_TIMESTAMP,
    updated_at timestamptz(6),
    deleted_at timestamptz(6),
    CONSTRAINT website_pkey PRIMARY KEY (website_id)
);
CREATE INDEX website_user_id_idx ON website (user_id);
CREATE INDEX website_team_id_idx ON website (team_id);
CREATE INDEX website_created_at_idx ON website (created_at);
CREATE INDEX website_created_by_idx ON website (created_by);
CREATE TABLE session (
    session_id uuid NOT NULL,
    website_id uuid NOT NULL,
    browser varchar(20),
    os varchar(20),
    device varchar(20),
    screen varchar(11),
    language varchar(35),
    country char(2),
    region varchar(20),
    city varchar(50),
    created_at timestamptz(6) DEFAULT CURRENT_TIMESTAMP,
    distinct_id varchar(50),
    CONSTRAINT session_pkey PRIMARY KEY (session_id)
);
CREATE INDEX session_created_at_idx ON session (created_at);
CREATE INDEX session_website_id_idx ON session (website_id);
CREATE INDEX session_website_id_created_at_idx ON session (website_id, created_at);
CREATE INDEX session_website_id_created_at_browser_idx ON session (website_id, created_at, browser);
CREATE INDEX session_website_id_created_at_os_idx ON session (website_id, created_at, os);
CREATE INDEX session_website_id_created_at_device_idx ON session (website_id, created_at, device);
CREATE INDEX session_website_id_created_at_screen_idx ON session (website_id, created_at, screen);
CREATE INDEX session_website_id_created_at_language_idx ON session (website_id, created_at, language);
CREATE INDEX session_website_id_created_at_country_idx ON session (website_id, created_at, country);
CREATE INDEX session_website_id_created_at_region_idx ON session (website_id, created_at, region);
CREATE INDEX session_website_id_created_at_city_idx ON session (website_id, created_at, city);
CREATE TABLE website_event (
    event_id uuid NOT NULL,
    website_id uuid NOT NULL,
    session_id uuid NOT NULL,
    visit_id uuid NOT NULL,
    created_at timestamptz(6) DEFAULT CURRENT_TIMESTAMP,
    url_path varchar(500) NOT NULL,
    url_query varchar(500),
    referrer_path varchar(500),
    referrer_query varchar(500),
    referrer_domain varchar(500),
    page_title varchar(500),
    utm_source varchar(255),
    utm_medium varchar(255),
    utm_campaign varchar(255),
    utm_content varchar(255),
    utm_term varchar(255),
    gclid varchar(255),
    fbclid varchar(255),
    msclkid varchar(255),
    ttclid varchar(255),
    li_fat_id varchar(255),
    twclid varchar(255),
    event_type integer NOT NULL DEFAULT 1,
    event_name varchar(50),
    tag varchar(50),
    hostname varchar(100),
    CONSTRAINT website_event_pkey PRIMARY KEY (event_id)
);
CREATE INDEX website_event_created_at_idx ON website_event (created_at);
CREATE INDEX website_event_session_id_idx ON website_event (session_id);
CREATE INDEX website_event_visit_id_idx ON website_event (visit_id);
CREATE INDEX website_event_website_id_idx ON website_event (website_id);
CREATE INDEX website_event_website_id_created_at_idx ON website_event (website_id, created_at);
CREATE INDEX website_event_website_id_created_at_url_path_idx ON website_event (website_id, created_at, url_path);
CREATE INDEX website_event_website_id_created_at_url_query_idx ON website_event (website_id, created_at, url_query);
CREATE INDEX website_event_website_id_created_at_referrer_domain_idx ON website_event (website_id, created_at, referrer_domain);
CREATE INDEX website_event_website_id_created_at_page_title_idx ON website_event (website_id, created_at, page_title);
CREATE INDEX website_event_website_id_created_at_event_name_idx ON website_event (website_id, created_at, event_name);
CREATE INDEX website_event_website_id_created_at_tag_idx ON website_event (website_id, created_at, tag);
CREATE INDEX website_event_website_id_created_at_hostname_idx ON website_event (website_id, created_at, hostname);
CREATE INDEX website_event_website_id_session_id_created_at_idx ON website_event (website_id, session_id, created_at);
CREATE INDEX website_event_website_id_visit_id_created_at_idx ON website_event (website_id, visit_id, created_at);
CREATE TABLE event_data (
    event_data_id uuid NOT NULL,
    website_id uuid NOT NULL,
    website_event_id uuid NOT NULL,
    data_key varchar(500) NOT NULL,
    string_value varchar(500),
    number_value numeric(19,4),
    date_value timestamptz(6),
    data_type integer NOT NULL,
    created_at timestamptz(6) DEFAULT CURRENT_TIMESTAMP,
    CONSTRAINT event_data_pkey PRIMARY KEY (event_data_id)
);
CREATE INDEX event_data_created_at_idx ON event_data (created_at);
CREATE INDEX event_data_website_id_idx ON event_data (website_id);
CREATE INDEX event_data_website_event_id_idx ON event_data (website_event_id);
CREATE INDEX event_data_website_id_created_at_idx ON event_data (website_id, created_at);
CREATE INDEX event_data_website_id_created_at_data_key_idx ON event_data (website_id, created_at, data_key);
CREATE TABLE session_data (
    session_data_id uuid NOT NULL,
    website_id uuid NOT NULL,
    session_id uuid NOT NULL,
    data_key varchar(500) NOT NULL,
    string_value varchar(500),
    number_value numeric(19,4),
    date_value timestamptz(6),
    data_type integer NOT NULL,
    created_at timestamptz(6) DEFAULT CURRENT_TIMESTAMP,
    distinct_id varchar(50),
    CONSTRAINT session_data_pkey PRIMARY KEY (session_data_id)
);
CREATE INDEX session_data_created_at_idx ON session_data (created_at);
CREATE INDEX session_data_website_id_idx ON session_data (website_id);
CREATE INDEX session_data_session_id_idx ON session_data (session_id);
CREATE INDEX session_data_session_id_created_at_idx ON session_data (session_id, created_at);
CREATE INDEX session_data_website_id_created_at_data_key_idx ON session_data (website_id, created_at, data_key);
