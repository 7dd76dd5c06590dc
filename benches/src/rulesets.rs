//! Rules by the number, of which none but the last one of [`mixed`] fires for what the benches send.

use std::fmt::Write;

/// The name of the set that a rule of [`mixed`] asks for.
pub const SET: &str = "watched";

/// What `ctl-fw restore` reads: `count` rules by digests, prefixes, ports and users, alone and together. The last one takes
/// the packets of root's processes that map a file with `digest`. It asks for as many kinds of things as the others, so
/// that what differs is their number. Another `seed` makes all but the last one others.
pub fn mixed(count: u32, seed: u32, digest: &str) -> String {
    let mut text = format!("set create {SET} addresses 192.168.0.0/24\n");
    for number in 0..count.saturating_sub(1) {
        let n = number + seed * 8_000_008;
        // Those about owners accept: to drop they would also fire for packets whose owner is not known in time, of which
        // there are some where connections end.
        let verdict = if matches!(n % 8, 0 | 3 | 6 | 7) { "ACCEPT" } else { "DROP" };
        let matches = match n % 8 {
            0 => format!("--sng-hash {}", foreign(n)),
            1 => format!("-d {}", prefix(n)),
            2 => format!("-p tcp --dport {}", port(n)),
            3 => format!("--uid {}", 100_000 + n),
            4 => format!("-s {} -p udp --dport {}", prefix(n), port(n)),
            // These are about the packets that are sent, but for one thing.
            5 => format!("-d 198.18.0.0/15 -p udp --dport {}", port(n)),
            6 => format!("-d 198.18.0.0/15 --sng-hash {}", foreign(n)),
            _ if number == 7 => format!("-d @{SET} -p tcp"),
            _ => format!("-d 192.0.2.2 -p tcp --uid {}", 100_000 + n),
        };
        // Writing to a String cannot fail.
        let _ = writeln!(text, "-A -c OUTPUT -n any -v {verdict} {matches}");
    }
    text + &format!("-A -c OUTPUT -n any -v ACCEPT --uid 0 --sng-hash {digest}\n")
}

/// What `ctl-fw restore` reads: `count` rules by addresses, protocol and port. Another `seed` makes all of them others.
pub fn flows(count: u32, seed: u32) -> String {
    (0..count).fold(String::new(), |mut text, n| {
        let _ = writeln!(text, "-A -c OUTPUT -n any -v DROP {} --dport {}", ends(n, seed), port(n));
        text
    })
}

/// The rules of [`flows`] as `iptables-restore` reads them.
pub fn iptables(count: u32, seed: u32) -> String {
    let mut text = "*filter\n:INPUT ACCEPT [0:0]\n:FORWARD ACCEPT [0:0]\n:OUTPUT ACCEPT [0:0]\n".to_owned();
    for n in 0..count {
        let _ = writeln!(text, "-A OUTPUT {} -m tcp --dport {} -j DROP", ends(n, seed), port(n));
    }
    text + "COMMIT\n"
}

fn ends(n: u32, seed: u32) -> String {
    let [_, a, b, c] = n.to_be_bytes();
    format!("-s 10.{a}.{b}.{c}/32 -d 172.{}.{b}.0/24 -p tcp", 16 + (u32::from(a) + seed) % 16)
}

/// A digest that no file has.
fn foreign(n: u32) -> String {
    format!("{n:064x}")
}

fn prefix(n: u32) -> String {
    let length = 20 + n / 8 % 13;
    let address =
        std::net::Ipv4Addr::from_bits((10 << 24 | n.wrapping_mul(2_654_435_761) >> 8) & u32::MAX << (32 - length));
    format!("{address}/{length}")
}

/// None that the benches use.
fn port(n: u32) -> u32 {
    10_000 + n % 50_000
}

#[cfg(test)]
mod tests {
    use super::*;
    use shared::document::Document;

    #[test]
    fn all_of_them_are_rules() {
        let digest = foreign(1);
        for (text, count) in [(mixed(1, 0, &digest), 1), (mixed(5000, 1, &digest), 5000), (flows(300, 1), 300)] {
            assert_eq!(Document::parse(&text).unwrap().rules.len(), count);
        }
        assert_eq!(iptables(300, 0).lines().filter(|line| line.starts_with("-A ")).count(), 300);
        assert_ne!(flows(1, 0), flows(1, 1));
    }
}
