//! The frames of the control socket.

use tun_node::ctl::frame::{self, FrameError, REQUEST_OCTETS_MAX, RESPONSE_OCTETS_MAX};
use tun_node::ctl::message::{Request, Response};

/// No octets make the node or its client panic or reserve more than the limit allows; what can be
/// read is written and read again as the same.
pub fn ctl(bytes: &[u8]) {
    let mut stream = bytes;
    while let Ok(Some(request)) = frame::read::<Request, REQUEST_OCTETS_MAX>(&mut stream) {
        let mut written = Vec::new();
        frame::write::<Request, REQUEST_OCTETS_MAX>(&mut written, &request)
            .expect("what was read within the limit is written within it");
        let again = frame::read::<Request, REQUEST_OCTETS_MAX>(&mut written.as_slice());
        assert!(matches!(again, Ok(Some(again)) if again == request));
    }
    let mut stream = bytes;
    while let Ok(Some(response)) = frame::read::<Response, RESPONSE_OCTETS_MAX>(&mut stream) {
        let mut written = Vec::new();
        match frame::write::<Response, RESPONSE_OCTETS_MAX>(&mut written, &response) {
            // The shortest spelling of a number is written; a longer one may have been read.
            Ok(()) => assert!(written.len() <= 4 + RESPONSE_OCTETS_MAX),
            Err(error) => assert!(matches!(error, FrameError::TooLong { .. })),
        }
    }
}
