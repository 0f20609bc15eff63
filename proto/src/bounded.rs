//! The codec of our services: protobuf, but what a message may unfold to in memory is looked at before it is decoded. A
//! message of 4 MiB can hold two million empty entries, each a hundred bytes when decoded; here such a one is refused
//! (security.md, "Input": bounded counts before allocation).

use std::marker::PhantomData;

use prost::Message;
use prost::bytes::Buf;
use tonic::Status;
use tonic::codec::{BufferSettings, Codec, DecodeBuf, Decoder};
use tonic_prost::ProstEncoder;

use crate::agent::v1;

/// Largest message that is not one long byte string, bytes.
pub const MAX_STRUCTURED: usize = 256 << 10;
/// Most commits in a listing.
pub const MAX_VERSIONS: usize = 65_536;
/// Most metadata entries of one commit.
pub const MAX_METADATA: usize = 64;
/// Most jobs and commit requests in a handoff: far above what one Filesystem may have.
pub const MAX_HANDED_OVER: usize = 1024;
/// Most metadata entries in a listing.
pub const MAX_LISTED_METADATA: usize = 262_144;

/// A message whose encoded form can be judged without decoding it.
pub trait Bounded {
    /// Looks at an encoded message before it is decoded.
    ///
    /// # Errors
    ///
    /// Why it is not to be decoded: it is longer, or would unfold to more, than such a message may. The codec ends the call with
    /// `INVALID_ARGUMENT`.
    fn check(encoded: &[u8]) -> Result<(), &'static str> {
        if encoded.len() > MAX_STRUCTURED { Err("the message is larger than 256 KiB") } else { Ok(()) }
    }
}

impl Bounded for v1::VersionsRequest {}
impl Bounded for v1::ExportResponse {}
impl Bounded for v1::ReceiveResponse {}
impl Bounded for v1::MountRequest {}
impl Bounded for v1::MountResponse {}
impl Bounded for v1::UnmountRequest {}
impl Bounded for v1::UnmountResponse {}
impl Bounded for v1::StatusRequest {}
impl Bounded for v1::FenceRequest {}
impl Bounded for v1::FenceResponse {}
impl Bounded for v1::ThawRequest {}
impl Bounded for v1::ThawResponse {}

impl Bounded for v1::StatusResponse {
    /// One text: it is no larger decoded than encoded.
    fn check(_: &[u8]) -> Result<(), &'static str> {
        Ok(())
    }
}

impl Bounded for v1::ReceiveRequest {
    /// What is long must be one Data field and nothing else.
    fn check(encoded: &[u8]) -> Result<(), &'static str> {
        const DATA: u64 = 2;
        if encoded.len() <= MAX_STRUCTURED {
            return Ok(());
        }
        match Fields(encoded).next() {
            Some(Ok(Field { number: DATA, body, rest: [] })) if !body.is_empty() => Ok(()),
            _ => Err("a message over 256 KiB is not a Data frame"),
        }
    }
}

impl Bounded for v1::ExportRequest {
    /// Counts what leaves with authority.
    fn check(encoded: &[u8]) -> Result<(), &'static str> {
        const LEAVES: u64 = 3;
        if encoded.len() > MAX_STRUCTURED {
            return Err("the message is larger than 256 KiB");
        }
        let mut fields = 0_usize;
        for field in Fields(encoded) {
            let field = field?;
            fields += 1;
            if field.number == LEAVES {
                fields += Fields(field.body).take(MAX_HANDED_OVER + 1).count();
            }
            if fields > MAX_HANDED_OVER {
                return Err("the handoff has more than 1024 parts");
            }
        }
        Ok(())
    }
}

impl Bounded for v1::VersionsResponse {
    /// Counts commits and their metadata.
    fn check(encoded: &[u8]) -> Result<(), &'static str> {
        const VERSIONS: u64 = 3;
        const METADATA: u64 = 6;
        let (mut fields, mut listed) = (0_usize, 0_usize);
        for field in Fields(encoded) {
            let field = field?;
            fields += 1;
            if fields > MAX_VERSIONS + 16 {
                return Err("the listing has more than 65536 commits");
            }
            if field.number != VERSIONS {
                continue;
            }
            let mut metadata = 0;
            for inner in Fields(field.body) {
                metadata += usize::from(inner?.number == METADATA);
            }
            listed += metadata;
            if metadata > MAX_METADATA || listed > MAX_LISTED_METADATA {
                return Err("the listing has too much metadata");
            }
        }
        Ok(())
    }
}

/// One field of an encoded message.
struct Field<'a> {
    number: u64,
    /// The content of a length-delimited field; empty for others.
    body: &'a [u8],
    rest: &'a [u8],
}

/// The fields of an encoded message, one level deep (protobuf encoding guide). Groups are refused: we have none.
struct Fields<'a>(&'a [u8]);

impl<'a> Iterator for Fields<'a> {
    type Item = Result<Field<'a>, &'static str>;
    fn next(&mut self) -> Option<Self::Item> {
        if self.0.is_empty() {
            return None;
        }
        let field = take_field(self.0).ok_or("the message is malformed");
        self.0 = field.as_ref().map_or(&[], |f| f.rest);
        Some(field)
    }
}

fn take_field(encoded: &[u8]) -> Option<Field<'_>> {
    let (tag, rest) = varint(encoded)?;
    let skip = |n: usize| rest.get(n..).map(|rest| (&[][..], rest));
    let (body, rest) = match tag & 7 {
        0 => (&[][..], varint(rest)?.1),
        1 => skip(8)?,
        2 => {
            let (len, rest) = varint(rest)?;
            rest.split_at_checked(usize::try_from(len).ok()?)?
        }
        5 => skip(4)?,
        _ => return None,
    };
    Some(Field { number: tag >> 3, body, rest })
}

fn varint(encoded: &[u8]) -> Option<(u64, &[u8])> {
    let mut value = 0_u64;
    for (i, byte) in encoded.iter().take(10).enumerate() {
        value |= u64::from(byte & 0x7f) << (7 * i);
        if byte & 0x80 == 0 {
            return Some((value, encoded.get(i + 1..)?));
        }
    }
    None
}

/// See the module.
#[derive(Debug, Clone, Copy)]
pub struct BoundedCodec<T, U>(PhantomData<(T, U)>);

impl<T, U> Default for BoundedCodec<T, U> {
    fn default() -> Self {
        Self(PhantomData)
    }
}

impl<T: Message + Send + 'static, U: Message + Bounded + Default + Send + 'static> Codec for BoundedCodec<T, U> {
    type Encode = T;
    type Decode = U;
    type Encoder = ProstEncoder<T>;
    type Decoder = BoundedDecoder<U>;

    fn encoder(&mut self) -> Self::Encoder {
        ProstEncoder::new(BufferSettings::default())
    }
    fn decoder(&mut self) -> Self::Decoder {
        BoundedDecoder(PhantomData)
    }
}

/// See the module.
#[derive(Debug, Clone, Copy)]
pub struct BoundedDecoder<U>(PhantomData<U>);

impl<U: Message + Bounded + Default> Decoder for BoundedDecoder<U> {
    type Item = U;
    type Error = Status;

    fn decode(&mut self, buf: &mut DecodeBuf<'_>) -> Result<Option<U>, Status> {
        if buf.chunk().len() != buf.remaining() {
            return Err(Status::internal("a message is not in one piece"));
        }
        U::check(buf.chunk()).map_err(Status::invalid_argument)?;
        U::decode(buf).map(Some).map_err(|e| Status::invalid_argument(e.to_string()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn data(n: usize) -> v1::ReceiveRequest {
        v1::ReceiveRequest { message: Some(v1::receive_request::Message::Data(vec![1; n].into())) }
    }

    #[test]
    fn a_long_frame_passes_and_a_long_offer_does_not() {
        assert_eq!(v1::ReceiveRequest::check(&data(4 << 20).encode_to_vec()), Ok(()));
        let target = v1::Version { message: "x".repeat(MAX_STRUCTURED), ..v1::Version::default() };
        let offer = v1::Offer { target: Some(target), ..v1::Offer::default() };
        let long = v1::ReceiveRequest { message: Some(v1::receive_request::Message::Offer(offer)) };
        assert!(v1::ReceiveRequest::check(&long.encode_to_vec()).is_err());
        let mut two = data(MAX_STRUCTURED).encode_to_vec();
        two.extend(long.encode_to_vec());
        assert!(v1::ReceiveRequest::check(&two).is_err(), "an offer behind a frame");
    }

    #[test]
    fn a_bomb_of_empty_commits_or_metadata_is_not_unfolded() {
        assert!(v1::VersionsResponse::check(&[0x1a, 0].repeat(MAX_VERSIONS + 17)).is_err());
        let version =
            v1::Version { metadata: (0..=MAX_METADATA).map(|i| (i.to_string(), String::new())).collect(), ..v1::Version::default() };
        let listing = v1::VersionsResponse { versions: vec![version], ..v1::VersionsResponse::default() };
        assert!(v1::VersionsResponse::check(&listing.encode_to_vec()).is_err());
    }

    #[test]
    fn a_bomb_of_empty_jobs_is_not_unfolded() {
        let handoff = |jobs| v1::Handoff { jobs: vec![v1::JobCursor::default(); jobs], ..v1::Handoff::default() };
        let export = |jobs| v1::ExportRequest { leaves: Some(handoff(jobs)), ..v1::ExportRequest::default() }.encode_to_vec();
        assert_eq!(v1::ExportRequest::check(&export(300)), Ok(()));
        assert!(v1::ExportRequest::check(&export(MAX_HANDED_OVER)).is_err());
        let several: Vec<u8> = std::iter::repeat_n(export(300), 4).flatten().collect();
        assert!(v1::ExportRequest::check(&several).is_err(), "in several pieces, which protobuf merges");
    }

    #[test]
    fn an_honest_listing_passes() {
        let metadata = (0..MAX_METADATA).map(|i| (i.to_string(), "v".into())).collect();
        let version = v1::Version { id: "i".into(), metadata, time_ms: -1, epoch: u64::MAX, ..v1::Version::default() };
        let listing =
            v1::VersionsResponse { versions: vec![version; 4096], epoch: 3, free_bytes: Some(0), ..v1::VersionsResponse::default() };
        assert_eq!(v1::VersionsResponse::check(&listing.encode_to_vec()), Ok(()));
    }

    #[test]
    fn what_is_cut_off_is_malformed() {
        for bad in [&[0x1a][..], &[0x1a, 5, 0], &[0x80; 11], &[0x1b], &[0x19, 1, 2]] {
            assert!(v1::VersionsResponse::check(bad).is_err(), "{bad:?}");
        }
    }
}
