-- The epoch of the leader that appended the last batch before the position: a log that was truncated does not have as many
-- records of it. Null where brokers have none, and in a state of before until the next batch.
ALTER TABLE positions ADD COLUMN leader_epoch INTEGER;
