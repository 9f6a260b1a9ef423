"""Makes PyPI's torch importable without the CUDA libraries that it links to.

They take 4 GB, and a CPU does not need them. `python torch_on_cpu.py` writes a small library for
each missing one, next to torch's own libraries. It defines the symbols that torch looks up. Each
function returns 0; without a GPU torch never calls them. Needs a C compiler, `nm` and `readelf`.
Does nothing where torch is not installed or finds all of its libraries.
"""

from __future__ import annotations

import importlib.util
import re
import subprocess
import sys
import tempfile
from pathlib import Path

# Where torch's libraries look for others, from their own folder.
SEARCHED = ["nvidia/*/lib", "torch/lib"]


def main() -> None:
    found = importlib.util.find_spec("torch")
    if found is None or found.origin is None:
        return
    packages = Path(found.origin).parents[1]
    folder = packages / "torch" / "lib"
    libraries = sorted(folder.glob("*.so"))
    there = {path.name for pattern in SEARCHED for path in packages.glob(f"{pattern}/*.so*")}
    # {library's name: {version: symbols}}.
    wanted: dict[str, dict[str, set[str]]] = {}
    for library in libraries:
        for name in needed(library):
            # The driver's libcuda.so.1 is loaded only where there is a GPU.
            if name.startswith(("libcu", "libnv", "libnccl")) and name not in there | {"libcuda.so.1"}:
                wanted.setdefault(name, {})
    if not wanted:
        return
    for library in libraries:
        names, symbols = versions(library), undefined(library)
        for version, name in names.items():
            if name in wanted:
                wanted[name].setdefault(version, set()).update(symbols.get(version, ()))
        for name in set(wanted) & set(needed(library)) - set(names.values()):
            # Without versions, a symbol begins with its library's name: ncclGetUniqueId is in
            # libnccl.so.2.
            prefix = re.split(r"[._]", name.removeprefix("lib"))[0]
            of_it = {symbol for symbol in symbols.get("", ()) if symbol.lower().startswith(prefix.lower())}
            wanted[name].setdefault("", set()).update(of_it)
    for name, by_version in wanted.items():
        write(folder / name, by_version)
    print(f"torch: wrote {len(wanted)} libraries without function to {folder}", file=sys.stderr)


def needed(library: Path) -> list[str]:
    """Return the names of the libraries that one links to."""
    lines = output("readelf", "-d", library).splitlines()
    return [line.split("[")[1].rstrip("]") for line in lines if "(NEEDED)" in line]


def versions(library: Path) -> dict[str, str]:
    """Return {version of symbols: name of the library that defines it}."""
    found, name = {}, ""
    for line in output("readelf", "-V", "-W", library).splitlines():
        if file := re.search(r"File: (\S+)", line):
            name = file[1]
        elif version := re.search(r"Name: (\S+)", line):
            found[version[1]] = name
    return found


def undefined(library: Path) -> dict[str, set[str]]:
    """Return {version: symbols} that a library looks up in others."""
    found: dict[str, set[str]] = {}
    for line in output("nm", "-D", "--undefined-only", "--with-symbol-versions", library).splitlines():
        symbol, _, version = line.split()[-1].partition("@")
        found.setdefault(version.lstrip("@"), set()).add(symbol)
    return found


def write(path: Path, by_version: dict[str, set[str]]) -> None:
    """Compile a library of functions that return 0, in the versions that its users look up."""
    with tempfile.TemporaryDirectory() as folder:
        source, script = Path(folder) / "stub.c", Path(folder) / "stub.map"
        symbols = sorted(set().union(*by_version.values()))
        source.write_text("".join(f"int {symbol}(void) {{ return 0; }}\n" for symbol in symbols))
        blocks = {version: "".join(f"{symbol}; " for symbol in sorted(of)) for version, of in by_version.items()}
        script.write_text("".join(f"{v} {{ global: {names}}};\n" for v, names in blocks.items() if v))
        options = [f"-Wl,-soname,{path.name}"]
        if set(by_version) - {""}:
            options.append(f"-Wl,--version-script={script}")
        output("cc", "-w", "-O1", "-fPIC", "-shared", "-fno-builtin", source, "-o", path, *options)


def output(*command: str | Path) -> str:
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


if __name__ == "__main__":
    main()
