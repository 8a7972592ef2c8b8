//! The demo's hand inside a node: the command that `tun-node run --rootless` runs attached to
//! the overlay.
//!
//! It reads orders from its standard input and answers on its standard output until the input
//! ends, which it does when the demo closes it or is gone, however it went. It knows nothing of
//! Warren: it sends and receives with ordinary sockets in the namespace it finds itself in.

use std::io::{self, BufReader, Write};
use std::net::SocketAddr;

use super::order::{Answer, Order, read_line, write_line};
use super::{echo, transfer};

/// Carries out orders until there are no more.
///
/// # Errors
///
/// The other end of standard input or output is gone, or said what is not an order.
pub(super) fn run() -> io::Result<()> {
    let mut orders = BufReader::new(io::stdin().lock());
    let mut answers = io::stdout().lock();
    let ready = Answer::Ready {
        pid: std::process::id(),
    };
    write_line(&mut answers, &ready)?;
    while let Some(order) = read_line(&mut orders)? {
        let answer = carry_out(&order, &mut answers).unwrap_or_else(|error| Answer::Failed {
            sentence: error.to_string(),
        });
        write_line(&mut answers, &answer)?;
    }
    Ok(())
}

fn carry_out(order: &Order, answers: &mut impl Write) -> io::Result<Answer> {
    match order {
        Order::Ping(order) => {
            let tallies = echo::ping(order, |done| tell(answers, done))?;
            Ok(Answer::Pinged { tallies })
        }
        Order::Receive { address } => {
            let (listener, port) = transfer::listen(*address)?;
            write_line(answers, &Answer::Listening { port })?;
            transfer::receive(listener).map(Answer::Received)
        }
        Order::Send {
            address,
            port,
            octets,
            seed,
        } => {
            let to = SocketAddr::new(*address, *port);
            transfer::send(to, *octets, *seed, |done| tell(answers, done)).map(Answer::Sent)
        }
    }
}

/// Progress that does not reach the demo is not missed; the answer that follows will tell.
fn tell(answers: &mut impl Write, done: u64) {
    let _ = write_line(answers, &Answer::Progress { done });
}
