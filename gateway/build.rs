//! Makes a table of the dashboard's files, so that the binary carries the page.

use std::fmt::Write as _;
use std::hash::{DefaultHasher, Hasher as _};
use std::path::{Path, PathBuf};
use std::{env, fs};

fn main() {
    let root = PathBuf::from(env::var_os("CARGO_MANIFEST_DIR").expect("cargo sets it")).join("dashboard");
    println!("cargo::rerun-if-changed={}", root.display());
    let mut files = Vec::new();
    collect(&root, &mut files);
    files.sort();
    let mut table = String::from("[\n");
    for file in &files {
        let Some(mime) = mime(file) else { continue };
        let content = fs::read(file).expect("a listed file can be read");
        let mut hasher = DefaultHasher::new();
        hasher.write(&content);
        let name = file.strip_prefix(&root).expect("it was found below the root").display();
        writeln!(
            table,
            "    Asset {{ path: {:?}, mime: {mime:?}, etag: \"\\\"{:016x}\\\"\", content: include_bytes!({:?}) }},",
            name.to_string(),
            hasher.finish(),
            file.display().to_string(),
        )
        .expect("a string takes everything");
    }
    table.push(']');
    let out = PathBuf::from(env::var_os("OUT_DIR").expect("cargo sets it")).join("assets.rs");
    fs::write(out, table).expect("the build directory can be written");
}

fn collect(directory: &Path, files: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(directory).into_iter().flatten().filter_map(Result::ok) {
        let path = entry.path();
        if path.is_dir() {
            collect(&path, files);
        } else {
            files.push(path);
        }
    }
}

fn mime(file: &Path) -> Option<&'static str> {
    Some(match file.extension()?.to_str()? {
        "html" => "text/html; charset=utf-8",
        "js" | "mjs" => "text/javascript; charset=utf-8",
        "css" => "text/css; charset=utf-8",
        "svg" => "image/svg+xml",
        "txt" => "text/plain; charset=utf-8",
        _ => return None,
    })
}
