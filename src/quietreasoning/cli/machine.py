"""What this machine offers, and what to mend before training: `quiet doctor` without a recipe."""

from __future__ import annotations

import os
import platform
import shutil
import sys
from importlib import metadata
from pathlib import Path

from quietreasoning.versions import version, versions

LOW_DISK_BYTES = 5 * 2**30
LOW_MEMORY_BYTES = 2 * 2**30


def describe() -> tuple[list[tuple[str, str]], list[str]]:
    """(what, value) rows and warnings. Imports torch, with the TPU plug-in kept from loading."""
    warnings = _package_warnings()
    if version("torch-tpu") is not None:
        os.environ.setdefault("TORCH_DEVICE_BACKEND_AUTOLOAD", "0")
        warnings.append(
            "torch-tpu is installed: without a TPU it breaks `import torch`. Uninstall it, or set "
            "TORCH_DEVICE_BACKEND_AUTOLOAD=0 (set here)."
        )
    import psutil
    import torch

    from quietreasoning.cli.output import human_bytes
    from quietreasoning.train.state import computes_bf16

    memory, disk = psutil.virtual_memory(), shutil.disk_usage(Path.cwd())
    cores = len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1
    rows = [
        ("system", f"{platform.system()} {platform.machine()}"),
        *versions().items(),
        ("cores", f"{cores} usable, {torch.get_num_threads()} threads"),
        ("memory", f"{human_bytes(memory.available)} free of {human_bytes(memory.total)}"),
        ("disk", f"{human_bytes(disk.free)} free in {Path.cwd()}"),
        ("bf16 on CPU", "yes" if computes_bf16(torch.device("cpu")) else "no, emulated and slow"),
        *_accelerators(torch),
    ]
    if torch.get_num_threads() > cores:
        warnings.append(f"{torch.get_num_threads()} threads on {cores} cores: set OMP_NUM_THREADS={cores}.")
    if disk.free < LOW_DISK_BYTES:
        warnings.append(
            f"only {human_bytes(disk.free)} of disk left here: a checkpoint may not fit; set out=DIR."
        )
    if memory.available < LOW_MEMORY_BYTES:
        warnings.append(f"only {human_bytes(memory.available)} of memory free: choose a tiny recipe.")
    return rows, warnings


def _package_warnings() -> list[str]:
    from packaging.requirements import Requirement

    warnings = []
    for text in metadata.requires("quietreasoning") or ():
        requirement = Requirement(text)
        if requirement.marker is not None:  # an extra, or another platform
            continue
        found = version(requirement.name)
        if found is None:
            warnings.append(f"{requirement.name} is missing: pip install '{requirement}'")
        elif not requirement.specifier.contains(found, prereleases=True):
            warnings.append(f"{requirement.name} {found} is untested: pip install '{requirement}'")
    return warnings


def _accelerators(torch) -> list[tuple[str, str]]:
    from quietreasoning.cli.output import human_bytes

    if torch.cuda.is_available():
        rows = []
        for index in range(torch.cuda.device_count()):
            properties = torch.cuda.get_device_properties(index)
            bf16 = "bf16" if torch.cuda.is_bf16_supported() else "no bf16"
            size = human_bytes(properties.total_memory)
            rows.append((f"gpu {index}", f"{properties.name}, {size}, {bf16}"))
        return rows
    if torch.backends.mps.is_available():
        return [("gpu", "Apple MPS")]
    return [("gpu", "none")]
