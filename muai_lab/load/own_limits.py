"""The load generator's own limits: open files, ports, memory. To reach one is no fault of the server."""

from __future__ import annotations

import errno
import sys

from muai_lab.errors import RunError


class GeneratorExhausted(RunError):
    """The load generator cannot continue; str() names the resource that ran out and the remedy."""


def raise_open_files_limit() -> None:
    """Raise this process's soft limit of open files to the hard one: each connection is one."""
    if sys.platform == "win32":
        return
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
        except (OSError, ValueError):
            return  # macOS refuses "unlimited": keep the present limit


def open_files_limit() -> int | None:
    """Return the soft limit of open files of this process, None if the system has none."""
    if sys.platform == "win32":
        return None
    import resource

    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return None if soft == resource.RLIM_INFINITY else soft


def exhausted_by(error: OSError, connections: int) -> GeneratorExhausted | None:
    """Return the exhausted resource if that is the reason for `error`, else None.

    The caller must first check `EADDRNOTAVAIL`: an address that this machine cannot reach at all (IPv6 without an
    interface) gives it as well. connections: open now.
    """
    ran_out = {
        errno.EMFILE: (
            f"open files (this process may have {open_files_limit()})",
            "raise the hard limit (ulimit -Hn, LimitNOFILE=), set load.processes, or lower the concurrency or rate",
        ),
        errno.ENFILE: ("open files of the whole machine", "raise the kernel's limit fs.file-max"),
        errno.EADDRNOTAVAIL: (
            "local ports towards the server",
            "widen net.ipv4.ip_local_port_range, let the server keep connections alive, or lower arrival.rate",
        ),
        errno.ENOMEM: ("memory", "lower arrival.concurrency or arrival.rate, or use a machine with more"),
        errno.ENOBUFS: ("memory for network buffers", "raise net.ipv4.tcp_mem, or lower arrival.concurrency"),
    }
    if error.errno not in ran_out:
        return None
    what, remedy = ran_out[error.errno]
    name = errno.errorcode[error.errno]
    return GeneratorExhausted(f"the load generator ran out of {what} at {connections:,} connections: {name}; {remedy}")
