-- Which topic an offset belongs to: one that was deleted and made again under the same name has another id. Null where
-- brokers have none, and in a state of before until the topic is read again.
ALTER TABLE positions ADD COLUMN topic_id BLOB;
