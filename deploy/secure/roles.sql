-- Two roles for one database: its owner, which migrates, and its service, which may read and write rows and nothing else. A
-- superuser executes this in the database, after {database}, {service} and {owner} are replaced; it can be repeated.
DO $$
BEGIN
    IF NOT EXISTS (SELECT FROM pg_roles WHERE rolname = '{owner}') THEN
        CREATE ROLE "{owner}" LOGIN;
    END IF;
    IF NOT EXISTS (SELECT FROM pg_roles WHERE rolname = '{service}') THEN
        CREATE ROLE "{service}" LOGIN;
    END IF;
    -- Tables that the service owns, because it migrated them itself before.
    IF EXISTS (SELECT FROM pg_class WHERE relkind = 'r' AND relowner = '"{service}"'::regrole) THEN
        REASSIGN OWNED BY "{service}" TO "{owner}";
        GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA public TO "{service}";
        GRANT SELECT, UPDATE ON ALL SEQUENCES IN SCHEMA public TO "{service}";
    END IF;
END $$;
ALTER DATABASE "{database}" OWNER TO "{owner}";
REVOKE ALL ON DATABASE "{database}" FROM PUBLIC;
GRANT CONNECT ON DATABASE "{database}" TO "{service}";
ALTER SCHEMA public OWNER TO "{owner}";
REVOKE ALL ON SCHEMA public FROM PUBLIC;
GRANT USAGE ON SCHEMA public TO "{service}";
-- Of the tables and sequences that migrations will create. patient-service and billing-service
-- move a sequence forward that went back in a failover.
ALTER DEFAULT PRIVILEGES FOR ROLE "{owner}" IN SCHEMA public GRANT SELECT, INSERT, UPDATE, DELETE ON TABLES TO "{service}";
ALTER DEFAULT PRIVILEGES FOR ROLE "{owner}" IN SCHEMA public GRANT SELECT, UPDATE ON SEQUENCES TO "{service}";
