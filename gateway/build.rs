//! Makes a table of the dashboard's files, so that the binary carries the page, and tells the program when it was built:
//! no clock that shows an earlier time is right.

use std::fmt::Write as _;
use std::hash::{DefaultHasher, Hasher as _};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::{env, fs};

fn main() {
    tell_build_time();
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

/// `SOURCE_DATE_EPOCH` (<https://reproducible-builds.org/specs/source-date-epoch/>) if it is set, else the time of the
/// commit that is checked out, so that the same source gives the same program; in a tree without history, 0.
fn tell_build_time() {
    println!("cargo::rerun-if-env-changed=SOURCE_DATE_EPOCH");
    // Not the branch's newest commit: everything would be built anew after each of them.
    println!("cargo::rerun-if-changed=../.git/HEAD");
    let told = env::var("SOURCE_DATE_EPOCH").ok().or_else(commit_time);
    let built = told.and_then(|text| text.trim().parse::<u64>().ok()).unwrap_or_default();
    println!("cargo::rustc-env=TIDEGATE_BUILT={built}");
}

fn commit_time() -> Option<String> {
    let output = Command::new("git").args(["log", "-1", "--format=%ct"]).output().ok()?;
    output.status.success().then(|| String::from_utf8(output.stdout).ok())?
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
