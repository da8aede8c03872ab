//! Versions of requests that this client and a broker have in common.

use std::{collections::BTreeMap, ops::RangeInclusive};

use kafka_protocol::{
    messages::{
        ApiKey, ApiVersionsRequest, ApiVersionsResponse, FetchRequest, FetchResponse, ListOffsetsRequest,
        ListOffsetsResponse, MetadataRequest, MetadataResponse, OffsetForLeaderEpochRequest,
        OffsetForLeaderEpochResponse, ProduceRequest, ProduceResponse, SaslAuthenticateRequest,
        SaslAuthenticateResponse, SaslHandshakeRequest, SaslHandshakeResponse,
    },
    protocol::{Decodable, Encodable, HeaderVersion},
};

/// A request of this client, with its response.
pub(crate) trait Request: Encodable + HeaderVersion {
    /// Its API key.
    const KEY: ApiKey;
    /// The versions that this client supports.
    const SUPPORTED: RangeInclusive<i16>;
    /// Its response.
    type Response: Decodable + HeaderVersion;
    /// For how many milliseconds the broker mutes the connection after the response.
    fn throttle_ms(response: &Self::Response) -> i32;
}

/// Implements [`Request`] for requests with their response, API key and supported versions. The response has a throttle time.
macro_rules! requests {
    ($($request:ident => $response:ident, $key:ident, $versions:expr;)*) => {
        $(impl $crate::versions::Request for $request {
            const KEY: ::kafka_protocol::messages::ApiKey = ::kafka_protocol::messages::ApiKey::$key;
            const SUPPORTED: ::std::ops::RangeInclusive<i16> = $versions;
            type Response = $response;

            fn throttle_ms(response: &Self::Response) -> i32 {
                response.throttle_time_ms
            }
        })*
    };
}
pub(crate) use requests;

requests! {
    ApiVersionsRequest => ApiVersionsResponse, ApiVersions, 0..=4;
    // Since version 4 the request can turn off automatic topic creation.
    MetadataRequest => MetadataResponse, Metadata, 4..=13;
    // Since version 3 batches have magic 2.
    ProduceRequest => ProduceResponse, Produce, 3..=13;
    // Since version 4 batches have magic 2.
    FetchRequest => FetchResponse, Fetch, 4..=18;
    // Since version 2 the request has an isolation level.
    ListOffsetsRequest => ListOffsetsResponse, ListOffsets, 2..=10;
    // Since version 3 a consumer needs no permission of its own for it.
    OffsetForLeaderEpochRequest => OffsetForLeaderEpochResponse, OffsetForLeaderEpoch, 3..=4;
}

/// Implements [`Request`] for requests whose response has no throttle time.
macro_rules! unthrottled_requests {
    ($($request:ident => $response:ident, $key:ident, $versions:expr;)*) => {
        $(impl Request for $request {
            const KEY: ApiKey = ApiKey::$key;
            const SUPPORTED: RangeInclusive<i16> = $versions;
            type Response = $response;

            fn throttle_ms(_: &Self::Response) -> i32 {
                0
            }
        })*
    };
}

unthrottled_requests! {
    // Since version 1 the messages of the mechanism are requests of their own.
    SaslHandshakeRequest => SaslHandshakeResponse, SaslHandshake, 1..=1;
    SaslAuthenticateRequest => SaslAuthenticateResponse, SaslAuthenticate, 0..=2;
}

/// The last version with topic names instead of topic ids.
pub(crate) const FETCH_BY_NAME: i16 = 12;
/// The last version with topic names instead of topic ids.
pub(crate) const PRODUCE_BY_NAME: i16 = 12;

/// The versions of each request that the broker of a connection supports.
#[derive(Debug, Default)]
pub(crate) struct Versions(BTreeMap<i16, RangeInclusive<i16>>);

impl Versions {
    /// The versions of a response.
    pub(crate) fn new(response: &ApiVersionsResponse) -> Self {
        Self(response.api_keys.iter().map(|api| (api.api_key, api.min_version..=api.max_version)).collect())
    }

    /// The highest common version, up to `max`.
    pub(crate) fn highest<Q: Request>(&self, max: i16) -> Option<i16> {
        let theirs = self.0.get(&(Q::KEY as i16))?;
        let highest = max.min(*Q::SUPPORTED.end()).min(*theirs.end());
        (highest >= *Q::SUPPORTED.start() && highest >= *theirs.start()).then_some(highest)
    }

    /// The versions that the broker supports, for an error message.
    pub(crate) fn describe<Q: Request>(&self) -> String {
        match self.0.get(&(Q::KEY as i16)) {
            Some(theirs) => format!("{:?} in versions {} to {}", Q::KEY, theirs.start(), theirs.end()),
            None => format!("no {:?}", Q::KEY),
        }
    }
}

#[cfg(test)]
mod tests {
    use kafka_protocol::{
        messages::api_versions_response::ApiVersion,
        protocol::{Message, VersionRange},
    };

    use super::*;

    fn versions(fetch: RangeInclusive<i16>) -> Versions {
        let fetch = ApiVersion::default()
            .with_api_key(ApiKey::Fetch as i16)
            .with_min_version(*fetch.start())
            .with_max_version(*fetch.end());
        Versions::new(&ApiVersionsResponse::default().with_api_keys(vec![fetch]))
    }

    #[test]
    fn the_highest_common_version_is_used() {
        let highest = |fetch, max| versions(fetch).highest::<FetchRequest>(max);
        assert_eq!(highest(0..=11, i16::MAX), Some(11));
        assert_eq!(highest(4..=99, i16::MAX), Some(18));
        assert_eq!(highest(4..=18, FETCH_BY_NAME), Some(12));
        assert_eq!(highest(13..=18, FETCH_BY_NAME), None);
        assert_eq!(highest(0..=3, i16::MAX), None);
        assert_eq!(highest(19..=25, i16::MAX), None);
        assert_eq!(versions(4..=18).highest::<ProduceRequest>(i16::MAX), None);
    }

    #[test]
    fn supported_versions_can_be_encoded_and_decoded() {
        fn holds<Q: Request + Message>()
        where
            Q::Response: Message,
        {
            let VersionRange { min, max } = Q::VERSIONS.intersect(&Q::Response::VERSIONS);
            assert!(min <= *Q::SUPPORTED.start() && *Q::SUPPORTED.end() == max, "{:?}", Q::KEY);
        }
        holds::<ApiVersionsRequest>();
        holds::<MetadataRequest>();
        holds::<ProduceRequest>();
        holds::<FetchRequest>();
        holds::<ListOffsetsRequest>();
        holds::<OffsetForLeaderEpochRequest>();
        holds::<SaslHandshakeRequest>();
        holds::<SaslAuthenticateRequest>();
    }
}
