//! Searches this machine for NVRTC, CUDA's run-time compiler.

use std::{
    env, fs,
    path::{Path, PathBuf},
};

/// The variable that names the only library to use.
pub(crate) const OVERRIDE: &str = "FLASHTILE_NVRTC";

/// Every path at which NVRTC was found, each once, and the names by which the system's loader may
/// find it. With the override, its path alone. Otherwise the search covers CUDA toolkits, the
/// library path, conda's environment and Python's packages.
pub(crate) fn candidates() -> Vec<PathBuf> {
    if let Some(path) = env::var_os(OVERRIDE).filter(|path| !path.is_empty()) {
        return vec![path.into()];
    }
    let directories = toolkits()
        .into_iter()
        .flat_map(|toolkit| in_toolkit(&toolkit))
        .chain(paths("LD_LIBRARY_PATH"))
        .chain(
            paths("CONDA_PREFIX")
                .into_iter()
                .flat_map(|prefix| [prefix.join("lib"), prefix.join("Library").join("bin")]),
        )
        .chain(site_packages().into_iter().flat_map(|packages| in_packages(&packages)));
    let mut found: Vec<PathBuf> = Vec::new();
    for path in directories.flat_map(|directory| libraries_in(&directory)) {
        if !found.contains(&path) {
            found.push(path);
        }
    }
    found.extend(LOADER_NAMES.iter().map(PathBuf::from));
    found
}

/// The names for the system's loader, newest first.
const LOADER_NAMES: &[&str] = if cfg!(windows) {
    &["nvrtc64_130_0.dll", "nvrtc64_120_0.dll"]
} else {
    &["libnvrtc.so.13", "libnvrtc.so.12", "libnvrtc.so"]
};

/// The libraries in one directory, with links resolved, each once.
fn libraries_in(directory: &Path) -> Vec<PathBuf> {
    let mut found: Vec<PathBuf> = entries(directory)
        .into_iter()
        .filter(|path| path.file_name().and_then(|name| name.to_str()).is_some_and(is_library))
        .filter_map(|path| fs::canonicalize(path).ok())
        .collect();
    found.sort();
    found.dedup();
    found
}

/// Whether a file has the name of NVRTC. Its built-in functions and its variant for small stacks
/// are other libraries.
fn is_library(name: &str) -> bool {
    if cfg!(windows) {
        name.starts_with("nvrtc64_") && name.ends_with(".dll") && !name.contains("alt")
    } else {
        name == "libnvrtc.so" || name.starts_with("libnvrtc.so.")
    }
}

/// NVRTC's libraries of built-in functions in the same directory; none if `library` is a bare name.
pub(crate) fn builtins_beside(library: &Path) -> Vec<PathBuf> {
    let is_builtins = |path: &PathBuf| {
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        ["libnvrtc-builtins.so.", "nvrtc-builtins64_"].iter().any(|start| name.starts_with(start))
    };
    let directory = library.parent().filter(|directory| !directory.as_os_str().is_empty());
    directory.map(entries).unwrap_or_default().into_iter().filter(is_builtins).collect()
}

fn toolkits() -> Vec<PathBuf> {
    let mut roots: Vec<PathBuf> = ["CUDA_HOME", "CUDA_PATH", "CUDA_ROOT"]
        .iter()
        .filter_map(env::var_os)
        .map(PathBuf::from)
        .collect();
    let usual = if cfg!(windows) {
        r"C:\Program Files\NVIDIA GPU Computing Toolkit\CUDA"
    } else {
        "/usr/local"
    };
    let of_cuda = |path: &PathBuf| {
        path.file_name()
            .is_some_and(|name| cfg!(windows) || name.to_string_lossy().starts_with("cuda"))
    };
    roots.extend(entries(Path::new(usual)).into_iter().filter(of_cuda));
    roots.push("/opt/cuda".into());
    roots
}

fn in_toolkit(root: &Path) -> Vec<PathBuf> {
    ["lib64", "lib", "targets/x86_64-linux/lib", "targets/sbsa-linux/lib", "bin", "bin/x64"]
        .iter()
        .map(|inside| root.join(inside))
        .collect()
}

/// The directories in which the wheels of CUDA 12 and of CUDA 13 install it.
fn in_packages(packages: &Path) -> Vec<PathBuf> {
    ["cu13/lib", "cu13/bin/x86_64", "cuda_nvrtc/lib", "cuda_nvrtc/bin"]
        .iter()
        .map(|inside| packages.join("nvidia").join(inside))
        .collect()
}

/// The package directories of every Python that can be found without running it.
fn site_packages() -> Vec<PathBuf> {
    let variable = |name| env::var_os(name).map(PathBuf::from);
    let mut prefixes: Vec<PathBuf> =
        ["VIRTUAL_ENV", "CONDA_PREFIX"].into_iter().filter_map(variable).collect();
    // A `python3` in PATH may be a link into its installation, as in a virtual environment.
    let name = if cfg!(windows) { "python.exe" } else { "python3" };
    let up = if cfg!(windows) { 1 } else { 2 };
    for python in paths("PATH")
        .into_iter()
        .map(|directory| directory.join(name))
        .filter(|path| path.is_file())
    {
        prefixes.extend(python.ancestors().nth(up).map(Path::to_path_buf));
        prefixes.extend(
            fs::canonicalize(&python)
                .ok()
                .and_then(|real| real.ancestors().nth(up).map(Path::to_path_buf)),
        );
    }
    if let Some(home) = env::home_dir() {
        prefixes.push(home.join(".local"));
        prefixes.extend(entries(&home.join(".pyenv/versions")));
    }
    prefixes.extend(["/usr", "/usr/local"].map(PathBuf::from));
    let mut found = paths("PYTHONPATH");
    for prefix in prefixes {
        found.push(prefix.join("Lib").join("site-packages"));
        for python in entries(&prefix.join("lib")) {
            if python.file_name().is_some_and(|name| name.to_string_lossy().starts_with("python3"))
            {
                found.extend(
                    ["site-packages", "dist-packages"].map(|packages| python.join(packages)),
                );
            }
        }
    }
    found
}

/// The directories of a variable that lists them.
fn paths(variable: &str) -> Vec<PathBuf> {
    let list = env::var_os(variable).unwrap_or_default();
    env::split_paths(&list).filter(|path| !path.as_os_str().is_empty()).collect()
}

/// The paths in a directory, sorted; none if it cannot be read.
fn entries(directory: &Path) -> Vec<PathBuf> {
    let mut found: Vec<PathBuf> = fs::read_dir(directory)
        .into_iter()
        .flatten()
        .filter_map(|entry| Some(entry.ok()?.path()))
        .collect();
    found.sort();
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[cfg(unix)]
    #[test]
    fn a_library_with_several_links_is_listed_once() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = |name: &str| directory.path().join(name);
        fs::write(path("libnvrtc.so.12.9.86"), "").expect("written");
        for other in ["libnvrtc-builtins.so.12.9", "libnvrtc.alt.so.12", "libnvrtc_static.a"] {
            fs::write(path(other), "").expect("written");
        }
        for link in ["libnvrtc.so.12", "libnvrtc.so"] {
            std::os::unix::fs::symlink(path("libnvrtc.so.12.9.86"), path(link)).expect("linked");
        }
        let real = fs::canonicalize(path("libnvrtc.so.12.9.86")).expect("it exists");
        assert_eq!(libraries_in(directory.path()), [real]);
        assert!(libraries_in(&path("nowhere")).is_empty());
    }

    #[cfg(unix)]
    #[test]
    fn wheels_are_found_in_site_packages() {
        let directory = tempfile::tempdir().expect("a directory");
        for wheel in ["nvidia/cuda_nvrtc/lib/libnvrtc.so.12", "nvidia/cu13/lib/libnvrtc.so.13"] {
            let path = directory.path().join(wheel);
            fs::create_dir_all(path.parent().expect("it has a parent")).expect("created");
            fs::write(path, "").expect("written");
        }
        let found: Vec<PathBuf> = in_packages(directory.path())
            .iter()
            .flat_map(|directory| libraries_in(directory))
            .collect();
        let names: Vec<_> = found.iter().filter_map(|path| path.file_name()?.to_str()).collect();
        assert_eq!(names, ["libnvrtc.so.13", "libnvrtc.so.12"]);
    }
}
