//! Which containers of Docker Compose belong to a checkout.

use std::path::Path;

/// Compose's label with the directory of the compose files.
pub const CHECKOUT_LABEL: &str = "com.docker.compose.project.working_dir";

/// The argument of `docker ps --format` for [`ids_in`].
pub fn id_and_checkout() -> String {
    format!("{{{{.ID}}}} {{{{.Label \"{CHECKOUT_LABEL}\"}}}}")
}

/// The ids of the containers of a checkout, of those that `docker ps` has listed with [`id_and_checkout`].
pub fn ids_in<'a>(listed: &'a str, canonical: &'a Path) -> impl Iterator<Item = &'a str> {
    let containers = listed.lines().filter_map(|line| line.split_once(' '));
    containers.filter(|(_, label)| is_directory(label, canonical)).map(|(id, _)| id)
}

/// Whether the directory in such a label is this one. Compose takes it from `PWD`, which may lead through a symbolic link.
pub fn is_directory(label: &str, canonical: &Path) -> bool {
    Path::new(label).canonicalize().is_ok_and(|directory| directory == canonical)
}

#[cfg(test)]
mod tests {
    use std::{fs, os::unix::fs::symlink};

    use super::*;
    use crate::Scratch;

    #[test]
    fn a_checkout_is_the_same_through_a_symbolic_link() {
        let scratch = Scratch::new().unwrap();
        let (checkout, other, link) =
            (scratch.path().join("checkout"), scratch.path().join("other"), scratch.path().join("link"));
        fs::create_dir(&checkout).unwrap();
        fs::create_dir(&other).unwrap();
        symlink(&checkout, &link).unwrap();
        let here = link.canonicalize().unwrap();
        let is_here = |label: &Path| is_directory(label.to_str().unwrap(), &here);
        assert!(is_here(&checkout) && is_here(&link));
        let listed = [("a", &checkout), ("b", &other), ("c", &link)].map(|(id, of)| format!("{id} {}\n", of.display()));
        assert_eq!(ids_in(&(listed.concat() + "d \n"), &here).collect::<Vec<_>>(), ["a", "c"]);
        assert!(!is_here(&other) && !is_here(&scratch.path().join("removed")) && !is_here(Path::new("")));
    }
}
