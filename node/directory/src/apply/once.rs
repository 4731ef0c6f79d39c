//! Requests that may come several times.

use super::{Reply, outcome};
use crate::change::ChangedRecord;
use crate::command::Command;
use crate::error::DirectoryError;
use crate::requests::{Answered, Request, subject};
use crate::state::Directory;

impl Directory {
    /// Decides a request at its first attempt, and answers later ones as that. Remembers refusals too: what the first attempt
    /// may not do must not happen behind the caller's back by a later one.
    pub(super) fn decide_once(
        &self,
        revision: u64,
        request: Request,
        command: &Command,
    ) -> (Result<Reply, DirectoryError>, Vec<ChangedRecord>) {
        // Nothing can be remembered yet.
        if self.cluster.is_none() {
            return (Err(DirectoryError::NotReady), Vec::new());
        }
        let (now, subject) = (self.requests.now(request.unix_ms), subject(command));
        if let Some(known) = self.requests.known(request.id, now) {
            let answer = match known.subject == subject {
                true => known.answer.clone(),
                false => Err(DirectoryError::Invalid("the request id belongs to another request".to_owned())),
            };
            return (answer, Vec::new());
        }
        let (answer, mut records) = outcome(self.decide(revision, command));
        let answered = Answered { revision, unix_ms: now, subject, answer: answer.clone() };
        let forgotten = self.requests.surplus(now, &answered).into_iter().filter(|id| *id != request.id);
        records.extend(forgotten.map(|id| ChangedRecord::Request(id, None)));
        records.push(ChangedRecord::Request(request.id, Some(answered)));
        (answer, records)
    }
}
