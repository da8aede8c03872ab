use crate::{Database, Error, query};

/// How far a sequence is set beyond what is necessary, because others may take values between the comparison and the update.
const MARGIN: i64 = 1_000;

impl Database {
    /// Sets a sequence to more than `value` if it is behind it, as after a switchover that has not copied it.
    ///
    /// # Errors
    /// As those of [`transaction`](Self::transaction).
    pub async fn move_sequence_past(&self, sequence: &'static str, value: i64) -> Result<(), Error> {
        let advance = self.transaction(async |transaction| {
            // Another replica may move it further between the comparison and the update, which would then move it back.
            let lock = "-- lock sequence\nSELECT pg_advisory_xact_lock($1::regclass::oid::bigint)";
            query(lock).bind(sequence).execute(&mut *transaction).await?;
            let advance = "-- move sequence
                SELECT setval($1::regclass, $2) WHERE coalesce(pg_sequence_last_value($1::regclass), 0) < $2";
            query(advance).bind(sequence).bind(value.saturating_add(MARGIN)).execute(&mut *transaction).await
        });
        advance.await.map(drop)
    }
}
