-- Instants are integer milliseconds since 1970 (UTC); their names end in _ms.
-- Codes of origins and charge states, and the format of "times", are those of store/codec.py.

PRAGMA application_id = 1702257252; -- "evbd"

CREATE TABLE store (
    id INTEGER PRIMARY KEY CHECK (id = 1),
    epoch TEXT NOT NULL -- first half of every reading's id: tells this journal from any other
) STRICT;
INSERT INTO store VALUES (1, lower(hex(randomblob(4))));

CREATE TABLE application (
    id INTEGER PRIMARY KEY,
    name TEXT NOT NULL UNIQUE,
    bucket_level REAL, -- both NULL before the first request
    bucket_ms INTEGER
) STRICT;

CREATE TABLE vehicle (
    id INTEGER PRIMARY KEY,
    slug TEXT NOT NULL UNIQUE,
    name TEXT NOT NULL,
    brand TEXT NOT NULL,
    application_id INTEGER NOT NULL REFERENCES application,
    connection_id TEXT NOT NULL,
    vehicle_ref TEXT NOT NULL,
    user_ref TEXT NOT NULL,
    make TEXT NOT NULL,
    model TEXT,
    year INTEGER,
    powertrain TEXT,
    permissions TEXT NOT NULL, -- a JSON array, sorted
    enrolled_ms INTEGER NOT NULL,
    withdrawn_ms INTEGER
) STRICT;

-- What is known of each vehicle now, so that nobody ever searches the journal for it.
CREATE TABLE latest (
    vehicle_id INTEGER PRIMARY KEY REFERENCES vehicle,
    reading_seq INTEGER,
    fetched_ms INTEGER, -- NULL before the first answer
    origin INTEGER,
    measured_ms INTEGER,
    soc REAL,
    range_km REAL,
    capacity_kwh REAL,
    charge_state INTEGER,
    charging INTEGER,
    plugged_in INTEGER,
    charge_limit REAL,
    charge_power_kw REAL,
    time_to_full_s REAL,
    odometer_km REAL,
    times BLOB,
    due_ms INTEGER,
    reason TEXT NOT NULL,
    polled_ms INTEGER,
    answered_ms INTEGER,
    outcome TEXT NOT NULL,
    failures INTEGER NOT NULL,
    activity TEXT NOT NULL,
    calls_per_poll INTEGER NOT NULL,
    trouble_outcome TEXT, -- the four of them NULL while all is well
    trouble_code TEXT,
    trouble_detail TEXT,
    trouble_since_ms INTEGER
) STRICT;

-- Journal and history in one. AUTOINCREMENT: a position is never given twice, not even after pruning.
CREATE TABLE reading (
    seq INTEGER PRIMARY KEY AUTOINCREMENT,
    vehicle_id INTEGER NOT NULL REFERENCES vehicle,
    fetched_ms INTEGER NOT NULL,
    origin INTEGER NOT NULL,
    measured_ms INTEGER, -- the car's time of the state of charge
    soc REAL,
    range_km REAL,
    capacity_kwh REAL,
    charge_state INTEGER,
    charging INTEGER,
    plugged_in INTEGER,
    charge_limit REAL,
    charge_power_kw REAL,
    time_to_full_s REAL,
    odometer_km REAL,
    times BLOB -- of the signals whose times or origin are not the row's
) STRICT;
CREATE INDEX reading_of_vehicle ON reading (vehicle_id, measured_ms) WHERE measured_ms IS NOT NULL;

CREATE TABLE cursor (
    sink TEXT PRIMARY KEY,
    seq INTEGER NOT NULL
) STRICT, WITHOUT ROWID;

CREATE TABLE ledger (
    application_id INTEGER NOT NULL REFERENCES application,
    window_ms INTEGER NOT NULL,
    vehicle_id INTEGER NOT NULL, -- 0: requests that no vehicle pays for
    calls INTEGER NOT NULL,
    PRIMARY KEY (application_id, window_ms, vehicle_id)
) STRICT, WITHOUT ROWID;

CREATE TABLE rejected (
    id INTEGER PRIMARY KEY,
    vehicle_id INTEGER NOT NULL REFERENCES vehicle,
    signal TEXT NOT NULL,
    raw TEXT NOT NULL,
    reason TEXT NOT NULL,
    measured_ms INTEGER,
    fetched_ms INTEGER NOT NULL
) STRICT;
CREATE INDEX rejected_of_vehicle ON rejected (vehicle_id);

-- The redacted start of each vehicle's last answer that could not be read.
CREATE TABLE excerpt (
    vehicle_id INTEGER PRIMARY KEY REFERENCES vehicle,
    excerpt TEXT NOT NULL
) STRICT;
