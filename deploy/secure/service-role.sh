# When the data directory is made: a role for the service, which owns its database and can do nothing beyond that.
psql -v ON_ERROR_STOP=1 -v role="$SERVICE_ROLE" -v database="$POSTGRES_DB" -U "$POSTGRES_USER" -d "$POSTGRES_DB" <<'SQL'
CREATE ROLE :"role" LOGIN;
ALTER DATABASE :"database" OWNER TO :"role";
REVOKE ALL ON DATABASE :"database" FROM PUBLIC;
SQL
