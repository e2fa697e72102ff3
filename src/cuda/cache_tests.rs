use super::*;

#[test]
fn the_directory_follows_the_environment() {
    let dir = |own: Option<&str>, xdg: Option<&str>, home: Option<&str>| {
        let os = |value: Option<&str>| value.map(OsString::from);
        directory(os(own), os(xdg), os(home)).map(|path| path.to_string_lossy().into_owned())
    };
    let is = |text: &str| Some(text.to_owned());
    assert_eq!(dir(Some("/own"), Some("/xdg"), Some("/home")), is("/own"));
    assert_eq!(dir(Some(""), Some("/xdg"), Some("/home")), None);
    assert_eq!(dir(None, Some("/xdg"), Some("/home")), is("/xdg/muon-cuda"));
    assert_eq!(dir(None, Some("relative"), Some("/home")), is("/home/.cache/muon-cuda"));
    assert_eq!(dir(None, Some(""), Some("/home")), is("/home/.cache/muon-cuda"));
    assert_eq!(dir(None, None, Some("")), None);
    assert_eq!(dir(None, None, None), None);
}

#[cfg(unix)]
#[test]
fn a_new_directory_is_private() {
    use std::os::unix::fs::PermissionsExt as _;
    let parent = tempfile::tempdir().unwrap();
    let path = parent.path().join("cache");
    create_private(&path).unwrap();
    assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o700);
}
