"""Response times of the read API over many events: makes the rows of both stores, and asks. scripts/bench-store read is the command.

The rows lie as a projector would have written them: ordered by time over 90 days, seven events of each session in two visits a day apart.
They are made here, not projected, so that ten million take minutes.
"""

import hashlib
import io
import json
import sqlite3
import subprocess
import sys
import time
import urllib.request

DAYS = 90
DAY_MS = 86_400_000
# Of each session: events of the first and of the second visit, and the time between two of them.
VISITS = (4, 3)
GAP_MS = 40_000
PATHS = [f"/{kind}/{number}" for kind in ("docs", "blog", "shop", "help") for number in range(50)]
COUNTRIES = ["DE", "US", "FR", "JP", "BR", "IN", "GB", "ES", "IT", "NL", "PL", "SE", "CA", "AU", "MX", "KR"]
BROWSERS = [("chrome", "Windows 10", "desktop"), ("safari", "iOS", "mobile"), ("firefox", "Linux", "desktop"), ("edge-chromium", "Windows 10", "desktop"),
            ("chrome", "Android OS", "mobile"), ("safari", "Mac OS", "laptop")]
REFERRERS = [None, None, None, "google.example", "news.example", "social.example"]
SESSION_COLUMNS = ("session_id", "website_id", "browser", "os", "device", "screen", "language", "country", "created_at")
EVENT_COLUMNS = ("event_id", "website_id", "session_id", "visit_id", "created_at", "url_path", "referrer_domain", "page_title", "hostname", "event_type", "event_name")
# Rows that are handed over at once.
PIECE = 100_000


def uuid(text):
    digits = hashlib.md5(text.encode()).hexdigest()
    return f"{digits[:8]}-{digits[8:12]}-5{digits[13:16]}-8{digits[17:20]}-{digits[20:]}"


def sessions_of(events, website, begun_ms):
    count = -(-events // sum(VISITS))
    for number in range(count):
        browser, system, device = BROWSERS[number % 6]
        yield (uuid(f"session {number}"), website, browser, system, device, "1920x1080", "en-US", COUNTRIES[number * 7 % 16],
               begun_ms + number * DAYS * DAY_MS // count)


def events_of(events, website, begun_ms):
    """In the order of their visits' times: a day lies between the two visits of a session."""
    count = -(-events // sum(VISITS))
    day = max(count // DAYS, 1)
    made = 0
    for number in range(count + day):
        for visit, session in ((0, number), (1, number - day)):
            if not 0 <= session < count:
                continue
            begin_ms = begun_ms + number * DAYS * DAY_MS // count
            session_id, visit_id = uuid(f"session {session}"), uuid(f"visit {session} {visit}")
            for view in range(VISITS[visit]):
                if made == events:
                    return
                is_custom = (session + view) % 8 == 7
                path = PATHS[(session * 31 + view * 7) % len(PATHS)]
                referrer = REFERRERS[session % 6] if view == 0 else None
                yield (f"00000000-0000-7000-8000-{made:012x}", website, session_id, visit_id, begin_ms + view * GAP_MS, path, referrer,
                       f"Page {path}", "example.com", 2 if is_custom else 1, "signup" if is_custom else None)
                made += 1


def pieces(rows):
    piece = []
    for row in rows:
        piece.append(row)
        if len(piece) == PIECE:
            yield piece
            piece = []
    if piece:
        yield piece


def fill_sqlite(path, tables):
    connection = sqlite3.connect(path, isolation_level=None)
    connection.executescript("PRAGMA synchronous = OFF; PRAGMA cache_size = -1000000")
    indexes = connection.execute(
        "SELECT name, sql FROM sqlite_schema WHERE type = 'index' AND sql IS NOT NULL AND tbl_name IN ('session', 'website_event')").fetchall()
    connection.execute("BEGIN")
    for name, _ in indexes:
        connection.execute(f"DROP INDEX {name}")
    for table, columns, rows in tables:
        marks = ", ".join("?" * len(columns))
        for piece in pieces(rows):
            connection.executemany(f"INSERT INTO {table} ({', '.join(columns)}) VALUES ({marks})", piece)
    for _, sql in indexes:
        connection.execute(sql)
    connection.execute("COMMIT")
    connection.close()


def fill_postgres(url, psql, tables):
    indexes = psql(url, "SELECT indexname || ' ' || indexdef FROM pg_indexes WHERE schemaname = 'public' AND tablename IN ('session', 'website_event') "
                        "AND indexname NOT LIKE '%_pkey' AND indexdef NOT LIKE 'CREATE UNIQUE%'").splitlines()
    names = [line.split(" ")[0] for line in indexes]
    psql(url, "".join(f'DROP INDEX "{name}";' for name in names))
    for table, columns, rows in tables:
        times = columns.index("created_at")
        copy = subprocess.Popen(["psql", "-qAt", "-v", "ON_ERROR_STOP=1", url, "-c", f"COPY {table} ({', '.join(columns)}) FROM STDIN"],
                                stdin=subprocess.PIPE, text=True)
        for piece in pieces(rows):
            text = io.StringIO()
            for row in piece:
                at = time.strftime("%Y-%m-%d %H:%M:%S", time.gmtime(row[times] // 1000)) + f".{row[times] % 1000:03}+00"
                text.write("\t".join("\\N" if value is None else str(value) for value in (*row[:times], at, *row[times + 1:])) + "\n")
            copy.stdin.write(text.getvalue())
        copy.stdin.close()
        if copy.wait():
            sys.exit("error: psql could not copy the rows")
    for line in indexes:
        psql(url, "SET maintenance_work_mem = '512MB';" + line.split(" ", 1)[1])
    psql(url, "VACUUM ANALYZE session, website_event")


def questions(begun_ms, now_ms):
    """Name, and path behind the website's id."""
    span = lambda days: f"startAt={now_ms - days * DAY_MS}&endAt={now_ms}"
    session = uuid("session 0")
    return [
        ("`stats` of one day (and the day before)", f"/stats?{span(1)}"),
        ("`stats` of 30 days (and the 30 before)", f"/stats?{span(30)}"),
        ("`pageviews` by day, 30 days, Europe/Berlin", f"/pageviews?{span(30)}&unit=day&timezone=Europe/Berlin"),
        ("`metrics`, `type=path`, 30 days", f"/metrics?{span(30)}&type=path"),
        ("`metrics`, `type=country`, 30 days", f"/metrics?{span(30)}&type=country"),
        ("`metrics/expanded`, `type=browser`, 30 days", f"/metrics/expanded?{span(30)}&type=browser"),
        ("`events/series`, 30 days", f"/events/series?{span(30)}&unit=day"),
        ("`events`, the last page of 30 days", f"/events?{span(30)}"),
        ("`sessions` of 30 days", f"/sessions?{span(30)}"),
        ("`sessions` of one day", f"/sessions?{span(1)}"),
        ("`sessions/stats` of 30 days", f"/sessions/stats?{span(30)}"),
        ("one session", f"/sessions/{session}"),
        ("its activity", f"/sessions/{session}/activity?startAt={begun_ms}&endAt={now_ms}"),
        ("`active`", "/active"),
        ("`daterange`", "/daterange"),
        ("the website", ""),
    ]


def ask(url):
    start = time.monotonic()
    with urllib.request.urlopen(url, timeout=600) as answer:
        body = answer.read()
    json.loads(body)
    return time.monotonic() - start


def measure(place, options, tools):
    website, figures = tools.website, {}
    for events in options.events:
        now_ms = int(time.time() * 1000)
        begun_ms = now_ms - DAYS * DAY_MS
        for name in options.stores:
            begun = time.monotonic()
            store = place.store_for_reading(name, events)
            tables = [("session", SESSION_COLUMNS, sessions_of(events, website, begun_ms)), ("website_event", EVENT_COLUMNS, events_of(events, website, begun_ms))]
            if name == "SQLite":
                fill_sqlite(store.removeprefix("sqlite:"), tables)
            else:
                fill_postgres(store, tools.psql, tables)
            print(f"{name}: {events:,} events were made in {time.monotonic() - begun:.0f} s", file=sys.stderr)
            server = place.start("project", store)
            tools.until_ready(server)
            for question, path in questions(begun_ms, now_ms):
                url = f"{server.url}/api/websites/{website}{path}"
                times = [ask(url) for _ in range(options.rounds)]
                figures.setdefault(question, {})[(name, events)] = times
                print(f"{name}, {events:,}: {question}: {min(times):.3f} to {max(times):.3f} s", file=sys.stderr)
            place.stop()
    columns = [(name, events) for events in options.events for name in options.stores]
    print(f"{options.rounds} times each, one after the other; seconds, the best to the worst\n")
    print("| question | " + " | ".join(f"{name}, {events:,}" for name, events in columns) + " |\n|---|" + "---|" * len(columns))
    shown = lambda seconds: f"{seconds:.3f}" if seconds < 1 else f"{seconds:.1f}"
    for question, of in figures.items():
        print(f"| {question} | " + " | ".join(f"{shown(min(of[column]))}–{shown(max(of[column]))}" for column in columns) + " |")
