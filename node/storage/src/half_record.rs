//! What a half of a mirror says of itself and of the other half: the file `HALF`, written whole.
//!
//! Invariant: whoever of the two was left behind is told by the record of the one that went on, durable before anything
//! is acknowledged that the other does not have.

use std::io;
use std::path::Path;

use crate::error::StorageError;
use crate::faults::HalfName;
use crate::files;

const NAME: &str = "HALF";
/// The file has some short lines; more is not ours.
const FILE_BYTES_MAX: u64 = 4096;
const FORMAT: u32 = 1;

#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct HalfRecord {
    /// Common to the two halves, and to no others.
    pub volume: u64,
    pub name: HalfName,
    /// Grows when a half is dropped: the greater one went on.
    pub epoch: u64,
    /// Grows with each opening; 0 for one that was never opened.
    pub opened: u64,
    /// Whether the other half had all that was acknowledged.
    pub partner_current: bool,
    /// Written on a half that is dropped, where its disk still lets us: it is never opened again.
    pub stale: bool,
    /// Which database is the half's: another one in the directory is the rest of a resilver.
    pub generation: u64,
    /// What is added to the database's sequence numbers to have the volume's.
    pub offset: u64,
    /// The last number, if it was closed and not written since.
    pub closed: Option<u64>,
}

impl HalfRecord {
    pub(crate) fn read(directory: &Path) -> Result<Option<HalfRecord>, StorageError> {
        let path = directory.join(NAME);
        let doing = |error: io::Error| StorageError::io(format!("reading {}", path.display()), error);
        let damaged = |reason: &str| StorageError::corrupt(path.display().to_string(), reason);
        match std::fs::metadata(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(doing(error)),
            Ok(data) if data.len() > FILE_BYTES_MAX => return Err(damaged("too long")),
            Ok(_) => {}
        }
        let text = String::from_utf8(std::fs::read(&path).map_err(doing)?).map_err(|_| damaged("not text"))?;
        let value =
            |name: &str| text.lines().find_map(|line| line.strip_prefix(name).and_then(|rest| rest.strip_prefix(' ')));
        let number = |name: &str| value(name).and_then(|text| text.parse::<u64>().ok()).ok_or_else(|| damaged(name));
        let format = number("half")?;
        if format > u64::from(FORMAT) {
            let reason = format!("{} has format {format}; this program knows formats up to {FORMAT}", path.display());
            return Err(StorageError::Refused(reason));
        }
        let record = HalfRecord {
            volume: value("volume")
                .and_then(|text| u64::from_str_radix(text, 16).ok())
                .ok_or_else(|| damaged("volume"))?,
            name: match value("name") {
                Some("a") => HalfName::A,
                Some("b") => HalfName::B,
                _ => return Err(damaged("name")),
            },
            epoch: number("epoch")?,
            opened: number("opened")?,
            partner_current: value("partner") == Some("current"),
            stale: value("self") == Some("stale"),
            generation: number("generation")?,
            offset: number("offset")?,
            closed: value("closed").and_then(|text| text.parse().ok()),
        };
        if record.text() == text { Ok(Some(record)) } else { Err(damaged("wrong checksum")) }
    }

    pub(crate) fn write(&self, directory: &Path) -> Result<(), StorageError> {
        files::create_whole(&directory.join(NAME), self.text().as_bytes())
    }

    pub(crate) fn exists(directory: &Path) -> bool {
        directory.join(NAME).exists()
    }

    fn text(&self) -> String {
        let HalfRecord { volume, name, epoch, opened, partner_current, stale, generation, offset, closed } = self;
        let partner = if *partner_current { "current" } else { "stale" };
        let own = if *stale { "stale" } else { "current" };
        let mut text = format!(
            "half {FORMAT}\nvolume {volume:016x}\nname {name}\nepoch {epoch}\nopened {opened}\npartner {partner}\n\
             self {own}\ngeneration {generation}\noffset {offset}\n"
        );
        if let Some(number) = closed {
            text.push_str(&format!("closed {number}\n"));
        }
        let crc = crc32c::crc32c(text.as_bytes());
        text.push_str(&format!("crc {crc:08x}\n"));
        text
    }
}

#[cfg(test)]
mod tests {
    use super::HalfRecord;
    use crate::faults::HalfName;

    #[test]
    fn a_record_is_read_back_and_damage_is_seen() {
        let directory = tempfile::tempdir().unwrap();
        assert_eq!(HalfRecord::read(directory.path()).unwrap(), None);
        let record = HalfRecord {
            volume: 0xfeed,
            name: HalfName::B,
            epoch: 3,
            opened: 9,
            partner_current: false,
            stale: false,
            generation: 2,
            offset: 77,
            closed: Some(5),
        };
        record.write(directory.path()).unwrap();
        assert_eq!(HalfRecord::read(directory.path()).unwrap(), Some(record));
        let path = directory.path().join("HALF");
        let good = std::fs::read(&path).unwrap();
        for at in 0..good.len() {
            let mut bad = good.clone();
            bad[at] ^= 2;
            std::fs::write(&path, &bad).unwrap();
            assert!(HalfRecord::read(directory.path()).is_err(), "byte {at}");
        }
    }
}
