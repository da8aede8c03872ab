-- Patients, and what has to happen because of them.

-- Trigrams make a search for any part of a name or an email use an index. The owner of a database may create it.
CREATE EXTENSION IF NOT EXISTS pg_trgm;

CREATE TABLE patients (
    id uuid PRIMARY KEY,
    name text NOT NULL,
    email text NOT NULL,
    address text NOT NULL,
    date_of_birth date NOT NULL,
    registered_date date NOT NULL,
    -- 1 at the creation, one more with each change: the entity tag, and the order of events.
    version bigint NOT NULL DEFAULT 1
);

-- Emails are unique whatever their case. The service knows the violation by this name.
CREATE UNIQUE INDEX patients_email_key ON patients (lower(email));

-- One for each order in which patients are listed.
CREATE INDEX patients_by_name ON patients (name, id);
CREATE INDEX patients_by_date_of_birth ON patients (date_of_birth, id);
CREATE INDEX patients_by_registered_date ON patients (registered_date, id);

-- The searched text: each field begins with a unit separator, which is no letter, so that trigrams know where it begins.
-- A short pending list bounds what a search must read of it, and what an insert that empties it must do.
CREATE INDEX patients_search ON patients
    USING gin ((E'\x1f' || lower(name) || E'\x1f' || lower(email)) gin_trgm_ops)
    WITH (gin_pending_list_limit = 256);

-- Events on their way to Kafka, written in the same commit as the change they tell of, deleted after the broker's
-- acknowledgement. Ids of one patient's events grow with its versions; between patients they only nearly tell the time.
CREATE TABLE outbox (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    patient_id uuid NOT NULL,
    -- Of the patient's id, as Kafka's partitioner has it.
    key_hash integer NOT NULL,
    event_id uuid NOT NULL,
    event_type text NOT NULL,
    value bytea NOT NULL,
    traceparent text,
    created_at timestamptz NOT NULL DEFAULT now()
);

-- Events that the broker refuses for good.
CREATE TABLE outbox_dead_letters (
    id bigint PRIMARY KEY,
    patient_id uuid NOT NULL,
    key_hash integer NOT NULL,
    event_id uuid NOT NULL,
    event_type text NOT NULL,
    value bytea NOT NULL,
    traceparent text,
    created_at timestamptz NOT NULL,
    error text NOT NULL,
    refused_at timestamptz NOT NULL DEFAULT now()
);

-- Who sends the events of a shard of the outbox, and until when the others leave it to them.
CREATE TABLE relay_leases (
    shard integer PRIMARY KEY,
    holder uuid NOT NULL,
    expires_at timestamptz NOT NULL
);

-- What the billing service has to be told, one row a patient: the newest wish counts.
CREATE TABLE billing_tasks (
    patient_id uuid PRIMARY KEY,
    action text NOT NULL CHECK (action IN ('OPEN', 'CLOSE')),
    -- Of a patient who is gone; the others' are in their own row.
    name text,
    email text,
    traceparent text,
    attempts integer NOT NULL DEFAULT 0,
    next_attempt_at timestamptz NOT NULL,
    CHECK (action = 'OPEN' OR (name IS NOT NULL AND email IS NOT NULL))
);
CREATE INDEX billing_tasks_due ON billing_tasks (next_attempt_at);

-- Which patient a request with an Idempotency-Key has made. The fingerprint tells a repetition from another request.
CREATE TABLE idempotency_keys (
    key text CONSTRAINT idempotency_keys_pkey PRIMARY KEY,
    fingerprint bytea NOT NULL,
    patient_id uuid NOT NULL,
    created_at timestamptz NOT NULL DEFAULT now()
);
CREATE INDEX idempotency_keys_by_age ON idempotency_keys (created_at);
