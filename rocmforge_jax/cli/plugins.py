"""Finds problems of JAX's plugins for GPUs: what is installed, and why a plugin does not start."""

import re
from collections.abc import Iterator

from rocmforge_jax.cli.machine import Facts
from rocmforge_jax.cli.problem import Problem

#: JAX release -> ROCm version that its extra `rocm` requires. ROCM_10: the same for `rocm10`.
ROCM_OF_JAX = {"0.10": "7.2", "0.12": "7.14"}
ROCM_10 = "10.1"
#: The names that JAX_PLATFORMS may contain.
PLATFORMS = ("cpu", "gpu", "cuda", "rocm", "tpu")
_PACKAGE = re.compile(r"(?P<family>jax-(?P<vendor>rocm|cuda)\d+)-(pjrt|plugin)")
_NO_FILE = re.compile(r"([^\s:'\"]+): cannot open shared object file")
_NO_GPU = {
    "rocm": "check that the amdgpu driver is loaded (/sys/class/kfd exists) and that you are in the"
    " groups render and video; Docker needs --device=/dev/kfd --device=/dev/dri",
    "cuda": "check that nvidia-smi lists the GPU; Docker needs --gpus all",
}
_MAKERS = {"rocm": "AMD", "cuda": "NVIDIA"}


def problems(facts: Facts) -> Iterator[Problem]:
    """Yields the problems of packages and of plugins that do not start."""
    families = _families(facts.versions)
    found = [*_logged(facts), *_placeholders(facts.versions), *_packages(facts, families)]
    yield from found
    if facts.platform == "cpu" and not found:
        yield from _only_cpu(facts, families)


def asked_platforms(facts: Facts) -> tuple[str, list[str]] | None:
    """Returns the variable of JAX that names platforms and its names, or None if it is not set."""
    for variable in ("JAX_PLATFORMS", "JAX_PLATFORM_NAME"):
        if value := facts.environment.get(variable):
            return variable, value.split(",")
    return None


def platform_remedy(facts: Facts) -> str | None:
    """Returns the remedy for JAX_PLATFORMS with a platform that does not start, or None."""
    asked = asked_platforms(facts)
    if asked is None:
        return None
    variable, names = asked
    unset = f"unset {variable}, which is {','.join(names)!r}"
    unknown = [name for name in names if name.lower() not in PLATFORMS]
    if unknown:
        return f"{unset}; the platforms are {', '.join(PLATFORMS)}"
    families = _families(facts.versions)
    for vendor in ("rocm", "cuda"):
        if vendor in names and not any(vendor in family for family in families):
            return f"{_install(vendor, facts.versions)}, or {unset}"
    return unset if not facts.logged else f"mend the problem that follows, or {unset}"


def start_remedy(facts: Facts) -> str | None:
    """Returns the remedy for a shared library that JAX does not find at its start, or None."""
    failure = facts.failure or ""
    return _remedy(failure, facts) if _NO_FILE.search(failure) else None


def _families(versions: dict[str, str]) -> dict[str, dict[str, str]]:
    """Returns the installed plugins: jax-rocm7, for example -> the versions of its packages."""
    found = {}
    for name, version in versions.items():
        if (match := _PACKAGE.fullmatch(name)) and version != "not installed":
            found.setdefault(match["family"], {})[name] = version
    return found


def _install(vendor: str, versions: dict[str, str]) -> str:
    """Returns how to install the plugin of a vendor for the installed JAX."""
    if vendor == "cuda":
        return "pip install 'rocmforge-jax[cuda]' (in a checkout: \".[cuda]\")"
    release = _release(versions.get("jax", ""))
    rocm = ROCM_OF_JAX.get(release, "of its release notes")
    return (
        f"pip install 'rocmforge-jax[rocm]' (in a checkout: \".[rocm]\") for ROCm {rocm} and JAX"
        f" {release}, or 'rocmforge-jax[rocm10]' (\".[rocm10]\") for ROCm {ROCM_10}, JAX 0.12 and"
        " Python 3.12"
    )


def _release(version: str) -> str:
    return ".".join(version.split(".")[:2])


def _vendor(text: str) -> str | None:
    """Returns the vendor that a message is about, or None."""
    if re.search(r"rocm|hip|amd|libroc|librccl|hsa|miopen", text, re.IGNORECASE):
        return "rocm"
    return "cuda" if re.search(r"cuda|nvidia|libcu|libnccl", text, re.IGNORECASE) else None


def _logged(facts: Facts) -> Iterator[Problem]:
    for message in facts.logged:
        yield Problem(f"jax warns at its start: {message}", _remedy(message, facts))


def _remedy(message: str, facts: Facts) -> str:
    """Returns the remedy for the cause that a warning of JAX contains."""
    vendor = _vendor(message)
    hidden = "".join(
        f"; {name} is {value!r}"
        for name, value in facts.environment.items()
        if name.endswith("VISIBLE_DEVICES")
    )
    if missing := _NO_FILE.search(message):
        return _library_remedy(missing[1], _vendor(missing[1]) or vendor, facts.versions)
    if re.search("No AMD GPUs|no supported devices|no CUDA-capable device|NO_DEVICE", message):
        return _NO_GPU[vendor or "rocm"] + hidden
    if "undefined symbol" in message and vendor == "rocm":
        return f"install {_rocm_needed(facts.versions)}, for which the plugin was made"
    if re.search("driver version is insufficient|INSUFFICIENT_DRIVER", message):
        return "update the NVIDIA driver"
    if re.search("CUDA-enabled jaxlib is not installed", message) and not _families(facts.versions):
        return _install("cuda", facts.versions)
    if re.search("incompatible|version .*(mismatch|not match)", message):
        return "pip uninstall the plugin, and install the one of this jax: " + _install(
            vendor or "rocm", facts.versions
        )
    if vendor:
        return _NO_GPU[vendor] + hidden
    return "if the message is about a plugin, check that its driver and libraries are installed"


def _library_remedy(file: str, vendor: str | None, versions: dict[str, str]) -> str:
    """Returns the remedy for a shared library that a plugin does not find."""
    if file.startswith("libcuda."):
        return f"install the NVIDIA driver, which has {file}"
    if vendor == "cuda":
        return f"install the libraries of CUDA, which have {file}: {_install('cuda', versions)}"
    package, example = (
        (_rocm_needed(versions), ", such as /opt/rocm/lib")
        if vendor
        else (f"the package that has {file}", "")
    )
    return f"install {package}, or add the folder of {file} to LD_LIBRARY_PATH{example}"


def _rocm_needed(versions: dict[str, str]) -> str:
    """Returns "ROCm" with the version that the installed plugin needs, if it is known."""
    known = ROCM_OF_JAX.get(_release(versions.get("jax", "")), "")
    return f"ROCm {ROCM_10 if 'jax-rocm10' in _families(versions) else known}".rstrip()


def _placeholders(versions: dict[str, str]) -> Iterator[Problem]:
    """Yields the placeholders of the public index; AMD's own index has packages of those names."""
    found = [
        f"{name} {version}"
        for name, version in versions.items()
        if re.fullmatch(r"rocm(-sdk.*)?", name) and version.startswith("0.")
    ]
    if found:
        names = " ".join(one.split()[0] for one in found)
        yield Problem(
            f"{', '.join(found)}: a placeholder of the public Python index, without ROCm",
            f"pip uninstall {names}, and install ROCm from the system's packages or AMD's index",
        )


def _packages(facts: Facts, families: dict[str, dict[str, str]]) -> Iterator[Problem]:
    """Yields plugins that JAX cannot use together, or with its version."""
    if len(families) > 1:
        choices = ", or ".join(f"pip uninstall {' '.join(_both(one))}" for one in families)
        yield Problem(
            f"{' and '.join(families)} are both installed; jax uses one plugin for GPUs",
            f"keep the one of this machine's GPU: {choices}",
        )
        return
    jax = facts.versions.get("jax", "")
    for family, packages in families.items():
        others = [name for name, version in packages.items() if _release(version) != _release(jax)]
        missing = [name for name in _both(family) if name not in packages]
        if others:
            what = "; ".join(f"{name} is {packages[name]}, jax is {jax}" for name in others)
            yield Problem(what, _matching(family, facts.versions))
        elif missing:
            yield Problem(
                f"{' '.join(packages)} is installed without {missing[0]}",
                f"pip install '{missing[0]}=={_release(jax)}.*'",
            )


def _both(family: str) -> tuple[str, str]:
    return f"{family}-pjrt", f"{family}-plugin"


def _matching(family: str, versions: dict[str, str]) -> str:
    """Returns how to get a plugin of the version of JAX."""
    release = _release(versions.get("jax", ""))
    if family in ("jax-rocm7", "jax-cuda12", "jax-cuda13"):
        return "pip install " + " ".join(f"'{name}=={release}.*'" for name in _both(family))
    remove = f"pip uninstall {' '.join(_both(family))}, then "
    if family != "jax-rocm10":
        return remove + _install("rocm" if "rocm" in family else "cuda", versions)
    if release == "0.12":
        return "pip install -U 'rocmforge-jax[rocm10]'"
    return (
        f"jax-rocm10 needs JAX 0.12 and Python 3.12: install in such an environment, or {remove}"
        f"pip install 'rocmforge-jax[rocm]' for ROCm {ROCM_OF_JAX.get(release, 7)}"
    )


def _only_cpu(facts: Facts, families: dict[str, dict[str, str]]) -> Iterator[Problem]:
    """Yields a GPU, or a plugin for one, that JAX does not use."""
    present = {"rocm": facts.amd, "cuda": facts.nvidia}
    asked = asked_platforms(facts)
    for vendor, there in present.items():
        plugin = next((family for family in families if vendor in family), None)
        maker = _MAKERS[vendor]
        if asked:
            if there:
                yield Problem(
                    f"there is an {maker} GPU, but {asked[0]} is {','.join(asked[1])!r}",
                    f"unset {asked[0]} to compute on the GPU",
                )
        elif plugin:
            yield Problem(
                f"{plugin} is installed, but jax finds no {maker} GPU and computes on the CPU",
                _remedy(f"no supported devices of {maker}", facts),
            )
        elif there:
            yield Problem(
                f"there is an {maker} GPU, but jax computes on the CPU"
                + (
                    " (`jax[rocm]` no longer exists: pip only warns and installs CPU jax)"
                    if vendor == "rocm"
                    else ""
                ),
                _install(vendor, facts.versions),
            )
