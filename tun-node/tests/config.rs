//! probe
use tun_node::config::Config;
#[test]
fn probe() {
    for f in std::fs::read_dir("/tmp/w/cfgprobe").unwrap() {
        let p = f.unwrap().path();
        let t = std::time::Instant::now();
        let r = Config::load(&p).map(|_| ()).map_err(|e| e.to_string());
        eprintln!(
            "{p:?} {:?} {:?}",
            t.elapsed(),
            r.map_err(|e| e[..e.len().min(150)].to_string())
        );
    }
}
