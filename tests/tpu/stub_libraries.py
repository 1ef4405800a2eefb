"""Puts empty libraries where torch's GPU build looks for those of a GPU, in this environment.

torch 2.9 comes for GPUs only, and will not be imported without gigabytes of libraries that no test
on a processor calls. Each stub has the names that torch asks for, and every function of it answers
with an error. For tests only.
"""

from __future__ import annotations

import re
import subprocess
import sysconfig
import tempfile
from collections import defaultdict
from pathlib import Path

PREFIXES = {
    "libcublas": ("cublas",),
    "libcublasLt": ("cublasLt",),
    "libcudnn": ("cudnn",),
    "libcufft": ("cufft",),
    "libcurand": ("curand",),
    "libcusparse": ("cusparse",),
    "libcusparseLt": ("cusparseLt",),
    "libcusolver": ("cusolver",),
    "libnccl": ("nccl", "pnccl"),
    "libcufile": ("cuFile",),
    "libnvshmem_host": ("nvshmem", "nvshmemx"),
}
"""How the functions of each library begin."""

LONGER = {"libcublas": "cublasLt", "libcusparse": "cusparseLt"}
"""Beginnings that belong to another library."""


def output_of(*command: str) -> str:
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def missing_symbols(libraries: list[Path]) -> dict[str, str]:
    """Functions that libraries expect elsewhere, with the version that they ask for."""
    found: dict[str, str] = {}
    for library in libraries:
        for line in output_of("nm", "-D", "--undefined-only", str(library)).splitlines():
            name, _, version = line.split()[-1].partition("@")
            found.setdefault(name, version.lstrip("@"))
    return found


def needed_names(libraries: list[Path]) -> set[str]:
    """Names of the libraries that libraries load."""
    return {
        name
        for library in libraries
        for name in re.findall(r"NEEDED.*\[(.*?)\]", output_of("readelf", "-d", str(library)))
    }


def write_stub(target: Path, symbols: dict[str, str]) -> None:
    """A library whose functions all give 1, under the versions asked for."""
    source = "".join(f"int {name}(void) {{ return 1; }}\n" for name in sorted(symbols))
    versions: dict[str, list[str]] = defaultdict(list)
    for name, version in symbols.items():
        if version:
            versions[version].append(name)
    with tempfile.TemporaryDirectory() as folder:
        code = Path(folder, "stub.c")
        code.write_text(source or "int chiplet_stub;\n")
        flags = ["-shared", "-fPIC", "-w", "-fno-builtin", f"-Wl,-soname,{target.name}"]
        if versions:
            script = Path(folder, "versions.map")
            script.write_text(
                "".join(f"{each} {{ global: {'; '.join(n)}; }};\n" for each, n in versions.items())
            )
            flags.append(f"-Wl,--version-script={script}")
        subprocess.run(["gcc", *flags, "-o", str(target), str(code)], check=True)


def main() -> None:
    packages = Path(sysconfig.get_path("purelib"))
    folder = packages / "torch" / "lib"
    libraries = sorted(folder.glob("lib*.so"))
    there = {each.name for each in (*folder.iterdir(), *packages.glob("nvidia/*/lib/*.so*"))}
    symbols = missing_symbols(libraries)
    for name in sorted(needed_names(libraries) - there):
        library = name.partition(".so")[0]
        if library not in PREFIXES:
            continue  # of the system
        other = LONGER.get(library)
        own = {
            each: version
            for each, version in symbols.items()
            if each.startswith(PREFIXES[library]) and not (other and each.startswith(other))
        }
        write_stub(folder / name, own)
        print(f"{name}: {len(own)} functions")


if __name__ == "__main__":
    main()
