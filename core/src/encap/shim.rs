//! What stands between the transport and the inner packet.
