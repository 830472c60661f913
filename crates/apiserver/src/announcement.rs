//! Keys in the store that say of a server that it is there, as long as it keeps on saying so: `Endpoints` with a time to
//! live, which are no objects of the API.

use fluyt_api::{Error, resources};
use fluyt_etcd::{Delete, Keys, Op, Put, Txn};
use serde_json::Value;

use crate::Server;

/// How long a server counts after it was last heard of, in seconds.
const TTL: i64 = 15;

/// Renews a key.
///
/// # Errors
/// When the store fails.
pub async fn announce(server: &Server, key: &str, endpoints: &Value) -> Result<(), Error> {
    let store = server.caches.main().store();
    let resource = resources::find("", "v1", "endpoints").ok_or_else(Error::no_route)?;
    let codec = &server.caches.codec;
    let encoded = codec.encode(resource, key.as_bytes(), endpoints).await;
    let value = encoded.map_err(Error::internal)?;
    let (lease, _) = store.lease_grant(0, TTL).await.map_err(Error::internal)?;
    let put = Op::Put(Put {
        lease,
        ..Put::new(key.to_owned(), value)
    });
    store.txn(only(put)).await.map_err(Error::internal)?;
    Ok(())
}

/// Takes a key away before its time.
///
/// # Errors
/// When the store fails.
pub async fn withdraw(server: &Server, key: &str) -> Result<(), Error> {
    let delete = Op::Delete(Delete {
        keys: Keys::One(key.to_owned().into()),
        prev_kv: false,
    });
    let store = server.caches.main().store();
    store.txn(only(delete)).await.map_err(Error::internal)?;
    Ok(())
}

fn only(op: Op) -> Txn {
    Txn {
        compares: Vec::new(),
        success: vec![op],
        failure: Vec::new(),
    }
}
