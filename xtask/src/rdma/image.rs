//! What the emulated machine boots: Debian's kernel, and a file system of a few programs with their libraries.

use crate::{
    debian,
    shell::{check, command, output},
};
use anyhow::{Context, Result};
use std::{
    fs,
    os::unix::fs::{PermissionsExt, symlink},
    path::{Path, PathBuf},
    process::Stdio,
};

/// What runs first.
const GUEST: &str = include_str!("guest.sh");
/// Of busybox. `timeout` and `head` are used with options that it has.
const APPLETS: &[&str] = &[
    "sh", "mount", "mkdir", "cat", "chmod", "grep", "sed", "head", "cmp", "diff", "sleep",
    "timeout", "kill", "insmod", "poweroff", "echo", "dmesg", "hostname", "ln",
];
/// In this order: without the first, the device fails to be made.
const MODULES: &[&str] = &[
    "crc32_generic",
    "rdma_rxe",
    "veth",
    "bridge",
    "sch_tbf",
    "sch_netem",
];
/// Programs of the system.
const PROGRAMS: &[&str] = &["ip", "tc", "rdma", "ibv_devices", "unshare", "nsenter"];
const LIBRARIES: &str = "/usr/lib/x86_64-linux-gnu";

/// Debian's kernel and its modules, unpacked.
pub(crate) struct Kernel {
    root: PathBuf,
}

impl Kernel {
    /// Downloads and unpacks it, unless that was done before.
    pub(crate) fn fetch(folder: &Path) -> Result<Self> {
        let root = debian::fetched_once(folder, "kernel", |parts| {
            let package = debian::dependency("linux-image-amd64", "linux-image-")?;
            let found = Self {
                root: debian::unpack(parts, &[package])?,
            };
            check(
                command("depmod")
                    .arg("-b")
                    .arg(&found.root)
                    .arg(found.version()?),
            )?;
            Ok(found.root)
        })?;
        Ok(Self { root })
    }

    /// Returns the file that boots.
    pub(crate) fn file(&self) -> Result<PathBuf> {
        let name = format!("boot/vmlinuz-{}", self.version()?);
        Ok(self.root.join(name))
    }

    fn version(&self) -> Result<String> {
        let modules = self.root.join("lib/modules");
        let mut entries =
            fs::read_dir(&modules).with_context(|| format!("reading {}", modules.display()))?;
        let first = entries.next().context("the kernel has no modules")??;
        Ok(first.file_name().to_string_lossy().into_owned())
    }

    /// Returns the files of [`MODULES`] and what they need, in the order in which they can be loaded.
    fn modules(&self) -> Result<Vec<PathBuf>> {
        let version = self.version()?;
        let mut files: Vec<PathBuf> = Vec::new();
        for module in MODULES {
            let mut modprobe = command("modprobe");
            modprobe.arg("-d").arg(&self.root).args(["-S", &version]);
            let listed = output(modprobe.args(["--show-depends", module]))?;
            let lines = listed
                .lines()
                .filter_map(|line| line.strip_prefix("insmod "));
            for file in lines.map(|line| PathBuf::from(line.trim())) {
                if !files.contains(&file) {
                    files.push(file);
                }
            }
        }
        Ok(files)
    }
}

/// The file system, as one file.
pub(crate) struct Image {
    file: PathBuf,
}

impl Image {
    /// Puts it together: `files` go to `/opt`, and the machine runs `checks`. Tests look for `shoal` in the folder that it
    /// was `built_in`.
    pub(crate) fn make(
        folder: &Path,
        kernel: &Kernel,
        files: &[PathBuf],
        built_in: &Path,
        checks: &[&str],
    ) -> Result<Self> {
        let tree = Tree {
            root: folder.join("image"),
        };
        if tree.root.exists() {
            fs::remove_dir_all(&tree.root)
                .with_context(|| format!("removing {}", tree.root.display()))?;
        }
        for empty in ["proc", "sys", "dev", "tmp", "bin"] {
            fs::create_dir_all(tree.root.join(empty))?;
        }
        tree.add(&find("busybox")?, "bin/busybox")?;
        for applet in APPLETS {
            symlink("busybox", tree.root.join("bin").join(applet))?;
        }
        for program in PROGRAMS {
            tree.add(&find(program)?, &format!("bin/{program}"))?;
        }
        for file in files {
            let name = file.file_name().context("a file has a name")?;
            let name = name.to_string_lossy();
            // A test's file has a hash in its name.
            let name = name.split("-").next().unwrap_or(&name);
            tree.add(file, &format!("opt/{name}"))?;
        }
        tree.add_verbs()?;
        let mut order = String::new();
        for module in kernel.modules()? {
            let name = module.file_name().context("a module has a name")?;
            let name = name.to_string_lossy();
            tree.copy(&module, &format!("modules/{name}"))?;
            order += &format!("{name}\n");
        }
        fs::write(tree.root.join("modules/order"), order)?;
        let init = tree.root.join("init");
        fs::write(
            &init,
            GUEST
                .replace("$CHECKS", &format!("device {}", checks.join(" ")))
                .replace("$BUILT_IN", &built_in.to_string_lossy()),
        )?;
        fs::set_permissions(&init, fs::Permissions::from_mode(0o755))?;
        tree.pack(folder.join("image.cpio.gz"))
    }

    pub(crate) fn file(&self) -> &Path {
        &self.file
    }
}

/// The file system, as a folder.
struct Tree {
    root: PathBuf,
}

impl Tree {
    /// Adds a program or a library, without what is only for debuggers, and the libraries that it needs.
    fn add(&self, file: &Path, place: &str) -> Result<()> {
        let copy = self.copy(file, place)?;
        // Not everything that is added is a program.
        let is_program = fs::read(&copy).is_ok_and(|bytes| bytes.starts_with(b"\x7fELF"));
        if !is_program {
            return Ok(());
        }
        check(command("strip").arg(&copy))?;
        let mut ldd = command("ldd");
        let listed = ldd.arg(file).stderr(Stdio::null()).output()?;
        let listed = String::from_utf8_lossy(&listed.stdout).into_owned();
        let words = listed.split_whitespace();
        for library in words.filter(|word| word.starts_with('/')) {
            let place = library.trim_start_matches('/');
            if !self.root.join(place).exists() {
                self.copy(Path::new(library), place)?;
            }
        }
        Ok(())
    }

    /// Adds the library of verbs, and its part for Soft-RoCE.
    fn add_verbs(&self) -> Result<()> {
        self.add(
            &Path::new(LIBRARIES).join("libibverbs.so.1"),
            &format!("{LIBRARIES}/libibverbs.so.1")[1..],
        )?;
        let providers = format!("{LIBRARIES}/libibverbs");
        for entry in fs::read_dir(&providers).with_context(|| format!("reading {providers}"))? {
            let name = entry?.file_name().to_string_lossy().into_owned();
            if name.starts_with("librxe-") {
                let file = format!("{providers}/{name}");
                self.add(Path::new(&file), &file[1..])?;
            }
        }
        let driver = "etc/libibverbs.d/rxe.driver";
        self.copy(&Path::new("/").join(driver), driver)?;
        Ok(())
    }

    fn copy(&self, file: &Path, place: &str) -> Result<PathBuf> {
        let to = self.root.join(place);
        let folder = to.parent().context("a place has a folder")?;
        fs::create_dir_all(folder)?;
        fs::copy(file, &to).with_context(|| format!("copying {}", file.display()))?;
        Ok(to)
    }

    fn pack(&self, file: PathBuf) -> Result<Image> {
        let script = "find . | cpio --create --format=newc --quiet | gzip -1 > \"$1\"";
        let mut pack = command("sh");
        pack.args(["-c", script, "sh"]).arg(&file);
        check(pack.current_dir(&self.root)).context("packing the file system")?;
        Ok(Image { file })
    }
}

/// Returns where a program of the system lies; the superuser's are not in everybody's path.
pub(crate) fn find(program: &str) -> Result<PathBuf> {
    let folders = ["/usr/bin", "/bin", "/usr/sbin", "/sbin"];
    let mut places = folders.iter().map(|folder| Path::new(folder).join(program));
    places
        .find(|place| place.is_file())
        .with_context(|| format!("`{program}` is not on this machine"))
}
