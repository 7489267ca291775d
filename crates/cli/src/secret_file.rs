//! The secret that an embedded Dashi keeps in a file beside its log, where no secret is configured.

use std::path::Path;

use anyhow::Context as _;

/// 256 bits of the system's random numbers.
///
/// # Errors
/// The system gives none.
pub fn random() -> anyhow::Result<[u8; 32]> {
    let mut random = [0_u8; 32];
    let mut source = std::fs::File::open("/dev/urandom").context("cannot open /dev/urandom")?;
    std::io::Read::read_exact(&mut source, &mut random).context("cannot read /dev/urandom")?;
    Ok(random)
}

/// Reads the secret; makes the file at the first start, readable by its owner only.
///
/// # Errors
/// The file cannot be read or made, or is empty.
pub fn read_or_make(path: &Path) -> anyhow::Result<String> {
    use std::io::Write as _;
    use std::os::unix::fs::OpenOptionsExt as _;
    let read = || -> anyhow::Result<Option<String>> {
        match std::fs::read_to_string(path) {
            Ok(text) if text.trim().is_empty() => anyhow::bail!(
                "the secret file {} is empty: restore the secret, or remove the file to get a new one",
                path.display()
            ),
            Ok(text) => Ok(Some(text.trim().to_owned())),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
            Err(error) => {
                Err(error).with_context(|| format!("cannot read the secret file {}", path.display()))
            }
        }
    };
    if let Some(secret) = read()? {
        return Ok(secret);
    }
    let making = || format!("cannot make the secret file {}", path.display());
    if let Some(directory) = path.parent() {
        std::fs::create_dir_all(directory).with_context(making)?;
    }
    let secret: String = random().with_context(making)?.iter().map(|byte| format!("{byte:02x}")).collect();
    // Written whole under another name first, so that a file of this name never holds half a secret.
    let draft = path.with_extension(format!("{}.new", std::process::id()));
    let mut file = std::fs::File::options()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(&draft)
        .with_context(making)?;
    file.write_all(secret.as_bytes()).and_then(|()| file.sync_all()).with_context(making)?;
    // Of two processes the one that links first wins; the other reads the winner's secret.
    let linked = std::fs::hard_link(&draft, path);
    std::fs::remove_file(&draft).with_context(making)?;
    match linked {
        Ok(()) => Ok(secret),
        Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => read()?.with_context(making),
        Err(error) => Err(error).with_context(making),
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    #[test]
    fn a_kept_secret_is_made_once_and_is_its_owners_alone() {
        let directory = std::env::temp_dir().join(format!("dashi-secret-{}", uuid::Uuid::now_v7()));
        let path = directory.join("secret");
        let made = read_or_make(&path).expect("made");
        assert_eq!(made.len(), 64);
        assert_eq!(read_or_make(&path).expect("read"), made);
        let mode = std::fs::metadata(&path).expect("there").permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        std::fs::write(&path, " \n").expect("written");
        let error = read_or_make(&path).expect_err("an empty secret is no secret").to_string();
        assert!(error.contains("is empty"), "{error}");
        std::fs::remove_dir_all(&directory).expect("removed");
    }
}
