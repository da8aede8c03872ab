//! Permissions of users on a broker: its access control lists.

use kafka_protocol::{
    error::ParseResponseErrorCode as _,
    messages::{CreateAclsRequest, CreateAclsResponse, create_acls_request::AclCreation},
};

use crate::{
    Error, Settings,
    call::{Deadline, call, text},
    connection::Connection,
    metadata,
    versions::requests,
};

requests! {
    // Since version 1 a resource has a pattern type.
    CreateAclsRequest => CreateAclsResponse, CreateAcls, 1..=3;
}

/// The pattern type of a name that stands for itself.
const LITERAL: i8 = 3;
/// The permission type of what is permitted.
const ALLOW: i8 = 3;

/// What a permission is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Resource {
    /// A topic.
    Topic,
    /// A consumer group.
    Group,
}

/// What is permitted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Operation {
    /// To create it.
    Create,
    /// To read its metadata.
    Describe,
    /// To read its configuration.
    DescribeConfigs,
    /// To read records, or to commit offsets.
    Read,
    /// To append records.
    Write,
}

/// One permission of a user, from any host.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Permission {
    /// The user's name.
    pub user: String,
    /// The kind of resource.
    pub resource: Resource,
    /// The name of the topic or group.
    pub name: String,
    /// What the user may do.
    pub operation: Operation,
}

impl Resource {
    fn code(self) -> i8 {
        match self {
            Self::Topic => 2,
            Self::Group => 3,
        }
    }
}

impl Operation {
    fn code(self) -> i8 {
        match self {
            Self::Read => 3,
            Self::Write => 4,
            Self::Create => 5,
            Self::Describe => 8,
            Self::DescribeConfigs => 10,
        }
    }
}

/// Grants permissions on a broker with an authorizer; those that exist stay.
///
/// # Errors
/// If the broker is unavailable, has no authorizer (`SecurityDisabled`), or rejects one of them.
pub async fn grant(settings: &Settings, permissions: &[Permission]) -> Result<(), Error> {
    let deadline = Deadline::new(settings.deadline);
    let creation = |Permission { user, resource, name, operation }: &Permission| {
        AclCreation::default()
            .with_resource_type(resource.code())
            .with_resource_name(text(name))
            .with_resource_pattern_type(LITERAL)
            .with_principal(text(&format!("User:{user}")))
            .with_host(text("*"))
            .with_operation(operation.code())
            .with_permission_type(ALLOW)
    };
    let request = CreateAclsRequest::default().with_creations(permissions.iter().map(creation).collect());
    let work = async {
        let controller = metadata::controller(settings, deadline).await?;
        let mut connection = Connection::open(&controller, settings, deadline).await?;
        let response = connection.call(&request).await?;
        for result in response.results {
            if let Some(error) = result.error_code.err() {
                return Err(connection.broker_error::<CreateAclsRequest>(error, result.error_message.as_deref()));
            }
        }
        Ok(())
    };
    call("grant", deadline, Box::pin(work)).await
}
