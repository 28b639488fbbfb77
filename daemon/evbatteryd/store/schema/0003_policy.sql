-- What the polling policy has learnt: of each vehicle, and across the vehicles of each application.

ALTER TABLE latest ADD COLUMN gain REAL NOT NULL DEFAULT 0;
ALTER TABLE latest ADD COLUMN learned BLOB; -- NULL: nothing yet

-- A table of its own: the row of an application is written anew with every request.
CREATE TABLE lore (
    application_id INTEGER PRIMARY KEY REFERENCES application,
    lore BLOB NOT NULL
) STRICT;
