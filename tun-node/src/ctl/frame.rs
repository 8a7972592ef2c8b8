//! The octets around a message.
//!
//! | octet | 0..4                     | 4..6    | 6..                              |
//! |-------|--------------------------|---------|----------------------------------|
//! | field | length of what follows   | version | message, bincode 2, "standard"   |
//!
//! Length and version are big-endian. A length past the limit of the reader is refused before a
//! single octet of the message is read, and bincode is given the same limit, without which a
//! length inside the message would decide how much memory is reserved.

use std::io::{self, Read, Write};

use bincode::config::{Configuration, Limit, standard};
use bincode::{Decode, Encode};

/// The version of the messages. A node answers only its own.
pub const VERSION: u16 = 9;

/// The longest request, version and message, in octets.
pub const REQUEST_OCTETS_MAX: usize = 1 << 10;

/// The longest response, version and message, in octets.
pub const RESPONSE_OCTETS_MAX: usize = 4 << 20;

/// Why a frame could not be read or written.
#[derive(Debug, thiserror::Error)]
pub enum FrameError {
    /// The other end is gone, or silent for too long.
    #[error("the control socket failed")]
    Io(#[from] io::Error),
    /// The frame is longer than it may be.
    #[error("a control frame of {octets} octets, more than {max}")]
    TooLong {
        /// Its octets.
        octets: usize,
        /// How many it may have.
        max: usize,
    },
    /// The frame is too short to have a version.
    #[error("a control frame without a version")]
    TooShort,
    /// The other end speaks another version.
    #[error("the other end speaks version {theirs} of the control messages, this one {VERSION}")]
    Version {
        /// The version it speaks.
        theirs: u16,
    },
    /// The message is not one of this version.
    #[error("a control frame that is no message: {0}")]
    Message(String),
}

/// Reads a frame and decodes its message; `None` when the other end closed before one began.
///
/// # Errors
///
/// [`FrameError`]. After any, the stream is of no further use.
pub fn read<M: Decode<()>, const MAX: usize>(
    stream: &mut impl Read,
) -> Result<Option<M>, FrameError> {
    let mut length = [0; 4];
    if !fill(stream, &mut length)? {
        return Ok(None);
    }
    let octets = usize::try_from(u32::from_be_bytes(length)).unwrap_or(usize::MAX);
    if octets > MAX {
        return Err(FrameError::TooLong { octets, max: MAX });
    }
    let mut frame = vec![0; octets];
    stream.read_exact(&mut frame)?;
    decode::<M, MAX>(&frame).map(Some)
}

/// Decodes version and message.
///
/// # Errors
///
/// [`FrameError`], other than of kind [`FrameError::Io`].
pub fn decode<M: Decode<()>, const MAX: usize>(frame: &[u8]) -> Result<M, FrameError> {
    let (version, message) = frame.split_first_chunk().ok_or(FrameError::TooShort)?;
    let theirs = u16::from_be_bytes(*version);
    if theirs != VERSION {
        return Err(FrameError::Version { theirs });
    }
    let (decoded, used) = bincode::decode_from_slice(message, limited::<MAX>())
        .map_err(|error| FrameError::Message(error.to_string()))?;
    if used != message.len() {
        return Err(FrameError::Message(
            "octets are left over behind it".to_owned(),
        ));
    }
    Ok(decoded)
}

/// Encodes a message and writes its frame.
///
/// # Errors
///
/// [`FrameError::TooLong`] above `MAX`, and then nothing was written; [`FrameError::Io`].
pub fn write<M: Encode, const MAX: usize>(
    stream: &mut impl Write,
    message: &M,
) -> Result<(), FrameError> {
    let mut frame = vec![0; 4];
    frame.extend_from_slice(&VERSION.to_be_bytes());
    bincode::encode_into_std_write(message, &mut frame, limited::<MAX>())
        .map_err(|error| FrameError::Message(error.to_string()))?;
    let octets = frame.len() - 4;
    let length = u32::try_from(octets).ok().filter(|_| octets <= MAX);
    let length = length.ok_or(FrameError::TooLong { octets, max: MAX })?;
    if let Some(front) = frame.first_chunk_mut() {
        *front = length.to_be_bytes();
    }
    stream.write_all(&frame)?;
    stream.flush()?;
    Ok(())
}

type Limited<const MAX: usize> =
    Configuration<bincode::config::LittleEndian, bincode::config::Varint, Limit<MAX>>;

fn limited<const MAX: usize>() -> Limited<MAX> {
    standard().with_limit::<MAX>()
}

/// Fills `octets`; `false` when the stream ended before the first of them.
fn fill(stream: &mut impl Read, octets: &mut [u8]) -> io::Result<bool> {
    let mut filled = 0;
    while let Some(rest) = octets.get_mut(filled..).filter(|rest| !rest.is_empty()) {
        match stream.read(rest) {
            Ok(0) if filled == 0 => return Ok(false),
            Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(read) => filled += read,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(true)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ctl::message::{Fault, Flow, Request, Response};

    fn framed(request: &Request) -> Vec<u8> {
        let mut octets = Vec::new();
        write::<_, REQUEST_OCTETS_MAX>(&mut octets, request).unwrap();
        octets
    }

    fn read_request(mut octets: &[u8]) -> Result<Option<Request>, FrameError> {
        read::<_, REQUEST_OCTETS_MAX>(&mut octets)
    }

    #[test]
    fn every_request_survives_the_round_trip() {
        let flow = Flow {
            source: "10.0.0.1".parse().unwrap(),
            destination: "2001:db8::1".parse().unwrap(),
            protocol: 6,
            source_port: 1,
            destination_port: 65535,
            octets: 84,
        };
        for request in [
            Request::Status,
            Request::Routes { first: u32::MAX },
            Request::Peers,
            Request::Counters,
            Request::Explain(flow),
            Request::Fault(Fault::Hang),
        ] {
            assert_eq!(read_request(&framed(&request)).unwrap(), Some(request));
        }
    }

    #[test]
    fn the_end_before_a_frame_is_none_and_within_one_an_error() {
        let whole = framed(&Request::Routes { first: 7 });
        assert_eq!(read_request(&[]).unwrap(), None);
        for cut in 1..whole.len() {
            assert!(
                matches!(read_request(&whole[..cut]), Err(FrameError::Io(_))),
                "cut at {cut}"
            );
        }
    }

    #[test]
    fn a_frame_past_the_limit_is_refused_by_its_length_alone() {
        let error = read_request(&u32::MAX.to_be_bytes()).unwrap_err();
        assert!(matches!(error, FrameError::TooLong { .. }), "{error}");
        let long = Response::Error("x".repeat(64));
        let error = write::<_, 32>(&mut Vec::new(), &long).unwrap_err();
        assert!(
            matches!(error, FrameError::TooLong { .. } | FrameError::Message(_)),
            "{error}"
        );
    }

    #[test]
    fn a_hostile_length_inside_a_message_reserves_nothing() {
        // Response::Error with a string of 2^63 octets: variant 6, then a nine-octet length.
        let mut frame = VERSION.to_be_bytes().to_vec();
        frame.extend([6, 253]);
        frame.extend((1_u64 << 63).to_le_bytes());
        let error = decode::<Response, RESPONSE_OCTETS_MAX>(&frame).unwrap_err();
        assert!(matches!(error, FrameError::Message(_)), "{error}");
    }

    #[test]
    fn other_versions_and_octets_left_over_are_refused() {
        let mut octets = framed(&Request::Status);
        octets[4..6].copy_from_slice(&(VERSION + 1).to_be_bytes());
        assert!(matches!(
            read_request(&octets),
            Err(FrameError::Version { theirs }) if theirs == VERSION + 1
        ));
        let mut octets = framed(&Request::Status);
        octets.push(0);
        octets[3] += 1;
        assert!(matches!(read_request(&octets), Err(FrameError::Message(_))));
        assert!(matches!(
            read_request(&[0, 0, 0, 1, 0]),
            Err(FrameError::TooShort)
        ));
    }

    #[test]
    fn every_single_octet_of_garbage_is_a_message_or_an_error() {
        for variant in 0..=255_u8 {
            for rest in [&[][..], &[255; 40][..], &[251, 0, 0, 0][..]] {
                let mut frame = VERSION.to_be_bytes().to_vec();
                frame.push(variant);
                frame.extend(rest);
                let _ = decode::<Request, REQUEST_OCTETS_MAX>(&frame);
                let _ = decode::<Response, RESPONSE_OCTETS_MAX>(&frame);
            }
        }
    }
}
