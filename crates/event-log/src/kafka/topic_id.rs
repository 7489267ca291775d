//! The id that Kafka gave a topic when it was created (KIP-516). The safe wrapper does not offer it, so this
//! module calls the C library; no other module may.
#![expect(unsafe_code, reason = "librdkafka's DescribeTopics has no safe binding")]

use std::ffi::{CStr, CString};
use std::ptr;
use std::time::Duration;

use rdkafka::bindings as c;
use rdkafka::client::{Client, ClientContext};
use rdkafka::error::RDKafkaErrorCode;
use rdkafka::message::BorrowedMessage;

/// Why a topic's id cannot be returned.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The cluster has no such topic, or does not show it.
    #[error("there is no such topic")]
    Absent,
    /// Any other answer of the cluster or the library.
    #[error("{0}")]
    Other(String),
}

/// The broker that a message was fetched from, if the library knows it.
pub fn broker_of(message: &BorrowedMessage<'_>) -> Option<i32> {
    // SAFETY: the pointer is the message's own, which lives as long as `message`.
    let broker = unsafe { c::rd_kafka_message_broker_id(message.ptr()) };
    (broker >= 0).then_some(broker)
}

/// Asks one broker, or any, for the id of `topic`, as 22 base64 characters. Brokers before 2.8 give all topics the same
/// id (zero). Blocks up to `timeout`.
///
/// # Errors
/// See [`Error`].
pub fn fetch<C: ClientContext>(
    client: &Client<C>,
    topic: &str,
    broker: Option<i32>,
    timeout: Duration,
) -> Result<String, Error> {
    let topic = CString::new(topic).map_err(|error| Error::Other(error.to_string()))?;
    let timeout_ms = i32::try_from(timeout.as_millis()).unwrap_or(i32::MAX);
    let rk = client.native_ptr();
    // SAFETY: `rk` lives as long as `client`. Every object made here is destroyed here, once, after its last use;
    // what is read from the event is copied before the event is destroyed. Pointers that the library may return
    // as null are checked. The topic's name outlives the collection that points to it.
    unsafe {
        let mut names = [topic.as_ptr()];
        let topics = c::rd_kafka_TopicCollection_of_topic_names(names.as_mut_ptr(), names.len());
        let options =
            c::rd_kafka_AdminOptions_new(rk, c::rd_kafka_admin_op_t::RD_KAFKA_ADMIN_OP_DESCRIBETOPICS);
        c::rd_kafka_AdminOptions_set_request_timeout(options, timeout_ms, ptr::null_mut(), 0);
        if let Some(broker) = broker {
            c::rd_kafka_AdminOptions_set_broker(options, broker, ptr::null_mut(), 0);
        }
        let queue = c::rd_kafka_queue_new(rk);
        c::rd_kafka_DescribeTopics(rk, topics, options, queue);
        let event = c::rd_kafka_queue_poll(queue, timeout_ms.saturating_add(1_000));
        let id = read(event);
        if !event.is_null() {
            c::rd_kafka_event_destroy(event);
        }
        c::rd_kafka_queue_destroy(queue);
        c::rd_kafka_AdminOptions_destroy(options);
        c::rd_kafka_TopicCollection_destroy(topics);
        id
    }
}

/// # Safety
/// `event` is null or a live event.
unsafe fn read(event: *mut c::rd_kafka_event_t) -> Result<String, Error> {
    // SAFETY: see `fetch`; all pointers below are owned by the event and not used after this function.
    unsafe {
        if event.is_null() {
            return Err(Error::Other("no answer in time".to_owned()));
        }
        let text = |text: *const std::ffi::c_char| {
            if text.is_null() { String::new() } else { CStr::from_ptr(text).to_string_lossy().into_owned() }
        };
        if c::rd_kafka_event_error(event) != c::rd_kafka_resp_err_t::RD_KAFKA_RESP_ERR_NO_ERROR {
            return Err(Error::Other(text(c::rd_kafka_event_error_string(event))));
        }
        let result = c::rd_kafka_event_DescribeTopics_result(event);
        if result.is_null() {
            return Err(Error::Other("the answer is of another kind".to_owned()));
        }
        let mut count = 0;
        let topics = c::rd_kafka_DescribeTopics_result_topics(result, &mut count);
        if topics.is_null() || count != 1 {
            return Err(Error::Other(format!("the answer has {count} topics")));
        }
        let error = c::rd_kafka_TopicDescription_error(*topics);
        if !error.is_null() {
            match RDKafkaErrorCode::from(c::rd_kafka_error_code(error)) {
                RDKafkaErrorCode::NoError => {}
                RDKafkaErrorCode::UnknownTopicOrPartition | RDKafkaErrorCode::UnknownTopic => {
                    return Err(Error::Absent);
                }
                _ => return Err(Error::Other(text(c::rd_kafka_error_string(error)))),
            }
        }
        let id = c::rd_kafka_TopicDescription_topic_id(*topics);
        if id.is_null() {
            return Err(Error::Other("the answer has no topic id".to_owned()));
        }
        Ok(text(c::rd_kafka_Uuid_base64str(id)))
    }
}
