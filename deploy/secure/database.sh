# Starts PostgreSQL in a container of the secure system: with its certificate, and with the roles of its database.

# PostgreSQL takes a key that nobody else can read: a copy, because what is mounted belongs to another user.
install -m 600 /etc/tls/server.key /tmp/server.key

# At every start, because a database that is there already may have been made by a version that had one role.
roles() {
    sed -e "s/{database}/$POSTGRES_DB/g; s/{service}/$SERVICE_ROLE/g; s/{owner}/$SERVICE_ROLE-owner/g" /etc/postgresql/roles.sql |
        psql --quiet --single-transaction -v ON_ERROR_STOP=1 -U "$POSTGRES_USER" -d "$POSTGRES_DB"
}
# It fails until the server has started and has the database.
(until roles 2>/tmp/roles.log; do sleep 0.5; done) &

exec docker-entrypoint.sh "$@"
