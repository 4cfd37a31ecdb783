"""Finds all files of a split model: `name-00001-of-00003.gguf` and its siblings.

Source: llama.cpp's gguf-split.
"""

import re
from pathlib import Path

from rocmforge_jax.gguf.container import Container, read_container
from rocmforge_jax.gguf.errors import GGUFError
from rocmforge_jax.gguf.limits import MAX_SPLITS

_NAME = re.compile(r"(?P<stem>.*)-(?P<number>\d{5})-of-(?P<count>\d{5})\.gguf", re.DOTALL)


def read_split(path: Path, container: Container) -> list[Container]:
    """Returns the containers of all files of a model, in order.

    The other files must be in the same folder.

    Args:
        path: Any file of the model.
        container: The contents of that file.

    Raises:
        GGUFError: A file is missing, or split.no, split.count or split.tensors.count does not match
            the file names or the tensors.
    """
    count = _split_number(container, "split.count", 1)
    if count <= 1:
        return [container]
    if count > MAX_SPLITS:
        raise GGUFError(
            f"{path}: split.count says that the model is in {count} files, the most is {MAX_SPLITS}"
        )
    name = _NAME.fullmatch(path.name)
    if name is None or int(name["count"]) != count:
        raise GGUFError(
            f"{path}: split.count says that the model is in {count} files, so this one must be"
            f" named NAME-NUMBER-of-{count:05}.gguf"
        )
    paths = [
        path.with_name(f"{name['stem']}-{number:05}-of-{count:05}.gguf")
        for number in range(1, count + 1)
    ]
    missing = [sibling.name for sibling in paths if not sibling.is_file()]
    if missing:
        raise GGUFError(
            f"{path}: {len(missing)} of the model's {count} files are not in its folder:"
            f" {', '.join(missing[:3])}"
        )
    containers = [container if sibling == path else read_container(sibling) for sibling in paths]
    for index, part in enumerate(containers):
        _check_part(part, index, count)
    _check_tensors(containers)
    return containers


def _check_part(part, index, count):
    found = _split_number(part, "split.no", None), _split_number(part, "split.count", None)
    if found != (index, count):
        raise GGUFError(
            f"{part.mapped.path}: by its name split.no is {index} and split.count {count}, the file"
            f" says {found[0]} and {found[1]}"
        )


def _check_tensors(containers):
    owners = {}
    for part in containers:
        for name in part.tensors:
            if name in owners:
                raise GGUFError(f"{part.mapped.path}: tensor {name!r} is also in {owners[name]}")
            owners[name] = part.mapped.path
    first = containers[0]
    expected = _split_number(first, "split.tensors.count", None)
    if expected != len(owners):
        path, files = first.mapped.path, len(containers)
        raise GGUFError(
            f"{path}: split.tensors.count is {expected}, the model's {files} files have"
            f" {len(owners)} tensors"
        )


def _split_number(container, key, default):
    number = container.metadata.get(key, default)
    if number is not default and type(number) is not int:
        raise GGUFError(
            f"{container.mapped.path}: {key} must be an integer, got"
            f" {container.metadata.describe(key)}"
        )
    return number
