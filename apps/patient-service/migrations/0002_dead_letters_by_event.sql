-- Ids of the outbox can be given again, after a restore or a failover: only together with its event's id does one name a
-- dead letter.
ALTER TABLE outbox_dead_letters DROP CONSTRAINT outbox_dead_letters_pkey, ADD PRIMARY KEY (id, event_id);
