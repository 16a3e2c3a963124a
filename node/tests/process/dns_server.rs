//! A DNS server on loopback that speaks the real protocol and whose records a test may change.

use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex};

use hickory_resolver::proto::op::{Message, ResponseCode};
use hickory_resolver::proto::rr::rdata::SRV;
use hickory_resolver::proto::rr::{RData, Record, RecordType};
use tokio::net::UdpSocket;

/// TTL of every record, in seconds.
const TTL: u32 = 1;

#[derive(Clone, Default)]
pub(crate) struct Zone {
    /// Names, each with a final dot, and their addresses.
    pub(crate) addresses: HashMap<String, Vec<IpAddr>>,
    /// Names of SRV records, and the targets of each.
    pub(crate) services: HashMap<String, Vec<(String, u16)>>,
}

pub(crate) struct DnsServer {
    pub(crate) address: SocketAddr,
    zone: Arc<Mutex<Zone>>,
}

impl DnsServer {
    pub(crate) async fn start() -> Self {
        let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        let address = socket.local_addr().unwrap();
        let zone = Arc::<Mutex<Zone>>::default();
        let served = zone.clone();
        tokio::spawn(async move {
            let mut buffer = [0; 1500];
            loop {
                let (length, from) = socket.recv_from(&mut buffer).await.unwrap();
                let question = Message::from_vec(&buffer[..length]).unwrap();
                let answer = answer(&question, &served.lock().unwrap()).to_vec().unwrap();
                socket.send_to(&answer, from).await.unwrap();
            }
        });
        Self { address, zone }
    }

    /// Serves these records, and no others.
    pub(crate) fn set(&self, zone: Zone) {
        *self.zone.lock().unwrap() = zone;
    }
}

fn answer(question: &Message, zone: &Zone) -> Message {
    let mut answer = Message::response(question.metadata.id, question.metadata.op_code);
    let query = question.queries[0].clone();
    let name = query.name().to_string();
    let mut add = |data: RData| {
        if data.record_type() == query.query_type() {
            answer.add_answer(Record::from_rdata(query.name().clone(), TTL, data));
        }
    };
    let (addresses, services) = (zone.addresses.get(&name), zone.services.get(&name));
    for ip in addresses.into_iter().flatten() {
        add(RData::from(*ip));
    }
    for (target, port) in services.into_iter().flatten() {
        add(RData::SRV(SRV::new(0, 0, *port, target.parse().unwrap())));
    }
    if addresses.is_none() && services.is_none() {
        answer.metadata.response_code = ResponseCode::NXDomain;
    }
    debug_assert!(matches!(query.query_type(), RecordType::A | RecordType::AAAA | RecordType::SRV));
    answer.add_query(query);
    answer
}
