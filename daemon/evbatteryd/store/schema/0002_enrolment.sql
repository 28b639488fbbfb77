-- Consents on their way, what is known of a vehicle since, and the webhook deliveries that were taken.
-- Tokens and states are secrets of those who hold them: only their SHA-256 digests are kept.

ALTER TABLE vehicle ADD COLUMN renewed_ms INTEGER;
ALTER TABLE vehicle ADD COLUMN invited TEXT;
ALTER TABLE vehicle ADD COLUMN former_slugs TEXT; -- a JSON array, oldest first; NULL: none
ALTER TABLE vehicle ADD COLUMN subscription TEXT;
-- Few vehicles are ever given another slug: whoever chooses one looks at those alone.
CREATE INDEX vehicle_with_former_slugs ON vehicle (former_slugs) WHERE former_slugs IS NOT NULL;

ALTER TABLE latest ADD COLUMN pushed_ms INTEGER;

-- AUTOINCREMENT, here and below: a page or a terminal that still holds an id never means another by it.
CREATE TABLE invitation (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    token BLOB NOT NULL UNIQUE,
    name TEXT NOT NULL,
    application_id INTEGER NOT NULL REFERENCES application,
    created_ms INTEGER NOT NULL,
    expires_ms INTEGER NOT NULL,
    used_ms INTEGER,
    revoked_ms INTEGER
) STRICT;

CREATE TABLE enrolment (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    state BLOB NOT NULL UNIQUE,
    browser BLOB,
    application_id INTEGER NOT NULL REFERENCES application,
    invitation_id INTEGER REFERENCES invitation,
    begun_ms INTEGER NOT NULL,
    expires_ms INTEGER NOT NULL,
    ended_ms INTEGER, -- NULL, like the ending, until Connect has answered
    ending TEXT,
    user_ref TEXT,
    arrived_ms INTEGER
) STRICT;
CREATE INDEX enrolment_of_invitation ON enrolment (invitation_id) WHERE invitation_id IS NOT NULL;
CREATE INDEX enrolment_awaited ON enrolment (ended_ms) WHERE ending = 'consented' AND arrived_ms IS NULL;

CREATE TABLE webhook_event (
    event_id TEXT PRIMARY KEY,
    at_ms INTEGER NOT NULL
) STRICT, WITHOUT ROWID;
CREATE INDEX webhook_event_at ON webhook_event (at_ms);
