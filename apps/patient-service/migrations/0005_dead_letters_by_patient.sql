-- The deletion of a patient deletes its dead-lettered events.
CREATE INDEX outbox_dead_letters_patient_id ON outbox_dead_letters (patient_id);
