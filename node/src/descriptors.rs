//! File descriptors: a database that cannot open a file has failed, so connections leave it those that it may need.

use std::os::fd::AsRawFd;

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use tokio::net::TcpStream;

/// Open tables of each database, where the limit allows: more than a volume of a terabyte has in its upper levels.
const FILES_MAX: u64 = 1024;
/// With fewer a database is slow, and still works.
const FILES_MIN: u64 = 32;
/// Beside open tables: logs, marks, directories that are listed, snapshots on their way, files that are being written.
const OTHERS: u64 = 64;

/// Takes what the system allows; the soft limit is often that of programs that use select.
pub fn raise_limit() {
    let limit = getrlimit(Resource::Nofile);
    let raised = Rlimit { current: limit.maximum, ..limit };
    if let Err(error) = setrlimit(Resource::Nofile, raised) {
        tracing::debug!(%error, "limit of open files stays");
    }
}

fn limit() -> u64 {
    getrlimit(Resource::Nofile).current.unwrap_or(u64::MAX)
}

/// Open tables that each of so many databases may have: half of the limit is for them.
pub fn files_max(databases: usize) -> u64 {
    share(limit(), databases as u64)
}

fn share(limit: u64, databases: u64) -> u64 {
    (limit / 2 / databases.max(1)).clamp(FILES_MIN, FILES_MAX)
}

/// What connections leave for the files of so many databases.
pub fn reserve(databases: usize) -> u64 {
    files_max(databases) * databases as u64 + OTHERS
}

/// Whether a connection that was just accepted leaves the reserve free. The system gives out the lowest number that is
/// free: whatever is free beside it lies above.
pub fn leaves(reserve: u64, stream: &TcpStream) -> bool {
    let number = u64::try_from(stream.as_raw_fd()).unwrap_or(u64::MAX);
    number.saturating_add(reserve) < limit()
}

#[cfg(test)]
mod tests {
    use tokio::net::{TcpListener, TcpStream};

    use super::{FILES_MAX, FILES_MIN, leaves, limit, share};

    #[test]
    fn databases_share_half_of_the_limit() {
        assert_eq!(share(1024, 1), 512);
        assert_eq!(share(1024, 4), 128);
        assert_eq!(share(1 << 20, 4), FILES_MAX);
        assert_eq!(share(64, 8), FILES_MIN);
    }

    #[tokio::test]
    async fn a_connection_that_would_touch_the_reserve_is_told_from_one_that_does_not() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let stream = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        assert!(leaves(0, &stream));
        assert!(!leaves(limit(), &stream));
    }
}
