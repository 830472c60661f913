//! Arguments and environment.

use super::{Input, Invalid, Result};
use crate::image::Image;
use k8s_cri::v1::ContainerConfig;

const DEFAULT_PATH: &str = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// The command line: a command of the container replaces the image's entrypoint and its arguments.
pub fn args(container: &ContainerConfig, image: &Image) -> Result<Vec<String>> {
    let config = image.config.config.clone().unwrap_or_default();
    let mut command = container.command.clone();
    let mut args = container.args.clone();
    if command.is_empty() {
        if args.is_empty() {
            args = config.cmd.unwrap_or_default();
        }
        command = config.entrypoint.unwrap_or_default();
    }
    command.append(&mut args);
    if command.is_empty() {
        return Err(Invalid("no command specified".to_owned()));
    }
    Ok(command)
}

/// The image's environment with the container's over it, and what every container has.
pub fn env(input: &Input<'_>) -> Vec<String> {
    let mut variables: Vec<String> = vec![DEFAULT_PATH.to_owned()];
    if input.container.tty {
        variables.push("TERM=xterm".to_owned());
    }
    if !input.sandbox.hostname.is_empty() {
        variables.push(format!("HOSTNAME={}", input.sandbox.hostname));
    }
    variables.push(format!("HOME={}", input.user.home));
    let image = input
        .image
        .config
        .config
        .as_ref()
        .and_then(|config| config.env.clone())
        .unwrap_or_default();
    let container = input
        .container
        .envs
        .iter()
        .map(|variable| format!("{}={}", variable.key, variable.value));
    for variable in image.into_iter().chain(container) {
        set(&mut variables, variable);
    }
    variables
}

fn set(variables: &mut Vec<String>, variable: String) {
    let key = |variable: &str| variable.split('=').next().unwrap_or_default().to_owned();
    let wanted = key(&variable);
    match variables.iter_mut().find(|present| key(present) == wanted) {
        Some(present) => *present = variable,
        None => variables.push(variable),
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;
    use crate::image::{Execution, ImageConfig};

    fn image(entrypoint: &[&str], cmd: &[&str]) -> Image {
        let strings = |list: &[&str]| Some(list.iter().map(|&item| item.to_owned()).collect());
        Image {
            id: String::new(),
            manifest: String::new(),
            repo_tags: BTreeSet::new(),
            repo_digests: BTreeSet::new(),
            size: 0,
            layers: Vec::new(),
            config: ImageConfig {
                config: Some(Execution {
                    entrypoint: strings(entrypoint),
                    cmd: strings(cmd),
                    ..Execution::default()
                }),
                ..ImageConfig::default()
            },
            pinned: false,
            source: None,
        }
    }

    fn run(command: &[&str], args: &[&str]) -> Vec<String> {
        let strings = |list: &[&str]| list.iter().map(|&item| item.to_owned()).collect();
        let container = ContainerConfig {
            command: strings(command),
            args: strings(args),
            ..ContainerConfig::default()
        };
        super::args(&container, &image(&["/entry"], &["default"])).unwrap()
    }

    #[test]
    fn command_and_args_override_the_image_as_kubernetes_documents() {
        assert_eq!(run(&[], &[]), ["/entry", "default"]);
        assert_eq!(run(&[], &["a"]), ["/entry", "a"]);
        assert_eq!(run(&["c"], &[]), ["c"]);
        assert_eq!(run(&["c"], &["a"]), ["c", "a"]);
    }

    #[test]
    fn later_variables_replace_earlier_ones_in_place() {
        let mut variables = vec!["A=1".to_owned(), "B=2".to_owned()];
        set(&mut variables, "A=3".to_owned());
        assert_eq!(variables, ["A=3", "B=2"]);
    }
}
