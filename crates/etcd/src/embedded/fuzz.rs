//! What fuzzing needs of the records on disk.

use std::path::Path;

use bytes::Bytes;

use super::codec::{self, Head, Record};
use super::storage::{Batch, Change, Space, decode_log_record, log_sample};
use crate::bbolt;

fn change(revision: i64, key: &str) -> Change {
    Change {
        revision,
        position: 0,
        key: key.to_owned().into(),
        record: Record {
            mod_revision: revision,
            create_revision: 2,
            version: 1,
            lease: 7,
            value: "value".into(),
        },
    }
}

fn encoded(batch: &Batch) -> Vec<u8> {
    let mut bytes = Vec::new();
    batch.encode(&mut bytes);
    bytes
}

pub fn batch_samples() -> Vec<Vec<u8>> {
    let mut batch = Batch {
        revision: 3,
        changes: vec![change(2, "k"), change(3, "other")],
        ..Batch::default()
    };
    batch.put(Space::Leases, 7_i64.to_be_bytes(), 60_i64.to_be_bytes());
    batch.remove(Space::Attached, codec::attached_key(7, b"k"));
    let change = &batch.changes[0];
    let mut entry = Vec::new();
    codec::encode_log(&mut entry, &change.key, &change.record);
    let head = Head::encode(&change.record, change.position);
    vec![encoded(&batch), entry, head, codec::version_key(b"a\0b", 5)]
}

pub fn log_samples() -> Vec<Vec<u8>> {
    batch_samples()
        .iter()
        .map(|payload| log_sample(payload))
        .collect()
}

pub fn read_log(bytes: &[u8]) {
    if let Some(payload) = decode_log_record(bytes) {
        let _ = Batch::decode(payload);
    }
}

pub fn read_entries(bytes: &Bytes) {
    if let Some(batch) = Batch::decode(bytes) {
        assert_eq!(Batch::decode(&encoded(&batch)), Some(batch));
    }
    let _ = Record::decode(bytes);
    let _ = Head::decode(bytes);
    let _ = codec::decode_log(bytes);
    let _ = codec::split_version_key(bytes);
    let _ = codec::split_attached_key(bytes);
    let _ = codec::split_log_key(bytes);
}

pub fn snapshot_samples(directory: &Path) -> Vec<Vec<u8>> {
    let store = super::Embedded::open(&directory.join("store")).unwrap();
    let runtime = tokio::runtime::Builder::new_current_thread()
        .build()
        .unwrap();
    let mut samples = Vec::new();
    for round in 0..2 {
        let mut file = Vec::new();
        runtime.block_on(async {
            let mut parts = store.snapshot();
            while let Some(part) = parts.recv().await {
                file.extend_from_slice(&part.unwrap().bytes);
            }
            for i in 0..200 {
                let put = crate::Put::new(format!("k{}", i % 50), vec![b'v'; i * 10]);
                let txn = crate::Txn {
                    success: vec![crate::Op::Put(put)],
                    ..crate::Txn::default()
                };
                if round == 0 {
                    crate::Store::txn(&store, txn).await.unwrap();
                }
            }
        });
        samples.push(file);
    }
    let bucket = bbolt::Bucket {
        name: b"key".to_vec(),
        entries: Box::new(|each| each(b"k".to_vec(), b"v".to_vec())),
    };
    let mut small = Vec::new();
    bbolt::write::<std::convert::Infallible>(&[bucket], &mut |page, _| {
        small.extend_from_slice(page);
        Ok(())
    })
    .unwrap();
    samples.push(small);
    samples
}
