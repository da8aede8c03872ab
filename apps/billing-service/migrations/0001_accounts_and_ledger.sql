-- An account for each patient. Nothing looks an account up by its own id, so that one index is enough.
CREATE TABLE accounts (
    patient_id uuid PRIMARY KEY,
    id uuid NOT NULL,
    name text NOT NULL,
    email text NOT NULL,
    status text NOT NULL DEFAULT 'ACTIVE' CHECK (status IN ('ACTIVE', 'CLOSED')),
    opened_at timestamptz NOT NULL DEFAULT now(),
    closed_at timestamptz
);

-- The ledger: entries are added and never changed.
CREATE TABLE transactions (
    position bigint GENERATED ALWAYS AS IDENTITY,
    patient_id uuid NOT NULL REFERENCES accounts,
    transaction_id text NOT NULL,
    type text NOT NULL CHECK (type IN ('CHARGE', 'PAYMENT', 'REFUND')),
    amount bigint NOT NULL CHECK (amount > 0),
    currency text NOT NULL,
    recorded_at timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (patient_id, position),
    CONSTRAINT transactions_id_key UNIQUE (patient_id, transaction_id)
);

-- What the patient owes: the sum of the ledger, kept in the statement that adds an entry.
CREATE TABLE balances (
    patient_id uuid NOT NULL REFERENCES accounts,
    currency text NOT NULL,
    amount bigint NOT NULL,
    PRIMARY KEY (patient_id, currency)
);
