//! Answers as DNS messages.

use hickory_proto::op::{Message, OpCode, Query, ResponseCode};
use hickory_proto::rr::rdata::{A, CNAME, PTR, SOA, SRV, TXT};
use hickory_proto::rr::{Name, RData, Record as Resource, RecordType};

use crate::zone::{Answer, Record};

/// Seconds an answer may be kept, CoreDNS's default.
const TTL: u32 = 30;

/// The response to a query for a name of ours; `None` for a foreign one.
pub fn respond(request: &Message, query: &Query, domain: &str, answer: Answer) -> Option<Message> {
    let mut response = response_to(request);
    response.metadata.authoritative = true;
    let records = match answer {
        Answer::Foreign => return None,
        Answer::Missing => {
            response.metadata.response_code = ResponseCode::NXDomain;
            Vec::new()
        }
        Answer::Records(records) => records,
    };
    for record in &records {
        if let Some(data) = data(record, query.query_type()) {
            response.add_answer(Resource::from_rdata(query.name().clone(), TTL, data));
        }
    }
    if response.answers.is_empty()
        && let Some(soa) = start_of_authority(domain)
    {
        response.add_authority(soa);
    }
    Some(response)
}

/// An empty response that repeats the question.
pub fn response_to(request: &Message) -> Message {
    let mut response = Message::response(request.metadata.id, OpCode::Query);
    response.metadata.recursion_desired = request.metadata.recursion_desired;
    response.metadata.recursion_available = true;
    response.add_queries(request.queries.iter().cloned());
    response
}

/// A response that says only how the request failed.
pub fn failure(request: &Message, code: ResponseCode) -> Message {
    let mut response = response_to(request);
    response.metadata.response_code = code;
    response
}

fn data(record: &Record, wanted: RecordType) -> Option<RData> {
    let name = |text: &str| Name::from_ascii(format!("{text}.")).ok();
    let (ty, data) = match record {
        Record::Address(address) => (RecordType::A, RData::A(A(*address))),
        Record::Service(port, target) => (
            RecordType::SRV,
            RData::SRV(SRV::new(0, 100, *port, name(target)?)),
        ),
        // An alias answers every question about its name.
        Record::Alias(target) => {
            return Some(RData::CNAME(CNAME(name(target.trim_end_matches('.'))?)));
        }
        Record::Text(text) => (RecordType::TXT, RData::TXT(TXT::new(vec![text.clone()]))),
        Record::Pointer(target) => (RecordType::PTR, RData::PTR(PTR(name(target)?))),
    };
    (wanted == ty || wanted == RecordType::ANY).then_some(data)
}

fn start_of_authority(domain: &str) -> Option<Resource> {
    let name = |text: String| Name::from_ascii(text).ok();
    let soa = SOA::new(
        name(format!("ns.dns.{domain}."))?,
        name(format!("hostmaster.{domain}."))?,
        1,
        7200,
        1800,
        86_400,
        TTL,
    );
    Some(Resource::from_rdata(
        name(format!("{domain}."))?,
        TTL,
        RData::SOA(soa),
    ))
}
