//! Container logs: CRI log files as plain text, from the place asked for, followed by inotify and across rotation.

use std::io::SeekFrom;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures::channel::mpsc;
use futures::future::BoxFuture;
use futures::{SinkExt, StreamExt};
use http::{Response, StatusCode};
use http_body::Frame;
use http_body_util::{BodyExt, StreamBody};
use inotify::{Inotify, WatchMask};
use jiff::{SignedDuration, Timestamp};
use tokio::fs::File;
use tokio::io::{AsyncReadExt, AsyncSeekExt};
use tracing::debug;

use super::query::Query;
use super::{Answer, text};
use crate::kubelet::Kubelet;
use crate::kuberuntime::runtime_pod::{RuntimeContainer, State};
use crate::kuberuntime::sandbox;
use crate::pod::PodExt;

const CHUNK: usize = 64 * 1024;
/// A container whose runtime doesn't close its log is looked at this often, as upstream does.
const STATE_CHECK: Duration = Duration::from_secs(5);

/// What part of a log, and how.
#[derive(Clone, Debug, Default)]
pub struct Options {
    pub follow: bool,
    pub previous: bool,
    pub timestamps: bool,
    pub tail: Option<u64>,
    pub since: Option<Timestamp>,
    pub limit: Option<u64>,
    /// `stdout` or `stderr` only.
    pub stream: Option<String>,
}

impl Options {
    fn parse(query: &Query) -> Result<Self, String> {
        let number = |name: &str| match query.get(name) {
            Some(text) => text
                .parse::<u64>()
                .map(Some)
                .map_err(|_| format!("invalid value {text:?} for {name}")),
            None => Ok(None),
        };
        let since = match (query.get("sinceTime"), number("sinceSeconds")?) {
            (Some(text), _) => Some(
                text.parse::<Timestamp>()
                    .map_err(|error| format!("invalid sinceTime {text:?}: {error}"))?,
            ),
            (None, Some(seconds)) => {
                let ago = SignedDuration::from_secs(i64::try_from(seconds).unwrap_or(i64::MAX));
                Some(Timestamp::now().checked_sub(ago).unwrap_or(Timestamp::MIN))
            }
            (None, None) => None,
        };
        let stream = query.get("stream").filter(|stream| *stream != "All");
        Ok(Options {
            follow: query.flag("follow"),
            previous: query.flag("previous"),
            timestamps: query.flag("timestamps"),
            tail: number("tailLines")?,
            since,
            limit: number("limitBytes")?,
            stream: stream.map(str::to_lowercase),
        })
    }
}

pub async fn answer(
    kubelet: &Arc<Kubelet>,
    namespace: &str,
    name: &str,
    container: &str,
    query: &Query,
) -> Answer {
    let options = match Options::parse(query) {
        Ok(options) => options,
        Err(why) => return text(StatusCode::BAD_REQUEST, &why),
    };
    let Some(pod) = kubelet.pod_by_name(namespace, name) else {
        return text(StatusCode::NOT_FOUND, &format!("pod {name:?} not found\n"));
    };
    let known = pod
        .spec()
        .containers
        .iter()
        .chain(pod.init_containers())
        .chain(&pod.ephemeral_containers())
        .any(|spec| spec.name == container);
    if !known {
        let why = format!("container {container} is not valid for pod {name}");
        return text(StatusCode::NOT_FOUND, &why);
    }
    let runtime = match kubelet.inspect(pod.uid()).await {
        Ok(runtime) => runtime,
        Err(error) => return text(StatusCode::INTERNAL_SERVER_ERROR, error.message()),
    };
    let instances: Vec<_> = runtime
        .containers
        .iter()
        .filter(|instance| instance.name == container && instance.state != State::Created)
        .collect();
    let status = kubelet.status.current(&pod);
    let waiting = status
        .container_statuses
        .iter()
        .chain(&status.init_container_statuses)
        .chain(&status.ephemeral_container_statuses)
        .flatten()
        .find(|status| status.name == container)
        .and_then(|status| status.state.as_ref()?.waiting.clone());
    let wanted = if options.previous {
        // While it waits for its next start, the one that ended last is the previous one.
        let skip = usize::from(waiting.is_none());
        instances
            .iter()
            .skip(skip)
            .find(|instance| instance.state == State::Exited)
    } else {
        instances.first()
    };
    let Some(instance) = wanted else {
        let why = match (&waiting, options.previous) {
            (Some(waiting), false) => format!(
                "container {container:?} in pod {name:?} is waiting to start: {}",
                waiting
                    .message
                    .clone()
                    .or(waiting.reason.clone())
                    .unwrap_or_default()
            ),
            (_, true) => {
                format!("previous terminated container {container:?} in pod {name:?} not found")
            }
            _ => format!("container {container:?} in pod {name:?} is not available"),
        };
        return text(StatusCode::BAD_REQUEST, &why);
    };
    let path = log_path(kubelet, &pod, instance);
    stream(kubelet.clone(), path, instance.id.clone(), options)
}

fn log_path(
    kubelet: &Kubelet,
    pod: &k8s_openapi::api::core::v1::Pod,
    instance: &RuntimeContainer,
) -> PathBuf {
    if !instance.status.log_path.is_empty() {
        return PathBuf::from(&instance.status.log_path);
    }
    sandbox::log_directory(kubelet, pod)
        .join(&instance.name)
        .join(format!("{}.log", instance.restart_count()))
}

fn stream(kubelet: Arc<Kubelet>, path: PathBuf, id: String, options: Options) -> Answer {
    let (sender, receiver) = mpsc::channel(2);
    tokio::spawn(Box::pin(async move {
        let is_running = || -> BoxFuture<'static, bool> {
            let (kubelet, id) = (kubelet.clone(), id.clone());
            Box::pin(async move { kubelet.container_state(&id).await == Some(State::Running) })
        };
        if let Err(error) = read(&path, &options, sender, &is_running).await {
            debug!(path = %path.display(), %error, "reading a log ended");
        }
    }));
    let mut answer = Response::new(StreamBody::new(receiver).boxed_unsync());
    let kind = http::HeaderValue::from_static("text/plain");
    answer
        .headers_mut()
        .insert(http::header::CONTENT_TYPE, kind);
    answer
}

/// Where the log's text goes; sending fails when nobody listens any more.
type Sink = mpsc::Sender<Result<Frame<Bytes>, std::io::Error>>;

/// Reads the log as asked; `is_running` says whether there is more to come.
async fn read(
    path: &Path,
    options: &Options,
    mut sink: Sink,
    is_running: &(dyn Fn() -> BoxFuture<'static, bool> + Send + Sync),
) -> std::io::Result<()> {
    let mut file = File::open(path).await?;
    let length = file.metadata().await?.len();
    let mut from = 0;
    if let Some(lines) = options.tail {
        from = tail_offset(&mut file, lines, length).await?;
        file.seek(SeekFrom::Start(from)).await?;
    }
    // What is written from now on is for those alone who follow.
    let mut left = if options.follow {
        u64::MAX
    } else {
        length - from
    };
    let mut changes = match options.follow {
        true => Some(watch(path)?),
        false => None,
    };
    let mut formatter = Formatter::new(options);
    let mut buffer = vec![0; CHUNK];
    let mut last_round = !options.follow;
    let mut next = None;
    loop {
        loop {
            let most = usize::try_from(left).map_or(CHUNK, |left| left.min(CHUNK));
            let count = file.read(&mut buffer[..most]).await?;
            if count == 0 {
                break;
            }
            left -= count as u64;
            let out = formatter.feed(&buffer[..count]);
            if !out.is_empty() && sink.send(Ok(Frame::data(out.into()))).await.is_err() {
                return Ok(());
            }
            if formatter.is_full() {
                return Ok(());
            }
        }
        if let Some(fresh) = next.take() {
            file = fresh;
            continue;
        }
        // Rotated: nothing is written to the old file any more, so what is left of it is read first.
        if options.follow && has_moved(&file, path).await {
            next = Some(File::open(path).await?);
            continue;
        }
        let Some(changes) = changes.as_mut().filter(|_| !last_round) else {
            return Ok(());
        };
        let may_have_ended = tokio::select! {
            event = changes.next() => match event {
                Some(Ok(event)) => event.mask.contains(inotify::EventMask::CLOSE_WRITE),
                _ => true,
            },
            () = tokio::time::sleep(STATE_CHECK) => true,
        };
        if may_have_ended && !is_running().await {
            last_round = true;
        }
    }
}

fn watch(path: &Path) -> std::io::Result<inotify::EventStream<Vec<u8>>> {
    let inotify = Inotify::init()?;
    let dir = path.parent().unwrap_or(Path::new("/"));
    let mask = WatchMask::MODIFY | WatchMask::CLOSE_WRITE | WatchMask::CREATE | WatchMask::MOVE;
    inotify.watches().add(dir, mask)?;
    inotify.into_event_stream(vec![0; 4096])
}

async fn has_moved(file: &File, path: &Path) -> bool {
    use std::os::unix::fs::MetadataExt;
    let (Ok(open), Ok(named)) = (file.metadata().await, tokio::fs::metadata(path).await) else {
        return false;
    };
    (open.dev(), open.ino()) != (named.dev(), named.ino())
}

/// Where the last `lines` lines begin of a log that is so long.
async fn tail_offset(file: &mut File, lines: u64, length: u64) -> std::io::Result<u64> {
    if lines == 0 {
        return Ok(length);
    }
    let mut end = length;
    let mut found = 0;
    let mut buffer = vec![0; CHUNK];
    while end > 0 {
        let size = end.min(CHUNK as u64);
        let start = end - size;
        file.seek(SeekFrom::Start(start)).await?;
        let part = &mut buffer[..usize::try_from(size).unwrap_or(CHUNK)];
        file.read_exact(part).await?;
        for (at, byte) in part.iter().enumerate().rev() {
            let position = start + at as u64;
            // The newline that ends the last line begins none.
            if *byte == b'\n' && position + 1 < length {
                found += 1;
                if found == lines {
                    return Ok(position + 1);
                }
            }
        }
        end = start;
    }
    Ok(0)
}

/// Turns CRI lines (`<time> <stream> <tags> <text>`) into what the user sees.
struct Formatter<'a> {
    options: &'a Options,
    rest: Vec<u8>,
    /// In the middle of a line that came in parts.
    partial: bool,
    left: Option<u64>,
}

impl<'a> Formatter<'a> {
    fn new(options: &'a Options) -> Self {
        Formatter {
            options,
            rest: Vec::new(),
            partial: false,
            left: options.limit,
        }
    }

    fn is_full(&self) -> bool {
        self.left == Some(0)
    }

    fn feed(&mut self, bytes: &[u8]) -> Vec<u8> {
        self.rest.extend_from_slice(bytes);
        let rest = std::mem::take(&mut self.rest);
        let mut out = Vec::with_capacity(rest.len());
        let mut from = 0;
        while let Some(at) = rest[from..].iter().position(|byte| *byte == b'\n') {
            self.line(&rest[from..from + at], &mut out);
            from += at + 1;
        }
        self.rest = rest[from..].to_vec();
        if let Some(left) = &mut self.left {
            out.truncate(usize::try_from(*left).unwrap_or(usize::MAX));
            *left -= out.len() as u64;
        }
        out
    }

    fn line(&mut self, line: &[u8], out: &mut Vec<u8>) {
        let mut fields = line.splitn(4, |byte| *byte == b' ');
        let (Some(time), Some(stream), Some(tags)) = (fields.next(), fields.next(), fields.next())
        else {
            return;
        };
        let content = fields.next().unwrap_or_default();
        if let Some(wanted) = &self.options.stream
            && wanted.as_bytes() != stream
        {
            return;
        }
        if let Some(since) = self.options.since {
            let at = std::str::from_utf8(time)
                .ok()
                .and_then(|text| text.parse::<Timestamp>().ok());
            if at.is_some_and(|at| at < since) {
                return;
            }
        }
        if self.options.timestamps && !self.partial {
            out.extend_from_slice(time);
            out.push(b' ');
        }
        out.extend_from_slice(content);
        self.partial = tags.first() == Some(&b'P');
        if !self.partial {
            out.push(b'\n');
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{Seek as _, Write};
    use std::sync::atomic::{AtomicBool, Ordering};

    const LOG: &str = "2026-01-01T00:00:01.5Z stdout F one\n2026-01-01T00:00:02Z stderr P tw\n\
                       2026-01-01T00:00:02Z stderr F o\n2026-01-01T00:00:03Z stdout F three\n";

    async fn show(options: Options) -> String {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("0.log");
        std::fs::write(&path, LOG).unwrap();
        let (sink, frames) = mpsc::channel(2);
        let reader = read(&path, &options, sink, &|| {
            Box::pin(std::future::ready(true))
        });
        let (read, frames) = tokio::join!(reader, frames.collect::<Vec<_>>());
        read.unwrap();
        frames.into_iter().map(line_of).collect()
    }

    fn line_of(frame: Result<Frame<Bytes>, std::io::Error>) -> String {
        String::from_utf8(frame.unwrap().into_data().unwrap().to_vec()).unwrap()
    }

    #[tokio::test]
    async fn options() {
        let at = |text: &str| Some(text.parse().unwrap());
        for (options, expected) in [
            (Options::default(), "one\ntwo\nthree\n"),
            (
                Options {
                    tail: Some(1),
                    ..Options::default()
                },
                "three\n",
            ),
            (
                Options {
                    tail: Some(0),
                    ..Options::default()
                },
                "",
            ),
            (
                Options {
                    tail: Some(99),
                    ..Options::default()
                },
                "one\ntwo\nthree\n",
            ),
            (
                Options {
                    limit: Some(5),
                    ..Options::default()
                },
                "one\nt",
            ),
            (
                Options {
                    since: at("2026-01-01T00:00:03Z"),
                    ..Options::default()
                },
                "three\n",
            ),
            (
                Options {
                    stream: Some("stderr".into()),
                    ..Options::default()
                },
                "two\n",
            ),
            (
                Options {
                    timestamps: true,
                    tail: Some(1),
                    ..Options::default()
                },
                "2026-01-01T00:00:03Z three\n",
            ),
        ] {
            assert_eq!(show(options.clone()).await, expected, "{options:?}");
        }
    }

    #[tokio::test]
    async fn what_is_written_meanwhile_is_for_followers_alone() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("0.log");
        let line = |text: &str| format!("2026-01-01T00:00:00Z stdout F {text}\n");
        // More than is read ahead of the client.
        let lines = 8 * CHUNK / line("early").len();
        let mut log = std::fs::File::create(&path).unwrap();
        log.write_all(line("early").repeat(lines).as_bytes())
            .unwrap();
        for tail in [None, Some(lines as u64)] {
            let options = Options {
                tail,
                ..Options::default()
            };
            let (sink, frames) = mpsc::channel(2);
            let mut frames = frames.map(line_of);
            let reader = read(&path, &options, sink, &|| {
                Box::pin(std::future::ready(true))
            });
            let client = async {
                let mut seen = frames.next().await.unwrap();
                log.write_all(line("late").as_bytes()).unwrap();
                while let Some(more) = frames.next().await {
                    seen.push_str(&more);
                }
                seen
            };
            let (read, seen) = tokio::join!(reader, client);
            read.unwrap();
            assert!(!seen.ends_with("late\n"), "{tail:?}");
            log.set_len((line("early").len() * lines) as u64).unwrap();
            log.seek(std::io::SeekFrom::End(0)).unwrap();
        }
    }

    #[tokio::test]
    async fn follows_across_rotation_until_the_container_ends() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("0.log");
        let line = |text: &str| format!("2026-01-01T00:00:00Z stdout F {text}\n");
        let mut log = std::fs::File::create(&path).unwrap();
        log.write_all(line("first").as_bytes()).unwrap();
        let running = Arc::new(AtomicBool::new(true));
        let (sink, frames) = mpsc::channel(2);
        let mut lines = frames.map(line_of);
        let options = Options {
            follow: true,
            ..Options::default()
        };
        let state = running.clone();
        let is_running = move || -> BoxFuture<'static, bool> {
            Box::pin(std::future::ready(state.load(Ordering::SeqCst)))
        };
        let reader = read(&path, &options, sink, &is_running);
        let writer = async {
            assert_eq!(lines.next().await.unwrap(), "first\n");
            log.write_all(line("second").as_bytes()).unwrap();
            assert_eq!(lines.next().await.unwrap(), "second\n");
            std::fs::rename(&path, dir.path().join("0.log.old")).unwrap();
            log.write_all(line("late").as_bytes()).unwrap();
            let mut fresh = std::fs::File::create(&path).unwrap();
            fresh.write_all(line("third").as_bytes()).unwrap();
            let mut rest = String::new();
            while !rest.contains("third") {
                rest.push_str(&lines.next().await.unwrap());
            }
            assert_eq!(rest, "late\nthird\n");
            running.store(false, Ordering::SeqCst);
            drop(fresh);
        };
        let (read, ()) = tokio::join!(reader, writer);
        read.unwrap();
    }
}
