//! The agent of another release, as PID 1 of a guest: answers `Hello` with protocol version 99.
//!
//! Nothing else works, as little of another release's protocol need.

use std::sync::Arc;

use anyhow::Result;
use isopod_proto::agent::{HelloRequest, HelloResponse};
use isopod_proto::agent_ttrpc::{Agent, create_agent};
use isopod_proto::{AGENT_PORT, agent};
use ttrpc::asynchronous::{Server, TtrpcContext};

struct OtherRelease;

#[async_trait::async_trait]
impl Agent for OtherRelease {
    async fn hello(
        &self,
        _context: &TtrpcContext,
        _request: HelloRequest,
    ) -> ttrpc::Result<HelloResponse> {
        let mut answer = agent::HelloResponse::new();
        answer.protocol_version = 99;
        answer.agent_version = "99.0.0".to_owned();
        Ok(answer)
    }
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<()> {
    let address = format!("vsock://{}:{AGENT_PORT}", u32::MAX);
    let mut server = Server::new()
        .bind(&address)?
        .register_service(create_agent(Arc::new(OtherRelease)));
    server.start().await?;
    std::future::pending().await
}
