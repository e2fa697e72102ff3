//! Reading a whole file whose size somebody else chose.

use std::fs::File;
use std::io::{Error as IoError, ErrorKind, Read};
use std::path::Path;

use crate::error::{Error, Result};

/// Refuses what is no regular file, before it is opened: opening a pipe would wait for a writer, and a device may
/// never end.
pub(crate) fn refuse_irregular(path: &Path) -> Result<()> {
    let found = std::fs::metadata(path).map_err(|e| Error::io(path, "read", e))?;
    if found.is_file() {
        return Ok(());
    }
    let what = if found.is_dir() { "a directory" } else { "no regular file" };
    let e = IoError::new(ErrorKind::InvalidInput, format!("the path is {what}"));
    Err(Error::io(path, "read", e))
}

/// The bytes of a regular file that has at most `most` of them.
///
/// # Errors
/// `is_io`, with the path: a file that cannot be read or is no regular file (a directory, a pipe, a device), one that
/// is larger, or no memory for it.
pub fn read_file(path: impl AsRef<Path>, most: u64) -> Result<Vec<u8>> {
    let path = path.as_ref();
    let failed = |e| Error::io(path, "read", e);
    refuse_irregular(path)?;
    let file = File::open(path).map_err(failed)?;
    let announced = file.metadata().map_err(failed)?.len();
    let too_large = || {
        let what = format!("it has more than the {most} bytes that such a file may have");
        failed(IoError::new(ErrorKind::FileTooLarge, what))
    };
    if announced > most {
        return Err(too_large());
    }
    let mut bytes = Vec::new();
    let no_memory = |_| failed(IoError::new(ErrorKind::OutOfMemory, "no memory for its bytes"));
    bytes.try_reserve_exact(usize::try_from(announced).unwrap_or(usize::MAX)).map_err(no_memory)?;
    // It may grow meanwhile, or announce nothing, as the files of /proc do.
    file.take(most.saturating_add(1)).read_to_end(&mut bytes).map_err(failed)?;
    if bytes.len() as u64 > most {
        return Err(too_large());
    }
    Ok(bytes)
}

/// The same as text.
///
/// # Errors
/// As [`read_file`]; `is_parse` for bytes that are not UTF-8.
pub fn read_text_file(path: impl AsRef<Path>, most: u64) -> Result<String> {
    let path = path.as_ref();
    String::from_utf8(read_file(path, most)?).map_err(|e| {
        let at = e.utf8_error().valid_up_to();
        Error::parse(format!("expected UTF-8 text, found another byte at {at}"))
            .context(path.display())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn regular_files_are_read_up_to_their_limit() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a");
        std::fs::write(&path, b"12345").unwrap();
        assert_eq!(read_file(&path, 5).unwrap(), b"12345");
        assert_eq!(read_text_file(&path, 6).unwrap(), "12345");
        let e = read_file(&path, 4).unwrap_err();
        assert!(
            e.is_io() && e.to_string().ends_with("more than the 4 bytes that such a file may have")
        );
        std::fs::write(&path, b"ab\xff").unwrap();
        let e = read_text_file(&path, 9).unwrap_err();
        assert!(e.is_parse() && e.to_string().ends_with("another byte at 2"), "{e}");
    }

    #[test]
    fn what_is_no_file_is_neither_opened_nor_read() {
        let dir = tempfile::tempdir().unwrap();
        let e = read_file(dir.path(), 9).unwrap_err();
        assert!(e.is_io() && e.to_string().ends_with("the path is a directory"), "{e}");
        if cfg!(unix) {
            let e = read_file("/dev/zero", 9).unwrap_err();
            assert!(e.is_io() && e.to_string().ends_with("no regular file"), "{e}");
        }
        assert!(read_file(dir.path().join("none"), 9).unwrap_err().is_io());
    }
}
