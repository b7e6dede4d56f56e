//! A file system that does not answer, such as NFS without its server: whoever accesses a path in
//! it waits. Needs root and `/dev/fuse`.

use std::ffi::CString;
use std::fs::{self, File, OpenOptions};
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};

use rustix::mount::{MountFlags, UnmountFlags, mount, unmount};

/// A mounted file system. When it is dropped, everything that waits for it fails.
pub struct SilentFs {
    path: PathBuf,
    /// Nobody reads the kernel's requests from it.
    device: Option<File>,
}

impl SilentFs {
    /// Mounts one. If that is impossible, prints so and returns `None`; with
    /// `PODMESH_TEST_DOCKER=required` that is a failure.
    pub fn mount(path: &Path) -> Option<Self> {
        fs::create_dir_all(path).unwrap();
        let mounted = || -> std::io::Result<File> {
            let device = OpenOptions::new().read(true).write(true).open("/dev/fuse")?;
            let fd = device.as_raw_fd();
            let data =
                CString::new(format!("fd={fd},rootmode=40000,user_id=0,group_id=0,allow_other"))?;
            mount("podmesh-test", path, "fuse", MountFlags::empty(), data.as_c_str())?;
            Ok(device)
        };
        match mounted() {
            Ok(device) => Some(Self { path: path.to_owned(), device: Some(device) }),
            Err(error) => {
                let required = std::env::var("PODMESH_TEST_DOCKER").is_ok_and(|v| v == "required");
                assert!(!required, "FUSE cannot be mounted: {error}");
                eprintln!("SKIPPED: FUSE cannot be mounted: {error}");
                None
            }
        }
    }

    /// Returns where it is mounted.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// From now on answers every request with an error.
    pub fn fail(&mut self) {
        self.device = None;
    }
}

impl Drop for SilentFs {
    fn drop(&mut self) {
        self.fail();
        // If it is no longer mounted, there is nothing to do.
        _ = unmount(&self.path, UnmountFlags::DETACH);
    }
}
