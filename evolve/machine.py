"""The machine that a process is on, and whether a folder is on a disk of its own."""

import platform
from pathlib import Path

import psutil

# File systems that other machines may have as well. FUSE's are taken for such; most are.
_SHARED = (
    *("9p", "afs", "beegfs", "ceph", "cifs", "cvfs", "daos", "gfs", "gfs2", "glusterfs", "gpfs", "lustre"),
    *("mfs", "ncpfs", "nfs", "nfs4", "ocfs2", "orangefs", "panfs", "pvfs2", "smb", "smb2", "smb3", "smbfs"),
    *("virtiofs", "weka", "wekafs"),
)
# Options with which such a file system keeps locks to the machine that asks for them.
_LOCAL_LOCKS = ("nolock", "local_lock=all", "local_lock=flock", "local_lock=posix", "localflock", "nobrl")


def this_machine() -> str:
    """Its name, and what tells this boot of it from others."""
    boot = Path("/proc/sys/kernel/random/boot_id")
    identity = boot.read_text(encoding="ascii").strip() if boot.exists() else ""
    return f"{platform.node()} {identity}".strip()


def shared_file_system(folder: Path) -> tuple[str, bool] | None:
    """The kind of a folder's file system if other machines may have it, and whether locks reach them."""
    there = folder.resolve()
    mounts = {
        Path(p.mountpoint): p for p in psutil.disk_partitions(all=True)
    }  # the last of those on a point counts
    mount = next((mounts[f] for f in (there, *there.parents) if f in mounts), None)
    if mount is None or not (mount.fstype in _SHARED or mount.fstype.startswith("fuse")):
        return None
    return mount.fstype, not set(mount.opts.split(",")) & set(_LOCAL_LOCKS)
