//! Control groups are the one thing that does not end with its namespace.

use std::fs;
use std::io::ErrorKind;
use std::path::Path;
use std::time::Duration;

use crate::eventually;

/// Removes the (by now empty) groups of a cluster from every hierarchy.
pub fn remove(cluster: &str) {
    let Ok(hierarchies) = fs::read_dir("/sys/fs/cgroup") else {
        return;
    };
    let roots = hierarchies
        .flatten()
        .map(|h| h.path())
        .chain(["/sys/fs/cgroup".into()]);
    for root in roots {
        let ours = root.join("fluyt");
        // Those who were in it are dead but may not have left it yet.
        let gone = eventually(
            "the control groups of the test's cluster are gone",
            Duration::from_secs(5),
            || Ok(remove_tree(&ours.join(cluster)).then_some(())),
        );
        if let Err(error) = gone {
            eprintln!("{error:#}");
        }
        let _ = fs::remove_dir(ours);
    }
}

fn remove_tree(group: &Path) -> bool {
    let Ok(entries) = fs::read_dir(group) else {
        return true;
    };
    for entry in entries
        .flatten()
        .filter(|e| e.file_type().is_ok_and(|t| t.is_dir()))
    {
        remove_tree(&entry.path());
    }
    match fs::remove_dir(group) {
        Ok(()) => true,
        Err(error) => error.kind() == ErrorKind::NotFound,
    }
}
