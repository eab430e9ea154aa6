//! The agent's first answer.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use isopod_proto::AGENT_PROTOCOL_VERSION;
use isopod_proto::agent::HelloRequest;
use isopod_proto::agent_ttrpc::AgentClient;
use ttrpc::asynchronous::Client;
use ttrpc::asynchronous::transport::Socket;
use ttrpc::context::Context;

/// The pause between two attempts to reach a guest that boots. Short, as it is the measurement's
/// error: whoever comes too early is refused at once and comes again.
const PAUSE: Duration = Duration::from_millis(1);

/// How long an agent that has accepted a connection may take to answer.
const ANSWER_LIMIT: Duration = Duration::from_secs(10);

/// Connects again and again until the agent answers `Hello`.
pub(super) async fn answered<F>(limit: Duration, connect: impl Fn() -> F) -> Result<()>
where
    F: Future<Output = Result<Socket>>,
{
    let deadline = Instant::now() + limit;
    loop {
        let attempt = async { hello(connect().await?).await };
        let error = match tokio::time::timeout(ANSWER_LIMIT, attempt).await {
            Ok(Ok(())) => return Ok(()),
            Ok(Err(error)) => error,
            Err(elapsed) => elapsed.into(),
        };
        if Instant::now() > deadline {
            bail!(error.context("the agent did not answer"));
        }
        tokio::time::sleep(PAUSE).await;
    }
}

async fn hello(socket: Socket) -> Result<()> {
    let agent = AgentClient::new(Client::new(socket));
    let request = HelloRequest {
        protocol_version: AGENT_PROTOCOL_VERSION,
        daemon_version: "bench".to_owned(),
        ..HelloRequest::default()
    };
    let answer = agent
        .hello(Context::default(), &request)
        .await
        .context("Hello")?;
    anyhow::ensure!(
        answer.protocol_version == AGENT_PROTOCOL_VERSION,
        "the agent speaks version {}",
        answer.protocol_version
    );
    Ok(())
}
