-- What analytics knows. Everything here follows from the topic: deleting the file means reading the topic again.

-- What is remembered of each patient, deleted ones included, to tell repeated and late events.
CREATE TABLE patients (
    id BLOB PRIMARY KEY,
    version INTEGER NOT NULL,
    active INTEGER NOT NULL,
    birth_year INTEGER,
    -- Days after 1970-01-01, as all dates here.
    registered INTEGER
) WITHOUT ROWID;

-- Counts by kind of event, and the time of the last event in milliseconds after 1970-01-01.
CREATE TABLE totals (name TEXT PRIMARY KEY, value INTEGER NOT NULL) WITHOUT ROWID;

-- Active patients by year of birth; 0 where it is not known.
CREATE TABLE births (year INTEGER PRIMARY KEY, patients INTEGER NOT NULL);

-- Registrations by date; 0001-01-01 where it is not known.
CREATE TABLE registrations (date INTEGER PRIMARY KEY, patients INTEGER NOT NULL);

-- The next offset of each partition, with the timestamp of the record before it: another one there means another topic.
CREATE TABLE positions (
    partition INTEGER PRIMARY KEY,
    next INTEGER NOT NULL,
    last_timestamp INTEGER
);

-- Records that are no events, until they are on the topic of dead letters, and some of them longer.
CREATE TABLE dead_letters (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    partition INTEGER NOT NULL,
    "offset" INTEGER NOT NULL,
    key BLOB,
    value BLOB,
    -- A JSON object of names and hexadecimal bytes.
    headers TEXT NOT NULL,
    error TEXT NOT NULL,
    -- Milliseconds after 1970-01-01.
    parked_at INTEGER NOT NULL,
    forwarded INTEGER NOT NULL DEFAULT 0
);
CREATE INDEX dead_letters_waiting ON dead_letters (id) WHERE forwarded = 0;
