//! Devices of a container, beyond those that every container has.

use std::fs;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::Path;

use k8s_cri::v1::ContainerConfig;
use serde_json::{Value, json};

use super::{Invalid, Result};

/// Directories below /dev that hold no devices of the host.
const SKIPPED: [&str; 5] = ["pts", "shm", "fd", "mqueue", "hugepages"];

#[derive(Debug, Default)]
pub struct Devices {
    /// `linux.devices`.
    pub nodes: Vec<Value>,
    /// Additional entries of `linux.resources.devices`.
    pub rules: Vec<Value>,
}

pub fn devices(container: &ContainerConfig, privileged: bool) -> Result<Devices> {
    let mut devices = Devices::default();
    if privileged {
        add_directory(Path::new("/dev"), &mut devices);
    }
    for device in &container.devices {
        let (kind, major, minor, mode) = inspect(Path::new(&device.host_path))
            .ok_or_else(|| Invalid(format!("{} is not a device", device.host_path)))?;
        devices
            .nodes
            .retain(|node| node["path"] != json!(device.container_path));
        devices.nodes.push(json!({
            "path": device.container_path,
            "type": kind,
            "major": major,
            "minor": minor,
            "fileMode": mode,
            "uid": 0,
            "gid": 0,
        }));
        devices.rules.push(json!({
            "allow": true,
            "type": kind,
            "major": major,
            "minor": minor,
            "access": device.permissions,
        }));
    }
    Ok(devices)
}

/// All devices of the host, as a privileged container has them.
fn add_directory(directory: &Path, devices: &mut Devices) {
    let Ok(entries) = fs::read_dir(directory) else {
        return;
    };
    for entry in entries.flatten() {
        let path = entry.path();
        let Ok(kind) = entry.file_type() else {
            continue;
        };
        if kind.is_dir() {
            let name = entry.file_name();
            if !SKIPPED.iter().any(|skipped| name == *skipped) {
                add_directory(&path, devices);
            }
        } else if path != Path::new("/dev/console")
            && path != Path::new("/dev/ptmx")
            && let Some((kind, major, minor, mode)) = inspect_kind(&path, kind)
        {
            devices.nodes.push(json!({
                "path": path,
                "type": kind,
                "major": major,
                "minor": minor,
                "fileMode": mode,
                "uid": 0,
                "gid": 0,
            }));
        }
    }
}

fn inspect(path: &Path) -> Option<(&'static str, u32, u32, u32)> {
    inspect_kind(path, fs::metadata(path).ok()?.file_type())
}

fn inspect_kind(path: &Path, kind: fs::FileType) -> Option<(&'static str, u32, u32, u32)> {
    let letter = if kind.is_char_device() {
        "c"
    } else if kind.is_block_device() {
        "b"
    } else {
        return None;
    };
    let metadata = fs::metadata(path).ok()?;
    let device = metadata.rdev();
    Some((
        letter,
        rustix::fs::major(device),
        rustix::fs::minor(device),
        metadata.mode() & 0o777,
    ))
}
