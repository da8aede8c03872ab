-- Counts belong to a partition, so that it can leave this instance and return. Partition -1 has the counts of a state of
-- before, until what they are made of is known by partition.
CREATE TABLE totals_by_partition (
    partition INTEGER PRIMARY KEY,
    active INTEGER NOT NULL,
    created INTEGER NOT NULL,
    updated INTEGER NOT NULL,
    deleted INTEGER NOT NULL,
    unknown INTEGER NOT NULL,
    -- Milliseconds after 1970-01-01; the lowest number where there is none.
    last_event INTEGER NOT NULL
);
INSERT INTO totals_by_partition (partition, active, created, updated, deleted, unknown, last_event)
SELECT
    -1,
    coalesce(sum(value) FILTER (WHERE name = 'active'), 0),
    coalesce(sum(value) FILTER (WHERE name = 'created'), 0),
    coalesce(sum(value) FILTER (WHERE name = 'updated'), 0),
    coalesce(sum(value) FILTER (WHERE name = 'deleted'), 0),
    coalesce(sum(value) FILTER (WHERE name = 'unknown'), 0),
    coalesce(sum(value) FILTER (WHERE name = 'last_event'), -9223372036854775808)
FROM totals
HAVING count(*) > 0;
DROP TABLE totals;
ALTER TABLE totals_by_partition RENAME TO totals;

CREATE TABLE births_by_partition (
    partition INTEGER NOT NULL,
    year INTEGER NOT NULL,
    patients INTEGER NOT NULL,
    PRIMARY KEY (partition, year)
) WITHOUT ROWID;
INSERT INTO births_by_partition (partition, year, patients) SELECT -1, year, patients FROM births;
DROP TABLE births;
ALTER TABLE births_by_partition RENAME TO births;

CREATE TABLE registrations_by_partition (
    partition INTEGER NOT NULL,
    date INTEGER NOT NULL,
    patients INTEGER NOT NULL,
    PRIMARY KEY (partition, date)
) WITHOUT ROWID;
INSERT INTO registrations_by_partition (partition, date, patients) SELECT -1, date, patients FROM registrations;
DROP TABLE registrations;
ALTER TABLE registrations_by_partition RENAME TO registrations;

-- The partitions that the counts of partition -1 are from. What is known of a patient has its partition (4 bytes) at its end;
-- a patient without one is counted in partition -1.
CREATE TABLE unsplit (partition INTEGER PRIMARY KEY);
INSERT INTO unsplit (partition) SELECT partition FROM positions WHERE next > 0;
