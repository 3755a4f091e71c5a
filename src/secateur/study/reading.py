"""Settings from YAML and flags: read, merged, checked whole, and every problem named at once."""

from __future__ import annotations

import dataclasses
import difflib
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar, get_args

import yaml
from pydantic import BaseModel, ValidationError

from secateur.errors import InputError

C = TypeVar("C", bound=BaseModel)


def read_mapping(path: Path) -> dict[str, Any]:
    """Read a YAML file that holds one mapping.

    Raises:
        InputError: the file is missing, is not YAML, holds a key twice or no mapping.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise InputError(f"{path} is not a text file in UTF-8") from error
    try:
        found = yaml.load(text, _OnceLoader)
    except yaml.YAMLError as error:
        raise InputError(f"{path} is not valid YAML: {_one_line(error)}") from error
    if not isinstance(found, dict):
        raise InputError(f"{path} must hold keys and values, but got {type(found).__name__}")
    return found


def parse(kind: type[C], raw: Mapping[str, Any], where: str) -> C:
    """Check ``raw`` against ``kind``.

    Args:
        kind: the settings to build.
        raw: keys and values as YAML or flags gave them.
        where: the file they are from; empty for options.

    Raises:
        InputError: one line for every problem there is.
    """
    try:
        return kind.model_validate(dict(raw))
    except ValidationError as error:
        problems = [line for entry in error.errors() for line in _problem(kind, entry)]
    if len(problems) == 1:
        raise InputError(f"{where}: {problems[0]}" if where else problems[0])
    listed = "".join(f"\n  {problem}" for problem in problems)
    raise InputError(f"{len(problems)} errors in {where or 'the options'}:{listed}")


def merge(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """Return ``base`` with the values of ``over``, mapping by mapping; a new target replaces."""
    merged = dict(base)
    for key, value in over.items():
        before = merged.get(key)
        if isinstance(value, Mapping) and isinstance(before, Mapping) and key != "target":
            value = merge(before, value)
        merged[key] = value
    return merged


def differences(before: Mapping[str, Any], now: Mapping[str, Any], path: str = "") -> Iterator[str]:
    """Yield one line for every setting that is not the same."""
    for key in dict.fromkeys([*before, *now]):
        old, new, name = before.get(key), now.get(key), f"{path}{key}"
        if isinstance(old, Mapping) and isinstance(new, Mapping):
            yield from differences(old, new, f"{name}.")
        elif old != new:
            yield f"{name} was {old!r}, but got {new!r}"


class _OnceLoader(yaml.SafeLoader):
    """YAML takes the last of two equal keys without a word; here the second one is an error."""

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        seen: set[Any] = set()
        for key, _ in node.value:
            if key.value in seen:
                raise yaml.MarkedYAMLError(
                    problem=f"{key.value!r} twice", problem_mark=key.start_mark
                )
            seen.add(key.value)
        return dict(super().construct_mapping(node, deep))


def _one_line(error: yaml.YAMLError) -> str:
    mark = getattr(error, "problem_mark", None)
    text = getattr(error, "problem", None) or " ".join(str(error).split())
    return f"{text} (line {mark.line + 1}, column {mark.column + 1})" if mark else str(text)


def _problem(kind: type[BaseModel], entry: Any) -> list[str]:
    """Say in our words what pydantic found at one place."""
    path = [part for part in entry["loc"] if isinstance(part, str | int)]
    name = ".".join(str(part) for part in path)
    prefix = f"{name}: " if name else ""
    if entry["type"] in ("extra_forbidden", "unexpected_keyword_argument"):
        return [f"{name}: unknown key; {_nearest(kind, path)}"]
    if entry["type"] in ("missing", "missing_argument"):
        return [f"{name}: is required"]
    if entry["type"] == "value_error":
        parts = re.split(r"; (?=\w+ must be )", str(entry["ctx"]["error"]))
        own = f"{path[-1]} " if path else ""
        return [prefix + part.removeprefix(own) for part in parts]
    text = entry["msg"].replace("Input should be", "must be").partition(", unable")[0]
    return [f"{prefix}{text[0].lower()}{text[1:]}, but got {entry['input']!r}"]


def _nearest(kind: type[BaseModel], path: Sequence[str | int]) -> str:
    known = _keys(kind, path[:-1])
    near = difflib.get_close_matches(str(path[-1]), known, n=1, cutoff=0.5)
    return f"did you mean {near[0]!r}?" if near else f"the keys are {', '.join(known)}"


def _keys(kind: Any, path: Sequence[str | int]) -> list[str]:
    """Return the valid keys at ``path`` below ``kind``."""
    for part in path:
        if isinstance(part, int):
            continue
        annotation = _fields(kind).get(str(part))
        options = [annotation, *get_args(annotation)]
        kind = next((option for option in options if _fields(option)), None)
    return list(_fields(kind))


def _fields(kind: Any) -> dict[str, Any]:
    if isinstance(kind, type) and issubclass(kind, BaseModel):
        return {name: field.annotation for name, field in kind.model_fields.items()}
    if dataclasses.is_dataclass(kind):
        return {field.name: None for field in dataclasses.fields(kind)}
    return {}
