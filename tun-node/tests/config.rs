//! probe
use tun_node::config::{Config, example_config};
#[test]
fn probe() {
    let c = Config::parse(example_config(), "ex");
    match c { Ok(c) => println!("{}", c.summary()), Err(e) => println!("{e}") }
    for f in std::fs::read_dir("/tmp/w/cfgprobe").unwrap() {
        let p = f.unwrap().path();
        println!("== {}", p.display());
        match Config::load(&p) { Ok(c) => println!("{}", c.summary()), Err(e) => println!("{}", &e.to_string()[..e.to_string().len().min(6000)]) }
    }
}
