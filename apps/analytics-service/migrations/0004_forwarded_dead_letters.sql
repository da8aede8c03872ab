-- Once a dead letter is on its topic, its content is there alone. How long its value was is still listed.
ALTER TABLE dead_letters ADD COLUMN value_bytes INTEGER NOT NULL DEFAULT 0;

UPDATE dead_letters SET value_bytes = octet_length(value) WHERE value IS NOT NULL;

UPDATE dead_letters SET key = NULL, value = NULL, headers = '[]' WHERE forwarded = 1;
