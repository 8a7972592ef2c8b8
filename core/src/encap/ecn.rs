//! ECN and DSCP across the tunnel.
