-- How often billing has rejected the task itself, in contrast to not answering.
ALTER TABLE billing_tasks ADD COLUMN rejections integer NOT NULL DEFAULT 0;

-- Tasks that billing rejects for good. One row a patient: the newest wish counts here too.
CREATE TABLE billing_task_dead_letters (
    patient_id uuid PRIMARY KEY,
    action text NOT NULL CHECK (action IN ('OPEN', 'CLOSE')),
    name text,
    email text,
    traceparent text,
    attempts integer NOT NULL,
    error text NOT NULL,
    dead_lettered_at timestamptz NOT NULL DEFAULT now(),
    CHECK (action = 'OPEN' OR (name IS NOT NULL AND email IS NOT NULL))
);
