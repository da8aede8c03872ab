//! Lists the files of `assets`, so that a new one is served without a change of code.

use std::{env, error::Error, fmt::Write as _, fs, path::Path};

fn main() -> Result<(), Box<dyn Error>> {
    let folder = Path::new(&env::var("CARGO_MANIFEST_DIR")?).join("assets");
    println!("cargo:rerun-if-changed={}", folder.display());
    let mut files: Vec<_> = fs::read_dir(&folder)?.collect::<Result<_, _>>()?;
    files.retain(|entry| entry.path().is_file());
    files.sort_by_key(fs::DirEntry::file_name);
    let mut list = String::from("[\n");
    for file in files {
        let name = file.file_name().into_string().map_err(|name| format!("{name:?} is not UTF-8"))?;
        writeln!(list, "    ({name:?}, include_bytes!({:?}) as &[u8]),", file.path())?;
    }
    list.push(']');
    fs::write(Path::new(&env::var("OUT_DIR")?).join("assets.rs"), list)?;
    Ok(())
}
