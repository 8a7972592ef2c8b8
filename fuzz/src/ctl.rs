//! The control socket: whatever a client sends, the node answers questions, refuses the rest with
//! one sentence, and reserves no more than its limits say.

use std::io::{self, Read, Write};
use std::sync::{Arc, LazyLock, Mutex, PoisonError};

use tun_node::config::{Config, example_config};
use tun_node::ctl::frame::{self, FrameError, REQUEST_OCTETS_MAX, RESPONSE_OCTETS_MAX, VERSION};
use tun_node::ctl::message::{Flow, Request, Response};
use tun_node::ctl::server::{Handler, converse};
use tun_node::explain;
use tun_node::rib::{Rib, Snapshot, TablesReader};
use warren_core::{Engine, EngineConfig};

/// Plays the octets as what a client sends over its connection, and as the one message of a frame
/// that is otherwise right, both from a client and from a node.
pub fn ctl(bytes: &[u8]) {
    conversation(bytes);
    let mut message = VERSION.to_be_bytes().to_vec();
    message.extend_from_slice(bytes);
    let length = u32::try_from(message.len()).expect("a short input");
    conversation(&[&length.to_be_bytes(), message.as_slice()].concat());
    if let Ok(response) = frame::decode::<Response, RESPONSE_OCTETS_MAX>(&message) {
        let mut written = Vec::new();
        // Numbers are written in their shortest form, which is no longer than what was read.
        frame::write::<_, RESPONSE_OCTETS_MAX>(&mut written, &response).expect("it was shorter");
        let again = frame::decode::<Response, RESPONSE_OCTETS_MAX>(&written[4..]);
        assert_eq!(again.expect("it was written by us"), response);
    }
}

/// Every question gets one answer; what is no question gets one sentence, and then nothing.
fn conversation(incoming: &[u8]) {
    let client = Client {
        node: &NODE,
        asked: Mutex::default(),
    };
    let mut wire = Wire {
        incoming,
        outgoing: Vec::new(),
    };
    let ended = converse(&mut wire, &client);
    let asked = client
        .asked
        .into_inner()
        .unwrap_or_else(PoisonError::into_inner);

    let mut answers = Vec::new();
    let mut outgoing = wire.outgoing.as_slice();
    while let Some(answer) = frame::read::<Response, RESPONSE_OCTETS_MAX>(&mut outgoing)
        .expect("the node writes whole frames of this version")
    {
        answers.push(answer);
    }
    match ended {
        Ok(()) => assert_eq!(answers.len(), asked.len()),
        Err(FrameError::Io(_)) => {
            assert_eq!(answers.len(), asked.len());
            assert!(wire.incoming.is_empty(), "only the end cuts a frame off");
        }
        Err(error) => {
            assert_eq!(answers.len(), asked.len() + 1);
            let Some(Response::Error(sentence)) = answers.pop() else {
                panic!("{error} was not told");
            };
            assert_eq!(sentence, error.to_string());
        }
    }
    for (request, answer) in asked.iter().zip(&answers) {
        let fits = match request {
            Request::Status => matches!(answer, Response::Error(_)),
            Request::Routes { first } => {
                let total = NODE.snapshot.routes.len();
                let left = total.saturating_sub(usize::try_from(*first).unwrap_or(usize::MAX));
                matches!(answer, Response::Routes { routes, .. } if routes.len() == left)
            }
            Request::Peers => matches!(answer, Response::Peers(_)),
            Request::Counters => matches!(answer, Response::Counters(_)),
            Request::Explain(flow) => {
                if let Response::Explain(report) = answer {
                    report.flow == *flow && !report.text.is_empty()
                } else {
                    flow.source.is_ipv4() != flow.destination.is_ipv4()
                }
            }
            Request::Prefer { .. } | Request::Fault(_) | Request::Confirm { .. } => {
                matches!(answer, Response::Done)
            }
            Request::Sources => matches!(answer, Response::Sources(_)),
            Request::Why { .. } => matches!(answer, Response::Why(_)),
            Request::Events { .. } => matches!(answer, Response::Events(_)),
            Request::Reload { .. } => matches!(answer, Response::Reload(_)),
        };
        assert!(fits, "{request:?}: {answer:?}");
        let mut written = Vec::new();
        frame::write::<_, REQUEST_OCTETS_MAX>(&mut written, request)
            .expect("what was read within the limit is written within it");
        let again = frame::decode::<Request, REQUEST_OCTETS_MAX>(&written[4..]);
        assert_eq!(again.expect("it was written by us"), *request);
    }
}

/// The two directions of a connection.
struct Wire<'b> {
    incoming: &'b [u8],
    outgoing: Vec<u8>,
}

impl Read for Wire<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        // The node asks for as much as a frame may have and never more.
        assert!(buffer.len() <= REQUEST_OCTETS_MAX);
        self.incoming.read(buffer)
    }
}

impl Write for Wire<'_> {
    fn write(&mut self, octets: &[u8]) -> io::Result<usize> {
        assert!(octets.len() <= 4 + RESPONSE_OCTETS_MAX);
        self.outgoing.write(octets)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// What a node knows when it answers, without its device and its sockets.
struct Node {
    reader: TablesReader,
    snapshot: Snapshot,
    engine: Mutex<Engine>,
}

static NODE: LazyLock<Node> = LazyLock::new(|| {
    let config = Config::parse(example_config(), "example").expect("the example is valid");
    let rib = Rib::of_config(&config).expect("the example is small");
    let snapshot = rib.reader().snapshot();
    let engine = Engine::new(EngineConfig::default(), Arc::clone(&snapshot.tables));
    Node {
        reader: rib.reader(),
        snapshot,
        engine: Mutex::new(engine),
    }
});

/// A client's connection: answers as the node does and notes what was asked.
struct Client {
    node: &'static Node,
    asked: Mutex<Vec<Request>>,
}

impl Handler for Client {
    fn answer(&self, request: Request) -> Response {
        let mut asked = self.asked.lock().unwrap_or_else(PoisonError::into_inner);
        asked.push(request.clone());
        let Snapshot { tables, routes, .. } = &self.node.snapshot;
        match request {
            Request::Status => Response::Error("it has no device".to_owned()),
            Request::Routes { first } => Response::Routes {
                routes: routes
                    .iter()
                    .skip(usize::try_from(first).unwrap_or(usize::MAX))
                    .map(|route| explain::rib_route_report(route, tables))
                    .collect(),
                epoch: tables.epoch().0,
                total: u32::try_from(routes.len()).unwrap_or(u32::MAX),
            },
            Request::Peers => Response::Peers(Vec::new()),
            Request::Counters => Response::Counters(Box::default()),
            Request::Explain(flow) => self.explain(flow),
            Request::Prefer { .. } | Request::Fault(_) | Request::Confirm { .. } => Response::Done,
            Request::Sources => Response::Sources(Box::default()),
            Request::Why { .. } => Response::Why(Vec::new()),
            Request::Events { .. } => Response::Events(Vec::new()),
            Request::Reload { .. } => Response::Reload(Box::default()),
        }
    }
}

impl Client {
    fn explain(&self, flow: Flow) -> Response {
        if flow.source.is_ipv4() != flow.destination.is_ipv4() {
            return Response::Error("source and destination are of different families".to_owned());
        }
        let engine = &self.node.engine;
        let engine = engine.lock().unwrap_or_else(PoisonError::into_inner);
        let direction = explain::direction(&flow, &self.node.snapshot.tables);
        let found = engine.explain_flow(direction, &explain::flow_key(&flow), flow.octets);
        Response::Explain(Box::new(explain::report(flow, &found, &self.node.reader)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A change of the messages' version leaves seeds behind that are refused at their third octet.
    #[test]
    fn the_seeds_are_of_this_version() {
        let seed = include_bytes!("../seeds/ctl/every-question");
        let client = Client {
            node: &NODE,
            asked: Mutex::default(),
        };
        let mut wire = Wire {
            incoming: seed,
            outgoing: Vec::new(),
        };
        let told = "write them again: cargo run -p warren-fuzz --example seeds";
        converse(&mut wire, &client).expect(told);
        assert_eq!(client.asked.into_inner().unwrap().len(), 13, "{told}");
    }
}
