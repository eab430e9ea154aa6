//! `Pull`: the CRI's `PullImage`, telling how far it is.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use futures_util::Stream;
use isopod_proto::images::pull_event::Event;
use isopod_proto::images::{Layer, LayerState, Progress, PullEvent, PullRequest, Pulled};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Status;
use tracing::Instrument as _;

use crate::image::{self, Credentials, ImageStore, Secret};

/// How often progress is told. People see no difference below that.
const INTERVAL: Duration = Duration::from_millis(100);

/// Events that wait for a slow reader before progress does.
const QUEUE: usize = 4;

/// Pulls in a task of its own, which ends when nobody reads the events any longer.
pub(super) fn pull(
    store: ImageStore,
    request: PullRequest,
) -> impl Stream<Item = Result<PullEvent, Status>> + Send {
    let (sender, events) = mpsc::channel(QUEUE);
    let span = tracing::info_span!("Pull");
    tokio::spawn(run(store, request, sender).instrument(span));
    ReceiverStream::new(events)
}

async fn run(
    store: ImageStore,
    request: PullRequest,
    events: mpsc::Sender<Result<PullEvent, Status>>,
) {
    let progress = Arc::new(image::Progress::default());
    let pulling = store.pull(of(request), &progress);
    tokio::pin!(pulling);
    let mut ticks = tokio::time::interval(INTERVAL);
    let pulled = loop {
        tokio::select! {
            pulled = &mut pulling => break pulled,
            () = events.closed() => return tracing::info!("the caller has gone: the pull is given up"),
            // One that cannot be told now is told later, with what has happened until then.
            _ = ticks.tick() => drop(events.try_send(Ok(told(&progress)))),
        }
    };
    let last = match pulled {
        Ok(image) => Ok(PullEvent {
            event: Some(Event::Pulled(Pulled { image_id: image.id })),
        }),
        Err(error) => {
            tracing::error!(error = image::chain(&error), "not pulled");
            Err(error.into())
        }
    };
    // A caller that has gone hears neither.
    let _ = events.send(Ok(told(&progress))).await;
    let _ = events.send(last).await;
}

fn of(request: PullRequest) -> image::PullRequest {
    let PullRequest {
        image,
        username,
        password,
        registry_socket,
    } = request;
    let auth = (!username.is_empty()).then_some(Credentials {
        secret: Secret::Password { username, password },
        server: None,
    });
    image::PullRequest {
        reference: image,
        auth,
        registry_socket: (!registry_socket.is_empty()).then(|| PathBuf::from(registry_socket)),
    }
}

fn told(progress: &image::Progress) -> PullEvent {
    let layers = progress.layers().iter().map(|layer| {
        let state = match layer.state() {
            image::LayerState::Waiting => LayerState::Waiting,
            image::LayerState::Downloading => LayerState::Downloading,
            image::LayerState::Done => LayerState::Done,
            image::LayerState::Present => LayerState::Present,
        };
        Layer {
            digest: layer.digest.to_string(),
            size_bytes: layer.size,
            received_bytes: layer.received(),
            state: state.into(),
        }
    });
    PullEvent {
        event: Some(Event::Progress(Progress {
            layers: layers.collect(),
        })),
    }
}
