//! The process of a container: what it runs, where and with what.

use isopod_proto::cri;
use serde_json::{Value, json};

use super::capabilities;
use crate::field::FieldError;
use crate::image::Image;
use crate::sandbox::PodConfig;

/// Where commands are looked for when neither image nor caller says so.
const PATH: &str = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

pub(super) fn process(
    config: &cri::ContainerConfig,
    image: &Image,
    pod: &PodConfig,
    security: &cri::LinuxContainerSecurityContext,
    resources: &cri::LinuxContainerResources,
) -> Result<Value, FieldError> {
    let mut process = json!({
        "terminal": config.tty,
        // The agent puts the resolved one here.
        "user": { "uid": 0, "gid": 0 },
        "args": args(config, image)?,
        "env": env(config, image, pod)?,
        "cwd": cwd(config, image)?,
        "capabilities": capabilities::of(security)?,
        "noNewPrivileges": security.no_new_privs,
    });
    if resources.oom_score_adj != 0 {
        process["oomScoreAdj"] = check_oom_score_adj(resources.oom_score_adj)?.into();
    }
    Ok(process)
}

/// What the out-of-memory killer takes (`proc(5)`).
///
/// # Errors
///
/// [`FieldError`] for anything else.
pub(crate) fn check_oom_score_adj(value: i64) -> Result<i32, FieldError> {
    let in_range = i32::try_from(value).ok();
    in_range
        .filter(|value| (-1000..=1000).contains(value))
        .ok_or_else(|| {
            let field = "config.linux.resources.oom_score_adj";
            FieldError::new(field, "is not in -1000 to 1000")
        })
}

/// The caller's command and arguments over the image's entry point and command: arguments alone
/// replace the image's command, a command replaces both (the CRI's `ContainerConfig.args`).
fn args(config: &cri::ContainerConfig, image: &Image) -> Result<Vec<String>, FieldError> {
    let of_image = image.config.config().as_ref();
    let entrypoint = of_image
        .and_then(|config| config.entrypoint().clone())
        .unwrap_or_default();
    let cmd = of_image
        .and_then(|config| config.cmd().clone())
        .unwrap_or_default();
    let (command, args) = match (config.command.as_slice(), config.args.as_slice()) {
        ([], []) => (entrypoint, cmd),
        ([], args) => (entrypoint, args.to_vec()),
        (command, args) => (command.to_vec(), args.to_vec()),
    };
    let all: Vec<String> = command.into_iter().chain(args).collect();
    if all.first().is_none_or(String::is_empty) {
        return Err(FieldError::new(
            "config.command",
            "is empty, and so is the image's",
        ));
    }
    check_strings("config.command", &all)?;
    Ok(all)
}

/// PATH, HOSTNAME and TERM, then the image's variables, then the caller's: the last word counts.
fn env(
    config: &cri::ContainerConfig,
    image: &Image,
    pod: &PodConfig,
) -> Result<Vec<String>, FieldError> {
    let mut variables = vec![PATH.to_owned()];
    if !pod.hostname.is_empty() {
        variables.push(format!("HOSTNAME={}", pod.hostname));
    }
    if config.tty {
        variables.push("TERM=xterm".to_owned());
    }
    let of_image = image.config.config().as_ref();
    variables.extend(
        of_image
            .and_then(|config| config.env().clone())
            .unwrap_or_default(),
    );
    for variable in &config.envs {
        if variable.key.is_empty() || variable.key.contains('=') {
            return Err(FieldError::new(
                "config.envs.key",
                "is empty or has a `=` in it",
            ));
        }
        let value = str::from_utf8(&variable.value).map_err(|_error| {
            FieldError::new(
                "config.envs.value",
                format!("of {:?} is not UTF-8", variable.key),
            )
        })?;
        variables.push(format!("{}={value}", variable.key));
    }
    check_strings("config.envs", &variables)?;
    let mut kept: Vec<String> = Vec::with_capacity(variables.len());
    for variable in variables {
        let key = name(&variable).to_owned();
        match kept.iter_mut().find(|earlier| name(earlier) == key) {
            Some(earlier) => *earlier = variable,
            None => kept.push(variable),
        }
    }
    Ok(kept)
}

fn name(variable: &str) -> &str {
    variable.split_once('=').map_or(variable, |(name, _)| name)
}

fn cwd(config: &cri::ContainerConfig, image: &Image) -> Result<String, FieldError> {
    let of_image = image.config.config().as_ref();
    let of_image = of_image
        .and_then(|config| config.working_dir().clone())
        .unwrap_or_default();
    let cwd = [config.working_dir.clone(), of_image]
        .into_iter()
        .find(|dir| !dir.is_empty());
    match cwd {
        None => Ok("/".to_owned()),
        Some(dir) if dir.starts_with('/') && !dir.contains('\0') => Ok(dir),
        Some(_) => Err(FieldError::new(
            "config.working_dir",
            "is not an absolute path",
        )),
    }
}

fn check_strings(field: &'static str, strings: &[String]) -> Result<(), FieldError> {
    if strings.iter().any(|string| string.contains('\0')) {
        return Err(FieldError::new(field, "has a NUL byte in it"));
    }
    Ok(())
}
