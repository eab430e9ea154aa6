//! Who a container's process runs as. The names are resolved in the guest.

use isopod_proto::agent::User;
use isopod_proto::cri;

use crate::field::FieldError;
use crate::image::Image;
use crate::sandbox::UserNamespace;

/// The user of a request, or of the image when the request names none. In a user namespace it must have
/// that user; the agent sees to those that only the image knows.
pub(super) fn user(
    security: &cri::LinuxContainerSecurityContext,
    image: &Image,
    users: Option<&UserNamespace>,
) -> Result<User, FieldError> {
    check_mapped(security, users)?;
    let group = security
        .run_as_group
        .as_ref()
        .map(|group| id("run_as_group", group.value));
    let user = match (&security.run_as_user, security.run_as_username.as_str()) {
        (_, name) if !name.is_empty() => Some(name.to_owned()),
        (Some(uid), _) => Some(id("run_as_user", uid.value)?.to_string()),
        (None, _) => None,
    };
    let name = match (user, group.transpose()?) {
        (Some(user), Some(group)) => format!("{user}:{group}"),
        (Some(user), None) => user,
        (None, Some(_)) => {
            return Err(FieldError::new(
                "config.linux.security_context.run_as_group",
                "needs run_as_user or run_as_username beside it",
            ));
        }
        (None, None) => {
            let config = image.config.config().as_ref();
            config
                .and_then(|config| config.user().clone())
                .unwrap_or_default()
        }
    };
    let groups = security.supplemental_groups.iter();
    let groups = groups.map(|group| id("supplemental_groups", *group));
    Ok(User {
        name,
        supplemental_groups: groups.collect::<Result<_, _>>()?,
        strict_groups: security.supplemental_groups_policy()
            == cri::SupplementalGroupsPolicy::Strict,
        ..Default::default()
    })
}

fn check_mapped(
    security: &cri::LinuxContainerSecurityContext,
    users: Option<&UserNamespace>,
) -> Result<(), FieldError> {
    let Some(users) = users else {
        return Ok(());
    };
    let refused = |field: &str, id: i64, count: u32| {
        let reason = format!("{id} is not in the pod's user namespace, which has {count} ids");
        FieldError::new(format!("config.linux.security_context.{field}"), reason)
    };
    let (user_count, group_count) = users.lengths();
    if let Some(uid) = &security.run_as_user
        && !users.has_user(id("run_as_user", uid.value)?)
    {
        return Err(refused("run_as_user", uid.value, user_count));
    }
    let group = security.run_as_group.iter();
    let group = group.map(|group| ("run_as_group", group.value));
    let groups = security.supplemental_groups.iter();
    for (field, gid) in group.chain(groups.map(|gid| ("supplemental_groups", *gid))) {
        if !users.has_group(id(field, gid)?) {
            return Err(refused(field, gid, group_count));
        }
    }
    Ok(())
}

fn id(field: &str, value: i64) -> Result<u32, FieldError> {
    u32::try_from(value).map_err(|_range| {
        FieldError::new(
            format!("config.linux.security_context.{field}"),
            "is not a user or group id",
        )
    })
}
