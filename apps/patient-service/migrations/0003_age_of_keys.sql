-- When PostgreSQL's clock was looked at last, by whichever replica. There is one row.
CREATE TABLE clock_looks (
    only_row boolean PRIMARY KEY DEFAULT true CHECK (only_row),
    looked_at timestamptz NOT NULL
);
INSERT INTO clock_looks (looked_at) VALUES (now());

-- Times by that clock in which nobody looked, because it was set forward or no replica ran. Idempotency keys do not age in
-- them.
CREATE TABLE clock_gaps (
    began_at timestamptz PRIMARY KEY,
    ended_at timestamptz NOT NULL
);
