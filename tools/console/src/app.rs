//! What every handler can use.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use futures_util::future::join_all;
use runtime::Shutdown;
use tide::Request;
use web::StreamSlots;

use crate::{
    Settings,
    address::HostAddress,
    assets::Assets,
    client::{self, RequestError, ServiceRequest, ServiceResponse},
    forward::Forwarder,
    journey::{self, Journey},
    lab::Lab,
    load::Load,
    map::{ANALYTICS, Map, PATIENTS, SERVICES},
    scrape::UNSAMPLED,
    session::{Identity, Session},
    store::{Store, TraceId},
};

/// Time for a service to answer what a person asks.
const TIMEOUT: Duration = Duration::from_secs(10);
/// Most streams: one for each open tab.
const MAX_STREAMS: usize = 32;
/// Bytes of its answer at most: 1,000 patients have some hundred KiB.
const MAX_ANSWER: usize = 2 * 1024 * 1024;

/// The console. Clones are the same.
#[derive(Clone)]
pub(crate) struct App {
    inner: Arc<Inner>,
    /// The person for whom it acts; in a secure system without one, it acts as the console's own user.
    session: Option<Session>,
}

struct Inner {
    assets: Assets,
    settings: Settings,
    /// Of a secure system.
    identity: Option<Identity>,
    store: Store,
    map: Map,
    forwarder: Option<Forwarder>,
    lab: Lab,
    load: Load,
    streams: StreamSlots,
    shutdown: Shutdown,
}

impl App {
    pub(crate) fn new(
        settings: Settings,
        identity: Option<Identity>,
        store: Store,
        map: Map,
        forwarder: Option<Forwarder>,
        shutdown: Shutdown,
    ) -> Self {
        let assets = Assets::new(settings.assets.clone());
        let (lab, load, streams) = (Lab::default(), Load::default(), StreamSlots::new(MAX_STREAMS));
        let inner = Inner { assets, settings, identity, store, map, forwarder, lab, load, streams, shutdown };
        Self { inner: Arc::new(inner), session: None }
    }

    /// The console as it acts for whoever sends a request.
    pub(crate) fn of(request: &Request<Self>) -> Self {
        let app = request.state();
        let session = app.inner.identity.as_ref().and_then(|identity| identity.session(request));
        Self { session, ..app.clone() }
    }

    /// Sessions and the console's own user, in a secure system.
    pub(crate) fn identity(&self) -> Option<&Identity> {
        self.inner.identity.as_ref()
    }

    /// Who has logged in.
    pub(crate) fn session(&self) -> Option<&Session> {
        self.session.as_ref()
    }

    pub(crate) fn lab(&self) -> &Lab {
        &self.inner.lab
    }

    pub(crate) fn load(&self) -> &Load {
        &self.inner.load
    }

    pub(crate) fn stream_slots(&self) -> &StreamSlots {
        &self.inner.streams
    }

    pub(crate) fn assets(&self) -> &Assets {
        &self.inner.assets
    }

    pub(crate) fn settings(&self) -> &Settings {
        &self.inner.settings
    }

    pub(crate) fn store(&self) -> &Store {
        &self.inner.store
    }

    pub(crate) fn map(&self) -> &Map {
        &self.inner.map
    }

    pub(crate) fn forwarder(&self) -> Option<&Forwarder> {
        self.inner.forwarder.as_ref()
    }

    pub(crate) fn shutdown(&self) -> &Shutdown {
        &self.inner.shutdown
    }

    /// Asks patient-service.
    ///
    /// # Errors
    /// If it does not answer.
    pub(crate) async fn call_patient_service(
        &self,
        request: ServiceRequest<'_>,
    ) -> Result<ServiceResponse, RequestError> {
        self.call(PATIENTS, request).await
    }

    /// Asks every analytics-service, each of which knows its own partitions; at least one answer or error.
    pub(crate) async fn call_each_analytics_service(
        &self,
        request: ServiceRequest<'_>,
    ) -> Vec<Result<ServiceResponse, RequestError>> {
        let (host, addresses) = self.replicas(ANALYTICS).await;
        if addresses.is_empty() {
            return vec![Err(RequestError::new(format!("{host}: its name has no address")))];
        }
        join_all(addresses.iter().map(|address| self.send(ANALYTICS, *address, &host, request.clone()))).await
    }

    /// Asks a replica of a service, if there is one one that has just answered.
    async fn call(&self, service: usize, request: ServiceRequest<'_>) -> Result<ServiceResponse, RequestError> {
        let (host, addresses) = self.replicas(service).await;
        let address = addresses.first().ok_or_else(|| RequestError::new("its name has no address"))?;
        self.send(service, *address, &host, request).await
    }

    /// The addresses of a service, those first that have just answered, and its name.
    async fn replicas(&self, service: usize) -> (String, Vec<SocketAddr>) {
        let Settings { patients, analytics, .. } = &self.inner.settings;
        let hosts = if service == PATIENTS { patients } else { analytics };
        // What is scraped of a secure service is its operations port.
        let scraped = self.inner.identity.is_none();
        let mut addresses = if scraped { self.inner.map.addresses(service) } else { Vec::new() };
        if addresses.is_empty() {
            let places: Vec<_> = hosts.0.iter().cloned().map(HostAddress).collect();
            let found = join_all(places.iter().map(HostAddress::resolve)).await;
            addresses = found.into_iter().flatten().flatten().collect();
        }
        (hosts.0[0].to_string(), addresses)
    }

    async fn send(
        &self,
        service: usize,
        address: SocketAddr,
        host: &str,
        request: ServiceRequest<'_>,
    ) -> Result<ServiceResponse, RequestError> {
        let authorization = match (&self.session, &self.inner.identity) {
            (Some(session), _) => Some(session.authorization()),
            (None, Some(identity)) => Some(identity.own().await?.authorization()),
            (None, None) => None,
        };
        let token = authorization.as_deref().map(|value| ("authorization", value));
        let headers: Vec<_> = request.headers.iter().copied().chain(token).collect();
        let request = ServiceRequest { headers: &headers, ..request };
        let tls = self.inner.identity.as_ref().map(Identity::tls);
        let answer = client::send(address, host, tls, request, MAX_ANSWER, TIMEOUT).await;
        answer.map_err(|error| RequestError::new(format!("{} at {address}: {error}", SERVICES[service])))
    }

    /// A journey as it is now; none if nothing is known of the trace.
    pub(crate) fn journey(&self, id: &TraceId) -> Option<Journey> {
        let system = self.inner.map.system_status(std::time::SystemTime::now());
        self.inner.store.read(id, |trace, lines| journey::journey(id, trace, lines, &system))
    }

    /// Reads the patient of a journey that has been delivered, which proves the last thing about it. Once for each journey.
    pub(crate) async fn read_back(&self, id: &TraceId, journey: &Journey) {
        let Some(patient) = journey.patient_to_read_back() else { return };
        let path = format!("/patients/{patient}");
        // An outage leaves the proof to the next look.
        let Ok(answer) = self.call_patient_service(ServiceRequest::get(&path, &[UNSAMPLED])).await else { return };
        let version = match answer.status {
            200 => answer.header("etag").and_then(version_of),
            404 => Some(0),
            _ => None,
        };
        if let Some(version) = version {
            self.inner.store.update(*id, |trace| trace.read_back = Some(version));
        }
    }
}

/// The version that patient-service's entity tags name.
pub(crate) fn version_of(tag: &str) -> Option<i64> {
    tag.trim_matches('"').parse().ok()
}
