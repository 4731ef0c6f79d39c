//! Processes say with each call which format they know, and are refused by those that cannot speak with them.

use tonic::{Request, Status};
use types::{MailError, format};

use crate::error::status;

/// What each call's user agent begins with (RFC 9110 §10.1.5), the caller's newest format behind it.
const AGENT: &str = "mailring/";

/// Of the calls of this process.
pub(crate) fn user_agent() -> String {
    format!("{AGENT}{}", format::known())
}

/// Refuses a caller whose format is more than one away from our own, by name. One that says nothing of it is no process of
/// a cluster, and is judged by its role alone.
pub fn check_format(request: Request<()>) -> Result<Request<()>, Status> {
    match caller(&request) {
        Some(format) if !format::speaks_with(format) => Err(status(&MailError::CannotDo(format!(
            "the caller's program is of format {format}, this node's of format {}: they speak with those of one format \
             before and after their own",
            format::known()
        )))),
        _ => Ok(request),
    }
}

fn caller(request: &Request<()>) -> Option<u32> {
    let agent = request.metadata().get("user-agent")?.to_str().ok()?;
    agent.strip_prefix(AGENT)?.split(' ').next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use tonic::Request;
    use types::format;

    use super::{check_format, user_agent};

    fn asked_by(agent: &str) -> Request<()> {
        let mut request = Request::new(());
        request.metadata_mut().insert("user-agent", agent.parse().unwrap());
        request
    }

    #[test]
    fn neighbours_are_heard_and_others_are_refused_by_name() {
        let own = format::known();
        for agent in [user_agent(), format!("mailring/{} tonic/1.0", own + 1), "curl/8".to_owned()] {
            assert!(check_format(asked_by(&agent)).is_ok(), "{agent}");
        }
        assert!(check_format(Request::new(())).is_ok());
        let refused = check_format(asked_by(&format!("mailring/{} tonic/1.0", own + 2))).unwrap_err();
        assert!(refused.message().contains(&format!("of format {}", own + 2)), "{refused}");
    }
}
