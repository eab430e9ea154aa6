//! An image as the CRI sees it.

use isopod_proto::cri::{Image, Int64Value};

use crate::image;

/// There is no sandbox image that the kubelet could collect by mistake: what is pinned is what the
/// configuration says.
pub(super) fn describe(image: image::Image) -> Image {
    let user = image.config.config().as_ref();
    let user = user.and_then(|config| config.user().as_deref());
    // "user:group": the group is for whoever starts the container.
    let user = user
        .and_then(|user| user.split(':').next())
        .unwrap_or_default();
    let uid = user.parse().ok().map(|value| Int64Value { value });
    let username = if uid.is_none() {
        user.to_owned()
    } else {
        String::new()
    };
    Image {
        id: image.id,
        repo_tags: image.repo_tags,
        repo_digests: image.repo_digests,
        size: image.size,
        uid,
        username,
        spec: None,
        pinned: image.pinned,
    }
}
