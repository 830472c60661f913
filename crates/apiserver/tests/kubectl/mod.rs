//! What kubectl sees. Needs `.cache/bin/kubectl` (`make test-deps`).

mod custom_resources;
mod streaming;

use std::path::PathBuf;
use std::process::Stdio;

use tokio::io::AsyncWriteExt as _;
use tokio::process::Child;

struct Kubectl {
    url: String,
    home: tempfile::TempDir,
}

impl Kubectl {
    /// Of an API that listens at an address.
    fn of(url: String) -> Self {
        let home = tempfile::tempdir().unwrap();
        Self { url, home }
    }

    fn start(&self, args: &str) -> Child {
        let binary = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../.cache/bin/kubectl");
        tokio::process::Command::new(binary)
            .args(["--server", &self.url, "--namespace", "n"])
            .args(args.split(' '))
            .env("HOME", self.home.path())
            .env("KUBECONFIG", "/dev/null")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .unwrap()
    }

    async fn run(&self, args: &str, input: &str) -> (bool, String) {
        let mut child = self.start(args);
        let mut stdin = child.stdin.take().unwrap();
        let typing = async move {
            stdin.write_all(input.as_bytes()).await.unwrap();
        };
        let ((), output) = tokio::join!(typing, child.wait_with_output());
        let output = output.unwrap();
        let text = [output.stdout, output.stderr].concat();
        (output.status.success(), String::from_utf8(text).unwrap())
    }

    async fn ok(&self, args: &str, input: &str) -> String {
        let (success, text) = self.run(args, input).await;
        assert!(success, "kubectl {args}: {text}");
        text
    }
}
