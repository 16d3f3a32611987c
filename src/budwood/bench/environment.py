"""Where a number was measured: hardware and versions, and nothing that names a person or a machine."""

import importlib.metadata
import os
import platform
import subprocess
import sys
from pathlib import Path

import torch

from ..core.errors import UserError

UNKNOWN = "unknown"


def environment() -> dict[str, str]:
    """What a time or an accuracy may depend on; "unknown" where it cannot be found out."""
    return {
        "cpu": _cpu(),
        "cores": str(_cores()),
        "threads": str(torch.get_num_threads()),
        "memory": _memory(),
        "os": _os(),
        "python": platform.python_version(),
        "torch": _version("torch"),
        "torchvision": _version("torchvision"),
        "numpy": _version("numpy"),
        "budwood": _version("budwood"),
        "instruction_set": _instruction_set(),
    }


def _version(distribution: str) -> str:
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return UNKNOWN


def _cpu() -> str:
    """The processor's model name; its architecture where no name is told (Linux on ARM)."""
    try:
        if sys.platform == "linux":
            lines = Path("/proc/cpuinfo").read_text().splitlines()
            names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
            return names[0] if names else platform.machine()
        if sys.platform == "darwin":
            command = ["/usr/sbin/sysctl", "-n", "machdep.cpu.brand_string"]
            return subprocess.run(command, capture_output=True, text=True, check=True, timeout=5).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        pass
    return platform.processor() or platform.machine() or UNKNOWN


def _cores() -> int:
    """Cores this process may run on, which a container or `taskset` can make fewer than the machine has."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _memory() -> str:
    try:
        return f"{os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES') / 2**30:.1f} GiB"
    except (AttributeError, ValueError, OSError):
        return UNKNOWN


def _os() -> str:
    """System and architecture; on Linux the distribution, since a kernel's release may carry a private name."""
    name = f"{platform.system()} {platform.mac_ver()[0]}".strip()
    if sys.platform == "linux":
        try:
            name = platform.freedesktop_os_release()["PRETTY_NAME"]
        except (OSError, KeyError):
            name = "Linux"
    return f"{name} ({platform.machine()})"


def _instruction_set() -> str:
    """Of the sparse engine's kernels."""
    try:
        from ..engine import native

        return native.instruction_set()
    except (ImportError, UserError):
        return UNKNOWN
