//! `isopod version`: what is installed here, and what runs.

use std::path::Path;

use isopod_proto::cri::VersionRequest;
use serde_json::json;

use crate::chain::chain;
use crate::client::Client;

/// The version of this program.
pub(crate) const VERSION: &str = env!("CARGO_PKG_VERSION");

/// How a command prints its answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, clap::ValueEnum)]
pub(crate) enum OutputFormat {
    /// For people
    #[default]
    Text,
    /// For programs
    Json,
}

/// What the daemon says of itself, or why it says nothing.
type Daemon = Result<(String, String), String>;

/// The versions of this program and of the daemon that answers on the socket, if one does.
pub(crate) async fn version(socket: &Path, format: OutputFormat) -> String {
    print(&ask(socket).await, socket, format)
}

async fn ask(socket: &Path) -> Daemon {
    let mut client = Client::connect(socket)
        .await
        .map_err(|error| chain(&error))?;
    let answer = client.runtime.version(VersionRequest::default()).await;
    let answer = answer
        .map_err(|status| status.message().to_owned())?
        .into_inner();
    let name = format!("{} {}", answer.runtime_name, answer.runtime_version);
    Ok((name, answer.runtime_api_version))
}

fn print(daemon: &Daemon, socket: &Path, format: OutputFormat) -> String {
    match (format, daemon) {
        (OutputFormat::Text, Ok((name, api))) => {
            format!(
                "client  isopod {VERSION}\ndaemon  {name}, CRI {api}, on {}",
                socket.display()
            )
        }
        (OutputFormat::Text, Err(error)) => {
            format!("client  isopod {VERSION}\ndaemon  {error}")
        }
        (OutputFormat::Json, Ok((name, api))) => json!({
            "client": format!("isopod {VERSION}"),
            "daemon": { "version": name, "criVersion": api, "socket": socket },
        })
        .to_string(),
        (OutputFormat::Json, Err(error)) => json!({
            "client": format!("isopod {VERSION}"),
            "daemon": { "error": error, "socket": socket },
        })
        .to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn daemon_that_is_not_there_is_told_beside_the_clients_version() {
        let socket = Path::new("/nonexistent/isopod.sock");
        let text = version(socket, OutputFormat::Text).await;
        assert!(
            text.starts_with(&format!("client  isopod {VERSION}\n")),
            "{text}"
        );
        assert!(
            text.contains("daemon  no daemon answers on /nonexistent/isopod.sock"),
            "{text}"
        );
        let json = version(socket, OutputFormat::Json).await;
        let json: serde_json::Value = serde_json::from_str(&json).unwrap();
        assert!(json["daemon"]["error"].is_string());
    }

    #[test]
    fn daemon_that_answers_is_named() {
        let daemon = Ok(("isopod 9.9.9".to_owned(), "v1".to_owned()));
        let socket = Path::new("/run/i.sock");
        let text = print(&daemon, socket, OutputFormat::Text);
        assert!(
            text.ends_with("daemon  isopod 9.9.9, CRI v1, on /run/i.sock"),
            "{text}"
        );
        let json = print(&daemon, socket, OutputFormat::Json);
        assert!(json.contains("\"criVersion\":\"v1\""), "{json}");
    }
}
