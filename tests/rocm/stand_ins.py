"""Stand-ins for ROCm's shared libraries, so that XLA's plugin can be loaded, and can compile, where
there is no ROCm.

The plugin holds the whole compiler but is linked against the libraries that drive a GPU. Its own
symbol table says which functions it wants of them; here each of these answers "no device".
"""

import re
import subprocess
from collections import defaultdict
from pathlib import Path

#: Libraries that every Linux has.
_SYSTEM = re.compile(r"(libc|libm|librt|libdl|libpthread|libstdc\+\+|libgcc_s|ld-linux.*)\.so")


def build(plugin: Path, folder: Path) -> list[Path]:
    """Compile, with gcc, a library in `folder` for each that the plugin needs.

    In the order to load them in.
    """
    needed = [
        name
        for name in re.findall(r"\(NEEDED\).*\[(.+?)\]", _run("readelf", "-dW", plugin))
        if not _SYSTEM.match(name)
    ]
    wanted = _wanted(plugin, needed)
    return [_compile(folder / name, wanted[name]) for name in needed]


def _run(*command) -> str:
    return subprocess.run(
        list(map(str, command)), capture_output=True, text=True, check=True
    ).stdout


def _wanted(plugin, needed) -> dict[str, dict[str, str]]:
    """library -> {function: version, "" for none}.

    A function without a version may be in any library: the first has it.
    """
    versions, wanted = _versions(plugin), defaultdict(dict)
    for line in _run("readelf", "--dyn-syms", "-W", plugin).splitlines():
        words = line.split()
        if len(words) < 8 or words[6] != "UND":
            continue
        name, _, version = words[7].partition("@")
        if version:
            library, version = versions[int(words[8].strip("()"))]
            wanted[library][name] = version
        elif words[4] == "GLOBAL" and needed:
            wanted[needed[0]][name] = ""
    return wanted


def _versions(plugin) -> dict[int, tuple[str, str]]:
    """Number of a symbol version -> (library, version)."""
    versions, library = {}, None
    for line in _run("readelf", "-VW", plugin).splitlines():
        if found := re.search(r"File: (\S+)", line):
            library = found[1]
        elif found := re.search(r"Name: (\S+)\s+Flags: \S+\s+Version: (\d+)", line):
            versions[int(found[2])] = (library, found[1])
    return versions


def _compile(library: Path, functions: dict[str, str]) -> Path:
    source, script = library.with_suffix(".c"), library.with_suffix(".map")
    bodies = [f"long {name}(void *a) {{ {_body(name)} }}" for name in sorted(functions)]
    source.write_text("\n".join(["static void *handle[64];", *bodies, ""]))
    by_version = defaultdict(list)
    for name, version in functions.items():
        by_version[version].append(name)
    by_version.pop("", None)
    script.write_text(
        "".join(
            f"{version} {{ global: {'; '.join(names)}; }};\n"
            for version, names in by_version.items()
        )
    )
    versioned = [f"-Wl,--version-script={script}"] if by_version else []
    _run(
        "gcc",
        "-shared",
        "-fPIC",
        "-w",
        "-o",
        library,
        source,
        f"-Wl,-soname,{library.name}",
        *versioned,
    )
    return library


def _body(function: str) -> str:
    if re.search("ErrorString|ErrorName|status_to_string|_name$", function):
        return 'return (long)"no ROCm";'
    if function == "__hipRegisterFatBinary":
        return "return (long)handle;"
    if function == "hipGetDeviceCount":
        return "*(int *)a = 0; return 100;"  # hipErrorNoDevice
    if function.startswith("__hip"):
        return "return 0;"
    return "return 100;" if function.startswith("hip") else "return 1;"
