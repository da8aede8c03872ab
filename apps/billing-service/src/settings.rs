use config::Reader;

/// The settings of the service.
#[derive(Clone, Debug)]
pub struct Settings {
    /// The HTTP server, for health and metrics.
    pub http: web::Settings,
    /// The gRPC server.
    pub grpc: ::grpc::ServerSettings,
    /// The database.
    pub database: postgres::Settings,
    /// OpenTelemetry.
    pub otlp: otlp::Settings,
}

impl Settings {
    /// Reads every setting.
    pub fn read(reader: &mut Reader) -> Self {
        let http = web::Settings::read_for_operations(reader, "4001");
        let grpc = ::grpc::ServerSettings::read(reader, "9001", http.limits.drain);
        http.auth.check_address(reader, "GRPC_SERVER_ADDRESS", grpc.address.ip());
        let example = "postgres://billing:password@localhost:5432/billing";
        let database = postgres::Settings::read(reader, example, "billing-service");
        Self { http, grpc, database, otlp: otlp::Settings::read(reader, "billing-service") }
    }
}
