"""From YAML and command-line overrides to frozen dataclasses, gathering every problem before raising.

A section is a dataclass deriving from `Section`; its type hints are the schema. Unknown keys, wrong types,
missing values and contradictions (`Section.problems`) of a whole file are reported together.
"""

from __future__ import annotations

import dataclasses
import sys
import types
import typing
from collections.abc import Mapping, Sequence
from enum import Enum
from pathlib import Path
from typing import Any, TypeVar

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from mixshow.core.errors import MixshowError, OptionsError, did_you_mean, first_line
from mixshow.core.files import write_text

_MISSING = object()


def option(help: str, default: Any = dataclasses.MISSING, *, factory: Any = dataclasses.MISSING) -> Any:
    """A field of a section: its meaning with the unit, and its default (none: the option is required)."""
    if factory is not dataclasses.MISSING:
        return dataclasses.field(default_factory=factory, metadata={"help": help})
    if default is dataclasses.MISSING:
        return dataclasses.field(metadata={"help": help})
    return dataclasses.field(default=default, metadata={"help": help})


@dataclasses.dataclass(frozen=True)
class Section:
    """Base of all option sections."""

    @classmethod
    def in_short(cls, given: Any) -> Mapping[str, Any] | None:
        """The options that a value which is no mapping stands for; None: nothing."""
        return None

    def problems(self) -> list[str]:
        """Contradictions and values out of range, one sentence each; names fields without the section's path."""
        return []


SectionType = TypeVar("SectionType", bound=Section)


def load(
    schema: type[SectionType],
    path: Path | str,
    overrides: Sequence[str] = (),
    *,
    values: Mapping[str, Any] | None = None,
) -> SectionType:
    """Read an options file.

    Args:
        schema: the root section.
        path: a YAML file; used as the name in messages when `values` are given.
        overrides: `section.key=value` texts from the command line, values in YAML; `list[0].key=value` in lists.
        values: already read contents, instead of reading `path`.

    Raises:
        OptionsError: everything that is wrong with the file, together.
        MixshowError: the file cannot be read or is no YAML mapping.
    """
    contents = read_yaml(path) if values is None else values
    try:
        merged = OmegaConf.create(dict(contents))
        for text in _checked(overrides):
            _override(merged, text)
        plain = OmegaConf.to_container(merged, resolve=True)
    except (OmegaConfBaseException, YAMLError, ValueError) as error:
        raise OptionsError(str(path), [first_line(error)]) from error
    assert isinstance(plain, dict)
    return build(schema, {str(key): value for key, value in plain.items()}, str(path))


def read_yaml(path: Path | str) -> dict[str, Any]:
    """Read a YAML (or JSON) mapping as plain values.

    Raises:
        MixshowError: the file is missing, unreadable, or no mapping; names line and column where known.
    """
    path = Path(path)
    if not path.is_file():
        raise MixshowError(f"{path}: no such options file")
    try:
        contents = OmegaConf.to_container(OmegaConf.load(path), resolve=False)
    except UnicodeDecodeError as error:
        raise MixshowError(f"{path}: expected YAML text in UTF-8, found other bytes") from error
    except (YAMLError, OmegaConfBaseException, OSError) as error:
        mark = getattr(error, "problem_mark", None)
        where = f", line {mark.line + 1} column {mark.column + 1}" if mark else ""
        raise MixshowError(
            f"{path}: not valid YAML{where}: {getattr(error, 'problem', None) or first_line(error)}"
        ) from error
    if not isinstance(contents, dict):
        raise MixshowError(f"{path}: expected a mapping of options, found {_describe(contents)}")
    return {str(key): value for key, value in contents.items()}


def build(schema: type[SectionType], contents: Mapping[str, Any], source: str = "options") -> SectionType:
    """Make a section from plain values.

    Raises:
        OptionsError: all problems together.
    """
    problems: list[str] = []
    section = _section(schema, contents, "", problems)
    if problems:
        raise OptionsError(source, problems)
    return section


def dump(section: Section, path: Path | str) -> None:
    """Write the resolved options as YAML, beside what was made with them."""
    write_text(path, OmegaConf.to_yaml(OmegaConf.create(to_plain(section))))


def to_plain(value: Any) -> Any:
    """Sections, enums and paths as plain dicts, strings and numbers."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {_option_name(field.name): to_plain(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {str(key): to_plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [to_plain(item) for item in value]
    if isinstance(value, Enum):
        return value.value
    return str(value) if isinstance(value, Path) else value


def _option_name(field: str) -> str:
    """What options files call a field: `from_` is `from`, which Python keeps to itself."""
    return field.removesuffix("_")


def _checked(overrides: Sequence[str]) -> Sequence[str]:
    for text in overrides:
        if "=" not in text or text.startswith("="):
            raise MixshowError(f"override '{text}': expected key=value, for example train.steps=200")
        try:
            OmegaConf.from_dotlist([text])
        except YAMLError as error:
            raise MixshowError(
                f"override '{text}': not valid YAML: {getattr(error, 'problem', None) or first_line(error)}; a value "
                "such as '[{file: a.safetensors}]' has a space behind every colon and stands in quotes in a shell"
            ) from error
    return overrides


def _override(contents: DictConfig, text: str) -> None:
    try:
        contents.merge_with_dotlist([text])
    except (OmegaConfBaseException, LookupError, TypeError, ValueError) as error:
        raise MixshowError(
            f"override '{text}': expected an option of the file ({first_line(error)}); entries of a list go by their "
            "number from 0, such as regions[0].prompt"
        ) from error


def _section(schema: type[SectionType], contents: Any, where: str, problems: list[str]) -> SectionType:
    """Build one section; appends to `problems` and then returns a value that must not be used."""
    if not isinstance(contents, Mapping):
        contents = schema.in_short(contents) or contents
    if not isinstance(contents, Mapping):
        problems.append(f"{where or 'options'}: expected a mapping, found {_describe(contents)}")
        return typing.cast(SectionType, None)
    fields = {_option_name(field.name): field for field in dataclasses.fields(schema) if field.init}
    before = len(problems)
    for key in contents:
        if key not in fields:
            problems.append(f"{_join(where, str(key))}: unknown option{did_you_mean(str(key), fields)}")
    values: dict[str, Any] = {}
    hints = typing.get_type_hints(schema)
    for name, field in fields.items():
        given = contents.get(name, _MISSING)
        optional = field.default is not dataclasses.MISSING or field.default_factory is not dataclasses.MISSING
        if given is not _MISSING:
            values[field.name] = _value(hints[field.name], given, _join(where, name), problems)
        elif not optional:
            problems.append(f"{_join(where, name)}: missing; {field.metadata.get('help', 'required')}")
    if len(problems) > before:
        return typing.cast(SectionType, None)
    section = schema(**values)
    problems += [_join(where, text) for text in section.problems()]
    return section


def _join(where: str, name: str) -> str:
    return f"{where}.{name}" if where else name


def _describe(value: Any) -> str:
    names = {
        bool: "true/false",
        int: "a whole number",
        float: "a number",
        str: "a text",
        list: "a list",
        dict: "a mapping",
    }
    if value is None:
        return "nothing"
    text = repr(value)
    return f"{names.get(type(value), type(value).__name__)} ({text if len(text) <= 40 else text[:37] + '...'})"


def _value(hint: Any, given: Any, where: str, problems: list[str]) -> Any:
    """`given` as the hinted type; a mismatch becomes a problem."""

    def refuse(expected: str) -> None:
        problems.append(f"{where}: expected {expected}, found {_describe(given)}")

    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if hint is Any:
        return given
    if origin in (typing.Union, types.UnionType):
        return _union(arguments, given, where, problems)
    if origin is typing.Literal:
        if given not in arguments:
            refuse("one of " + ", ".join(map(str, arguments)))
        return given
    if origin in (list, tuple):
        return _sequence(origin, arguments, given, where, problems)
    if origin in (dict, Mapping):
        if not isinstance(given, Mapping):
            return refuse("a mapping")
        return {str(key): _value(arguments[1], item, _join(where, str(key)), problems) for key, item in given.items()}
    if dataclasses.is_dataclass(hint):
        return _section(typing.cast(Any, hint), given, where, problems)
    if isinstance(hint, type) and issubclass(hint, Enum):
        choices = [str(member.value) for member in hint]
        if given not in choices:
            return refuse("one of " + ", ".join(choices))
        return hint(given)
    return _scalar(hint, given, refuse)


def _union(choices: Sequence[Any], given: Any, where: str, problems: list[str]) -> Any:
    if given is None and type(None) in choices:
        return None
    rest = [choice for choice in choices if choice is not type(None)]
    attempts: list[list[str]] = []
    for choice in rest:
        found: list[str] = []
        value = _value(choice, given, where, found)
        if not found:
            return value
        attempts.append(found)
    # The choice of the right outer shape (a mapping for a section, say) explains the mistake best.
    explained = [lines for lines in attempts if not lines[0].startswith(f"{where}: expected")]
    problems += (explained or attempts)[0]
    return None


def _sequence(kind: type, arguments: Sequence[Any], given: Any, where: str, problems: list[str]) -> Any:
    if not isinstance(given, (list, tuple)):
        problems.append(f"{where}: expected a list, found {_describe(given)}")
        return None
    fixed = kind is tuple and not (len(arguments) == 2 and arguments[1] is Ellipsis)
    if fixed and len(given) != len(arguments):
        problems.append(f"{where}: expected {len(arguments)} values, found {len(given)} ({given!r})")
        return None
    hints = arguments if fixed else [arguments[0]] * len(given)
    return kind(_value(hint, item, f"{where}[{i}]", problems) for i, (hint, item) in enumerate(zip(hints, given)))


def _scalar(hint: Any, given: Any, refuse: Any) -> Any:
    if hint is bool:
        return given if isinstance(given, bool) else refuse("true or false")
    if hint is int:
        if isinstance(given, float) and given.is_integer():
            return int(given)
        return given if isinstance(given, int) and not isinstance(given, bool) else refuse("a whole number")
    if hint is float:
        if isinstance(given, str):  # YAML 1.1 reads 1e-4 (no dot) as a text
            try:
                given = float(given)
            except ValueError:
                return refuse("a number")
        known = isinstance(given, (int, float)) and not isinstance(given, bool)
        return float(given) if known and abs(given) <= sys.float_info.max else refuse("a number")
    if hint is str:
        return given if isinstance(given, str) else refuse("a text (put it in quotes)")
    if hint is Path:
        return Path(given).expanduser() if isinstance(given, str) and given else refuse("a path")
    raise TypeError(f"option sections cannot hold {hint}")
