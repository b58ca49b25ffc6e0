"""The system calls that a sandbox refuses, as a seccomp filter for bubblewrap's `--seccomp`.

They give memory that no limit counts (System V shared memory, files in memory, keys), namespaces and mounts of a
program's own, ways into other processes, or parts of the kernel that programs seldom use and attackers often. Of the
families of sockets, those remain that a network namespace bounds; sockets of a virtual machine's host are in none.

A filter is a program of the classic BPF: instructions of 8 bytes, an operation, two jumps and a constant (Linux,
Documentation/userspace-api/seccomp_filter.rst; struct seccomp_data has the call's number at byte 0, the architecture at
4 and the first argument at 16).
"""

from __future__ import annotations

import errno
import platform
import struct

from rld.errors import RewardError

_ALLOW, _KILL, _ERROR = 0x7FFF0000, 0x80000000, 0x00050000
_LOAD, _JUMP_EQUAL, _JUMP_ABOVE, _JUMP_BITS, _RETURN = 0x20, 0x15, 0x25, 0x45, 0x06

_NEW_NAMESPACES = 0x7E020000
"""The flags of `clone` that make namespaces."""

_SOCKET_FAMILIES = (1, 2, 10, 16)
"""AF_UNIX, AF_INET, AF_INET6 and AF_NETLINK, which are the same on all machines."""

_GENERIC = {  # the numbers of calls newer than Linux 5.0 are those of every architecture
    **{"io_uring_setup": 425, "open_tree": 428, "move_mount": 429, "fsopen": 430, "fsmount": 432, "pidfd_open": 434},
    **{"mount_setattr": 442, "memfd_secret": 447},
}
_MACHINES = {
    "x86_64": (
        0xC000003E,
        {
            **{"clone": 56, "clone3": 435, "shmget": 29, "msgget": 68, "semget": 64, "mq_open": 240, "ptrace": 101},
            **{"memfd_create": 319, "unshare": 272, "setns": 308, "mount": 165, "umount2": 166, "pivot_root": 155},
            **{"add_key": 248, "request_key": 249, "keyctl": 250, "bpf": 321, "perf_event_open": 298},
            **{"socket": 41, "userfaultfd": 323, "process_vm_readv": 310, "process_vm_writev": 311},
        },
    ),
    "aarch64": (
        0xC00000B7,
        {
            **{"clone": 220, "clone3": 435, "shmget": 194, "msgget": 186, "semget": 190, "mq_open": 180, "ptrace": 117},
            **{"memfd_create": 279, "unshare": 97, "setns": 268, "mount": 40, "umount2": 39, "pivot_root": 41},
            **{"add_key": 217, "request_key": 218, "keyctl": 219, "bpf": 280, "perf_event_open": 241},
            **{"socket": 198, "userfaultfd": 282, "process_vm_readv": 270, "process_vm_writev": 271},
        },
    ),
}
"""The architecture's number in seccomp, and those of the calls that are refused."""


def program() -> bytes:
    """Return the filter.

    Raises:
        RewardError: the calls of this machine's processor are not known here.
    """
    machine = platform.machine()
    if machine not in _MACHINES:
        raise RewardError(f"programs of a model run in a sandbox, which knows {' and '.join(_MACHINES)}, not {machine}")
    architecture, own_calls = _MACHINES[machine]
    calls = own_calls | _GENERIC
    clone, clone3, socket = (calls.pop(name) for name in ("clone", "clone3", "socket"))
    refuse = (_RETURN, 0, 0, _ERROR | errno.EPERM)
    lines = [
        (_LOAD, 0, 0, 4),
        (_JUMP_EQUAL, 1, 0, architecture),
        (_RETURN, 0, 0, _KILL),
        (_LOAD, 0, 0, 0),
        (_JUMP_ABOVE, 0, 1, 0x3FFFFFFF),  # the calls of x32, a second set of numbers
        (_RETURN, 0, 0, _KILL),
        (_JUMP_EQUAL, 0, 1, clone3),  # its flags are in memory; without it the C library uses clone
        (_RETURN, 0, 0, _ERROR | errno.ENOSYS),
    ]
    for number in calls.values():
        lines += [(_JUMP_EQUAL, 0, 1, number), refuse]
    lines += [(_JUMP_EQUAL, 0, len(_SOCKET_FAMILIES) + 3, socket), (_LOAD, 0, 0, 16)]
    for i, family in enumerate(_SOCKET_FAMILIES):
        lines.append((_JUMP_EQUAL, len(_SOCKET_FAMILIES) - i, 0, family))
    lines += [(_RETURN, 0, 0, _ERROR | errno.EAFNOSUPPORT), (_RETURN, 0, 0, _ALLOW)]
    lines += [(_JUMP_EQUAL, 0, 3, clone), (_LOAD, 0, 0, 16), (_JUMP_BITS, 0, 1, _NEW_NAMESPACES), refuse]
    lines.append((_RETURN, 0, 0, _ALLOW))
    return b"".join(struct.pack("<HBBI", *line) for line in lines)
