-- What is known of a patient is one value now: to cut out and read four numbers cost SQLite as much as the rest of a row.
CREATE TABLE remembered (
    id BLOB PRIMARY KEY,
    -- One after the other, numbers with their high bytes first: the version (8 bytes), whether the patient is registered (1),
    -- the year of birth (4; 0 if it is not known), the date of registration (4; 0001-01-01 if it is not known).
    known BLOB NOT NULL
) WITHOUT ROWID;

INSERT INTO remembered (id, known)
SELECT id, unhex(printf(
    '%016x%02x%s%s',
    version,
    active,
    substr(printf('%016x', coalesce(birth_year, 0)), -8),
    substr(printf('%016x', coalesce(registered, -719162)), -8)
))
FROM patients;

DROP TABLE patients;

ALTER TABLE remembered RENAME TO patients;
