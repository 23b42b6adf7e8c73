//! What happened, counted since the start: [`Counters`].

/// How often each thing happened. Nothing that a peer sends is logged; it is counted here.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counters {
    /// Datagrams given to the endpoint.
    pub received: u64,
    /// Datagrams handed out to be sent.
    pub sent: u64,
    /// Datagrams that are no message of CoAP 1.
    pub foreign: u64,
    /// Messages with a format error, or of a type or code that makes no sense.
    pub malformed: u64,
    /// Datagrams from a source that cannot be answered, or confirmable ones to a group.
    pub unanswerable: u64,
    /// Requests that were carried out.
    pub requests: u64,
    /// Repeated messages that were answered from the stored reply or ignored.
    pub duplicates: u64,
    /// Remembered requests that had to be forgotten before their lifetime ended.
    pub duplicates_evicted: u64,
    /// Requests refused with 4.xx.
    pub refused: u64,
    /// Requests turned away with 5.03 because too many wait for their resource.
    pub deferred_full: u64,
    /// Requests whose resource did not answer in time.
    pub deferred_expired: u64,
    /// Registrations answered plainly because a table of observers was full.
    pub observers_refused: u64,
    /// Observers removed because they answered with a reset or not at all.
    pub observers_lost: u64,
    /// Notifications sent.
    pub notifications: u64,
    /// Notifications left out because a newer one replaced them.
    pub notifications_coalesced: u64,
    /// Confirmable messages repeated.
    pub retransmissions: u64,
    /// Confirmable messages that were never acknowledged.
    pub timeouts: u64,
    /// Confirmable messages sent without repetition because the table was full.
    pub exchanges_full: u64,
    /// Bodies of blockwise transfers forgotten before they were complete.
    pub bodies_evicted: u64,
    /// Datagrams dropped because nobody fetched those before them.
    pub outbox_full: u64,
    /// Notifications from others dropped because nobody fetched those before them.
    pub events_full: u64,
}
