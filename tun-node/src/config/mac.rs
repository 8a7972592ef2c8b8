//! VTEP MAC addresses that follow from a node's name.
//!
//! A peer must know the MAC address of the VTEP it sends to. When every node derives its own from
//! its name by one rule, a configuration need not carry them. Two rules:
//!
//! - Warren's (`vtep-mac = "auto"`): the first six octets of SHA-1("warren-vtep:" + name), with
//!   the group bit of octet 0 cleared and the locally-administered bit set (IEEE 802c).
//! - Calico's (`vtep-mac = "calico"`): 0x66 followed by the first five octets of SHA-1(name);
//!   for the VTEP on an IPv6 underlay of SHA-1(name + "-v6").
//!
//! SHA-1 serves here as a stable spreading function, never as a proof of anything: whoever
//! can choose a node's name can choose its MAC address too.

use warren_core::units::MacAddr;

/// The VTEP MAC address of the node called `name` by Warren's rule.
#[must_use]
pub fn warren_vtep_mac(name: &str) -> MacAddr {
    let [a, b, c, d, e, f, ..] = sha1(format!("warren-vtep:{name}").as_bytes());
    MacAddr::new([(a & 0xfe) | 0x02, b, c, d, e, f])
}

/// The VTEP MAC address that Calico's Felix gives the node called `name` when none is stored,
/// on an IPv4 underlay (`vxlan.calico`) or, with `over_v6`, an IPv6 one (`vxlan-v6.calico`).
#[must_use]
pub fn calico_vtep_mac(name: &str, over_v6: bool) -> MacAddr {
    let suffix = if over_v6 { "-v6" } else { "" };
    let [a, b, c, d, e, ..] = sha1(format!("{name}{suffix}").as_bytes());
    MacAddr::new([0x66, a, b, c, d, e])
}

/// SHA-1, RFC 3174.
fn sha1(message: &[u8]) -> [u8; 20] {
    let mut padded = message.to_vec();
    padded.push(0x80);
    while padded.len() % 64 != 56 {
        padded.push(0);
    }
    let length_bits = (message.len() as u64).wrapping_mul(8);
    padded.extend_from_slice(&length_bits.to_be_bytes());

    let mut state: [u32; 5] = [
        0x6745_2301,
        0xefcd_ab89,
        0x98ba_dcfe,
        0x1032_5476,
        0xc3d2_e1f0,
    ];
    for block in padded.chunks_exact(64) {
        let mut words = [0_u32; 16];
        for (word, octets) in words.iter_mut().zip(block.chunks_exact(4)) {
            *word = octets
                .iter()
                .fold(0, |word, &octet| word << 8 | u32::from(octet));
        }
        let [mut a, mut b, mut c, mut d, mut e] = state;
        for round in 0..80 {
            let (f, constant) = match round / 20 {
                0 => ((b & c) | (!b & d), 0x5a82_7999_u32),
                1 => (b ^ c ^ d, 0x6ed9_eba1),
                2 => ((b & c) | (b & d) | (c & d), 0x8f1b_bcdc),
                _ => (b ^ c ^ d, 0xca62_c1d6),
            };
            let next = a
                .rotate_left(5)
                .wrapping_add(f)
                .wrapping_add(e)
                .wrapping_add(constant)
                .wrapping_add(words[0]);
            (a, b, c, d, e) = (next, a, b.rotate_left(30), c, d);
            // The schedule needs the last 16 words only: words[0] is always the round's own.
            let word = (words[13] ^ words[8] ^ words[2] ^ words[0]).rotate_left(1);
            words.rotate_left(1);
            words[15] = word;
        }
        for (sum, part) in state.iter_mut().zip([a, b, c, d, e]) {
            *sum = sum.wrapping_add(part);
        }
    }
    let mut digest = [0; 20];
    for (octets, word) in digest.chunks_exact_mut(4).zip(state) {
        octets.copy_from_slice(&word.to_be_bytes());
    }
    digest
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hex(octets: &[u8]) -> String {
        octets.iter().map(|octet| format!("{octet:02x}")).collect()
    }

    #[test]
    fn sha1_agrees_with_the_vectors_of_rfc_3174() {
        assert_eq!(
            hex(&sha1(b"abc")),
            "a9993e364706816aba3e25717850c26c9cd0d89d"
        );
        assert_eq!(
            hex(&sha1(
                b"abcdbcdecdefdefgefghfghighijhijkijkljklmklmnlmnomnopnopq"
            )),
            "84983e441c3bd26ebaae4aa1f95129e5e54670f1"
        );
        assert_eq!(hex(&sha1(b"")), "da39a3ee5e6b4b0d3255bfef95601890afd80709");
    }

    #[test]
    fn calico_addresses_equal_those_that_felix_computes() {
        let text = |name, over_v6| calico_vtep_mac(name, over_v6).to_string();
        assert_eq!(text("node-1", false), "66:b3:68:28:39:8e");
        assert_eq!(text("node-1", true), "66:24:ac:63:df:6c");
        assert_eq!(text("worker-a", false), "66:54:1c:6e:f7:4d");
    }

    #[test]
    fn own_addresses_are_stable_unicast_and_locally_administered() {
        for name in ["a", "beta", "node-1", &"x".repeat(200)] {
            let mac = warren_vtep_mac(name);
            assert_eq!(mac.octets()[0] & 0x03, 0x02);
            assert_eq!(mac, warren_vtep_mac(name));
        }
        assert_ne!(warren_vtep_mac("alpha"), warren_vtep_mac("beta"));
    }
}
