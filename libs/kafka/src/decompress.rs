//! Bounded decompression of batches.
//!
//! A few bytes may decompress to gigabytes, and any producer can send them. So each codec stops at a limit, and memory is
//! allocated for data, not for the size that a header announces.

use std::io::Read;

use bytes::{Buf as _, Bytes};
use flate2::bufread::MultiGzDecoder;
use zstd::zstd_safe::{DCtx, get_frame_content_size, zstd_sys::ZSTD_ErrorCode};

use crate::Malformed;

/// The header of snappy-java: a magic number, its version, and the oldest compatible version.
const SNAPPY_MAGIC: &[u8] = b"\x82SNAPPY\0";
const SNAPPY_HEADER: usize = 16;
/// The first output buffer for zstd, as a multiple of the input, where the frame header has no content size.
const ZSTD_RATIO: usize = 4;
/// The smallest output buffer for zstd.
const ZSTD_MIN_BUFFER: usize = 4096;

/// Decompresses with a codec, by its number in the attributes of a batch.
///
/// # Errors
/// [`Malformed::TooLarge`] above `limit` bytes; [`Malformed::Compression`] if the input cannot be decompressed.
pub(crate) fn decompress(codec: i16, bytes: Bytes, limit: usize) -> Result<Bytes, Malformed> {
    let decompressed = match codec {
        0 => return if bytes.len() > limit { Err(Malformed::TooLarge) } else { Ok(bytes) },
        1 => read(MultiGzDecoder::new(&bytes[..]), limit)?,
        2 => snappy(bytes, limit)?,
        3 => read(lz4::Decoder::new(&bytes[..]).map_err(|_| Malformed::Compression)?, limit)?,
        4 => zstd(&bytes, limit)?,
        _ => return Err(Malformed::Compression),
    };
    Ok(decompressed.into())
}

fn read(decoder: impl Read, limit: usize) -> Result<Vec<u8>, Malformed> {
    let mut decompressed = Vec::new();
    // One byte above the limit shows that there is more.
    let read = decoder.take(limit as u64 + 1).read_to_end(&mut decompressed);
    match read {
        Ok(length) if length <= limit => Ok(decompressed),
        Ok(_) => Err(Malformed::TooLarge),
        Err(_) => Err(Malformed::Compression),
    }
}

/// Blocks framed as by snappy-java, or one raw block.
fn snappy(mut bytes: Bytes, limit: usize) -> Result<Vec<u8>, Malformed> {
    let mut decompressed = Vec::new();
    if !bytes.starts_with(SNAPPY_MAGIC) {
        snappy_block(&bytes, &mut decompressed, limit)?;
        return Ok(decompressed);
    }
    if bytes.len() < SNAPPY_HEADER {
        return Err(Malformed::Compression);
    }
    bytes.advance(SNAPPY_HEADER);
    while !bytes.is_empty() {
        let length = bytes.try_get_i32().ok().and_then(|length| usize::try_from(length).ok());
        let length = length.filter(|length| *length <= bytes.len()).ok_or(Malformed::Compression)?;
        snappy_block(&bytes.split_to(length), &mut decompressed, limit)?;
    }
    Ok(decompressed)
}

fn snappy_block(block: &[u8], decompressed: &mut Vec<u8>, limit: usize) -> Result<(), Malformed> {
    let length = snap::raw::decompress_len(block).map_err(|_| Malformed::Compression)?;
    let before = decompressed.len();
    if length > limit - before {
        return Err(Malformed::TooLarge);
    }
    decompressed.resize(before + length, 0);
    let mut decoder = snap::raw::Decoder::new();
    decoder.decompress(block, &mut decompressed[before..]).map_err(|_| Malformed::Compression)?;
    Ok(())
}

/// Decompresses in one step: a stream would allocate the window that the sender has chosen, up to 128 MiB. If the frame header
/// has no content size, as from the Java client, the output buffer grows until it is large enough.
fn zstd(bytes: &[u8], limit: usize) -> Result<Vec<u8>, Malformed> {
    let announced = get_frame_content_size(bytes).map_err(|_| Malformed::Compression)?;
    let announced = announced.map(|size| usize::try_from(size).unwrap_or(usize::MAX));
    if announced.is_some_and(|size| size > limit) {
        return Err(Malformed::TooLarge);
    }
    let mut room = announced.unwrap_or(bytes.len().saturating_mul(ZSTD_RATIO).max(ZSTD_MIN_BUFFER)).min(limit);
    let mut context = DCtx::try_create().ok_or(Malformed::Compression)?;
    loop {
        let mut decompressed = Vec::with_capacity(room);
        match context.decompress(&mut decompressed, bytes) {
            Ok(_) => return Ok(decompressed),
            Err(code) if code.wrapping_neg() != ZSTD_ErrorCode::ZSTD_error_dstSize_tooSmall as usize => {
                return Err(Malformed::Compression);
            }
            Err(_) if room == limit => return Err(Malformed::TooLarge),
            Err(_) => room = room.max(ZSTD_MIN_BUFFER).saturating_mul(2).min(limit),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::{self, Write};

    use super::*;

    const LIMIT: usize = 1 << 20;

    fn zeros(length: usize, mut to: impl Write) {
        io::copy(&mut io::repeat(0).take(length as u64), &mut to).unwrap();
    }

    fn gzip(length: usize) -> Vec<u8> {
        let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::default());
        zeros(length, &mut encoder);
        encoder.finish().unwrap()
    }

    fn raw_snappy(length: usize) -> Vec<u8> {
        snap::raw::Encoder::new().compress_vec(&vec![0; length]).unwrap()
    }

    fn framed_snappy(length: usize) -> Vec<u8> {
        let mut framed = [SNAPPY_MAGIC, &[0, 0, 0, 1, 0, 0, 0, 1]].concat();
        for start in (0..length).step_by(32 * 1024) {
            let block = raw_snappy((length - start).min(32 * 1024));
            framed.extend((block.len() as i32).to_be_bytes());
            framed.extend(block);
        }
        framed
    }

    fn lz4(length: usize) -> Vec<u8> {
        let mut encoder = lz4::EncoderBuilder::new().build(Vec::new()).unwrap();
        zeros(length, &mut encoder);
        let (compressed, result) = encoder.finish();
        result.unwrap();
        compressed
    }

    /// A stream, whose frame header has no content size.
    fn zstd_stream(length: usize) -> Vec<u8> {
        let mut encoder = ::zstd::Encoder::new(Vec::new(), 3).unwrap();
        zeros(length, &mut encoder);
        encoder.finish().unwrap()
    }

    fn zstd_frame(length: usize) -> Vec<u8> {
        ::zstd::bulk::compress(&vec![0; length], 3).unwrap()
    }

    type Compress = fn(usize) -> Vec<u8>;
    const CODECS: [(&str, i16, Compress); 6] = [
        ("gzip", 1, gzip),
        ("snappy, raw", 2, raw_snappy),
        ("snappy, framed", 2, framed_snappy),
        ("lz4", 3, lz4),
        ("zstd, a stream", 4, zstd_stream),
        ("zstd, a frame", 4, zstd_frame),
    ];

    #[test]
    fn every_codec_stops_at_the_limit() {
        for (name, codec, compress) in CODECS {
            for length in [0, 1, 5000, LIMIT - 1, LIMIT] {
                let read = decompress(codec, compress(length).into(), LIMIT);
                assert_eq!(read.map(|bytes| bytes.len()), Ok(length), "{name}");
            }
            for length in [LIMIT + 1, LIMIT * 2, LIMIT * 40] {
                let read = decompress(codec, compress(length).into(), LIMIT);
                assert_eq!(read.err(), Some(Malformed::TooLarge), "{name}: {length}");
            }
        }
        assert_eq!(decompress(0, vec![0; LIMIT].into(), LIMIT).map(|bytes| bytes.len()), Ok(LIMIT));
        assert_eq!(decompress(0, vec![0; LIMIT + 1].into(), LIMIT), Err(Malformed::TooLarge));
    }

    #[test]
    fn truncated_and_lying_input_is_rejected() {
        for (name, codec, compress) in CODECS {
            let whole = compress(100_000);
            for cut in [1, 5, whole.len() / 2, whole.len() - 1] {
                let read = decompress(codec, whole[..cut].to_vec().into(), LIMIT);
                // lz4 returns what it has; decoding the records finds the rest missing.
                assert!(codec == 3 || read == Err(Malformed::Compression), "{name} cut at {cut}");
                assert!(read.is_err() || read.is_ok_and(|bytes| bytes.len() <= 100_000), "{name} cut at {cut}");
            }
        }
        let announcing = |length: &[u8]| Bytes::from([length, b"\0\0\0"].concat());
        assert_eq!(decompress(2, announcing(b"\xff\xff\xff\xff\x0f"), LIMIT), Err(Malformed::TooLarge), "4 GiB");
        assert_eq!(decompress(2, announcing(b"\x80\x80\x20"), LIMIT), Err(Malformed::Compression), "half of the limit");
        for codec in 1..=7 {
            assert_eq!(decompress(codec, Bytes::from_static(b"no codec"), LIMIT), Err(Malformed::Compression));
        }
    }
}
