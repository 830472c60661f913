use http_body_util::{Full, StreamBody};

use super::*;

#[derive(Clone, PartialEq, prost::Message)]
struct Text {
    #[prost(string, tag = "1")]
    text: String,
}

const LIMIT: usize = 100;

fn framed_by_hand(flag: u8, message: &[u8]) -> Vec<u8> {
    let length = u32::try_from(message.len()).unwrap().to_be_bytes();
    [&[flag], &length[..], message].concat()
}

/// Sends pieces, and gives back the answer's message or its error.
async fn echo(pieces: Vec<Vec<u8>>, encoding: Option<&'static str>) -> Result<String, Status> {
    let frames = pieces
        .into_iter()
        .map(|piece| Ok::<_, Infallible>(Frame::data(Bytes::from(piece))));
    let mut request = Request::new(StreamBody::new(futures::stream::iter(
        frames.collect::<Vec<_>>(),
    )));
    if let Some(encoding) = encoding {
        let encoding = HeaderValue::from_static(encoding);
        request.headers_mut().insert("grpc-encoding", encoding);
    }
    let reply = call(request, LIMIT, |text: Text| async move { Ok(text) });
    let response = reply.await;
    assert_eq!(response.headers()["content-type"], "application/grpc");
    if let Some(status) = Status::from_header_map(response.headers()) {
        assert!(response.into_body().is_end_stream());
        return Err(status);
    }
    let body = response.into_body().collect().await?;
    assert_eq!(body.trailers().unwrap()["grpc-status"], "0");
    let bytes = body.to_bytes();
    let text = Text::decode(&bytes[PREFIX..]).unwrap();
    assert_eq!(bytes, framed_by_hand(0, &text.encode_to_vec()));
    Ok(text.text)
}

fn text(text: &str) -> Vec<u8> {
    Text { text: text.into() }.encode_to_vec()
}

#[tokio::test]
async fn messages_come_in_any_pieces() {
    let whole = framed_by_hand(0, &text("some text"));
    for cut in 0..=whole.len() {
        let (first, second) = whole.split_at(cut);
        let pieces = vec![first.to_vec(), second.to_vec()];
        assert_eq!(echo(pieces, None).await.unwrap(), "some text", "{cut}");
    }
    let bytes = whole.iter().map(|byte| vec![*byte]).collect();
    assert_eq!(echo(bytes, None).await.unwrap(), "some text");
    assert_eq!(echo(vec![framed_by_hand(0, b"")], None).await.unwrap(), "");
    // What is behind the one message is nobody's business.
    let more = vec![whole.clone(), whole];
    assert_eq!(echo(more, Some("gzip")).await.unwrap(), "some text");
}

#[tokio::test]
async fn what_is_no_message_is_refused() {
    use tonic::Code;
    let long = text(&"x".repeat(LIMIT));
    let length = long.len();
    let cases: [(Vec<u8>, Option<&'static str>, Code, String); 8] = [
        (vec![], None, Code::Internal, "unexpected EOF".into()),
        (
            vec![0, 0, 0, 0],
            None,
            Code::Internal,
            "unexpected EOF".into(),
        ),
        (
            framed_by_hand(0, b"x")[..5].to_vec(),
            None,
            Code::Internal,
            "unexpected EOF".into(),
        ),
        (
            framed_by_hand(1, b""),
            None,
            Code::Internal,
            "grpc: compressed flag set with identity or empty encoding".into(),
        ),
        (
            framed_by_hand(1, b""),
            Some("gzip"),
            Code::Unimplemented,
            "grpc: Decompressor is not installed for grpc-encoding \"gzip\"".into(),
        ),
        (
            framed_by_hand(2, b""),
            None,
            Code::Internal,
            "grpc: received unexpected payload format 2".into(),
        ),
        (
            framed_by_hand(0, &long),
            None,
            Code::ResourceExhausted,
            format!("grpc: received message larger than max ({length} vs. {LIMIT})"),
        ),
        (
            // Not even the first of it is waited for.
            vec![0, 0xff, 0xff, 0xff, 0xff],
            None,
            Code::ResourceExhausted,
            format!("grpc: received message larger than max (4294967295 vs. {LIMIT})"),
        ),
    ];
    for (bytes, encoding, code, message) in cases {
        let refused = echo(vec![bytes], encoding).await.unwrap_err();
        assert_eq!((refused.code(), refused.message()), (code, &*message));
    }
    let refused = echo(vec![framed_by_hand(0, b"\xff\xff")], None).await;
    let refused = refused.unwrap_err();
    assert_eq!(refused.code(), Code::Internal);
    let begin = "grpc: error unmarshalling request: ";
    assert!(refused.message().starts_with(begin), "{refused}");
}

#[tokio::test]
async fn what_takes_long_is_answered_apart() {
    let here = tokio::task::try_id();
    for (message, apart) in [("short", false), ("long", true)] {
        let request = Request::new(Full::new(Bytes::from(framed_by_hand(0, &text(message)))));
        let long = |text: &Text| text.text == "long";
        let reply = call_apart(request, LIMIT, long, move |text: Text| async move {
            assert_eq!(tokio::task::try_id() != here, apart);
            Ok(text)
        });
        assert!(!reply.await.into_body().is_end_stream());
    }
}
