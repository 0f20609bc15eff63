//! How fast a stream is over loopback with mutual TLS, both ends in this process.

use std::time::Instant;

use dotgraft_agent::peer::server::ServerSettings;

use crate::streams::open;
use crate::support::*;

/// Of a chunk; a transfer cuts it.
const CHUNK: usize = 1 << 20;
const CHUNKS: u64 = 4096;

#[tokio::test(flavor = "multi_thread")]
#[ignore = "a measurement: cargo test --release --test peer_net -- --ignored --nocapture"]
async fn throughput() {
    let (a, b) = pair(&Ca::new("ca"), ServerSettings::default()).await;
    let actor = actor(&b, Act::Store);
    let client = a.client();
    let chunk = bytes(CHUNK);
    for round in 0..3 {
        actor.seen.lock().unwrap().bytes = 0;
        let mut transfer = open(&client, &b, actor.fs).await.unwrap();
        let start = Instant::now();
        for _ in 0..CHUNKS {
            transfer.data(chunk.clone()).await.unwrap();
        }
        let total = CHUNKS * CHUNK as u64;
        transfer.finish(total, [0; 32]).await.unwrap();
        let seconds = start.elapsed().as_secs_f64();
        #[allow(clippy::cast_precision_loss)] // a few GB
        let rate = total as f64 / seconds / 1e9;
        println!("round {round}: {rate:.2} GB/s");
    }
}
