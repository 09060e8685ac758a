"""Every system call that writes fails once, disks are full, folders vanish: one line, nothing published, resumable."""
