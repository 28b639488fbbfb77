-- How far each sink is with each vehicle, and what may still be shown of what was published.

-- Only where a sink is further with a vehicle than its cursor, up to which it has taken everything.
CREATE TABLE told (
    sink TEXT NOT NULL,
    vehicle_id INTEGER NOT NULL REFERENCES vehicle,
    seq INTEGER NOT NULL,
    PRIMARY KEY (sink, vehicle_id)
) STRICT, WITHOUT ROWID;

CREATE TABLE published (
    place TEXT NOT NULL,
    slug TEXT NOT NULL,
    leaves TEXT NOT NULL, -- names without spaces, sorted, a space between them; so are those below
    gone TEXT NOT NULL,
    digest BLOB NOT NULL,
    PRIMARY KEY (place, slug)
) STRICT, WITHOUT ROWID;

CREATE TABLE mark (
    sink TEXT PRIMARY KEY,
    mark TEXT NOT NULL
) STRICT, WITHOUT ROWID;
