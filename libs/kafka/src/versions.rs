//! Which version of each request a broker and this client both speak.

use std::{collections::BTreeMap, ops::RangeInclusive};

use kafka_protocol::{
    messages::{
        ApiKey, ApiVersionsRequest, ApiVersionsResponse, FetchRequest, FetchResponse, ListOffsetsRequest,
        ListOffsetsResponse, MetadataRequest, MetadataResponse, ProduceRequest, ProduceResponse,
    },
    protocol::{Decodable, Encodable, HeaderVersion},
};

/// A request of this client's, with its answer.
pub(crate) trait Request: Encodable + HeaderVersion {
    /// Its number.
    const KEY: ApiKey;
    /// The versions that this client speaks.
    const SPOKEN: RangeInclusive<i16>;
    /// What it is answered with.
    type Answer: Decodable + HeaderVersion;
    /// For how long the broker reads nothing of the connection after this answer, in milliseconds.
    fn throttle_ms(answer: &Self::Answer) -> i32;
}

impl Request for ApiVersionsRequest {
    const KEY: ApiKey = ApiKey::ApiVersions;
    const SPOKEN: RangeInclusive<i16> = 0..=4;
    type Answer = ApiVersionsResponse;

    fn throttle_ms(answer: &Self::Answer) -> i32 {
        answer.throttle_time_ms
    }
}

impl Request for MetadataRequest {
    const KEY: ApiKey = ApiKey::Metadata;
    /// From the first that can be asked not to make the topic.
    const SPOKEN: RangeInclusive<i16> = 4..=13;
    type Answer = MetadataResponse;

    fn throttle_ms(answer: &Self::Answer) -> i32 {
        answer.throttle_time_ms
    }
}

impl Request for ProduceRequest {
    const KEY: ApiKey = ApiKey::Produce;
    /// From the first that takes batches in version 2 of their format.
    const SPOKEN: RangeInclusive<i16> = 3..=13;
    type Answer = ProduceResponse;

    fn throttle_ms(answer: &Self::Answer) -> i32 {
        answer.throttle_time_ms
    }
}

impl Request for FetchRequest {
    const KEY: ApiKey = ApiKey::Fetch;
    /// From the first that gives batches in version 2 of their format.
    const SPOKEN: RangeInclusive<i16> = 4..=18;
    type Answer = FetchResponse;

    fn throttle_ms(answer: &Self::Answer) -> i32 {
        answer.throttle_time_ms
    }
}

impl Request for ListOffsetsRequest {
    const KEY: ApiKey = ApiKey::ListOffsets;
    /// From the first that knows of transactions.
    const SPOKEN: RangeInclusive<i16> = 2..=10;
    type Answer = ListOffsetsResponse;

    fn throttle_ms(answer: &Self::Answer) -> i32 {
        answer.throttle_time_ms
    }
}

/// The last versions of requests that name a topic instead of giving its id.
pub(crate) const FETCH_BY_NAME: i16 = 12;
/// See [`FETCH_BY_NAME`].
pub(crate) const PRODUCE_BY_NAME: i16 = 12;

/// The versions of each request that the broker at the other end of a connection speaks.
#[derive(Debug, Default)]
pub(crate) struct Versions(BTreeMap<i16, RangeInclusive<i16>>);

impl Versions {
    /// What a broker has answered.
    pub(crate) fn new(answer: &ApiVersionsResponse) -> Self {
        Self(answer.api_keys.iter().map(|api| (api.api_key, api.min_version..=api.max_version)).collect())
    }

    /// The highest version, up to `most`, that both speak; none if there is none.
    pub(crate) fn highest<Q: Request>(&self, most: i16) -> Option<i16> {
        let theirs = self.0.get(&(Q::KEY as i16))?;
        let highest = most.min(*Q::SPOKEN.end()).min(*theirs.end());
        (highest >= *Q::SPOKEN.start() && highest >= *theirs.start()).then_some(highest)
    }

    /// What the broker speaks of a request, in words.
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
    fn the_highest_that_both_speak_is_taken() {
        let highest = |fetch, most| versions(fetch).highest::<FetchRequest>(most);
        assert_eq!(highest(0..=11, i16::MAX), Some(11));
        assert_eq!(highest(4..=99, i16::MAX), Some(18));
        assert_eq!(highest(4..=18, FETCH_BY_NAME), Some(12));
        assert_eq!(highest(13..=18, FETCH_BY_NAME), None);
        assert_eq!(highest(0..=3, i16::MAX), None);
        assert_eq!(highest(19..=25, i16::MAX), None);
        assert_eq!(versions(4..=18).highest::<ProduceRequest>(i16::MAX), None);
    }

    #[test]
    fn what_this_client_speaks_can_be_encoded_and_decoded() {
        fn holds<Q: Request + Message>()
        where
            Q::Answer: Message,
        {
            let VersionRange { min, max } = Q::VERSIONS.intersect(&Q::Answer::VERSIONS);
            assert!(min <= *Q::SPOKEN.start() && *Q::SPOKEN.end() == max, "{:?}", Q::KEY);
        }
        holds::<ApiVersionsRequest>();
        holds::<MetadataRequest>();
        holds::<ProduceRequest>();
        holds::<FetchRequest>();
        holds::<ListOffsetsRequest>();
    }
}
