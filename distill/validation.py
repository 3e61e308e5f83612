"""YAML files against pydantic models: all errors at once, each with its dotted path and a hint."""

import difflib
import re
import types
import typing
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, ClassVar

import yaml
from pydantic import BaseModel, ValidationError

from distill.errors import InputError
from distill.sections import PATTERN_WORDS

MOST_CHARACTERS = 200  # of a value that is shown
MOST_VALUES = 100_000  # of a file, aliases written out


class _Loader(yaml.SafeLoader):
    """YAML with `3e-4` as a number and without silent duplicate keys."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys = [self.construct_object(key, deep=True) for key, _ in node.value]
        for key in keys:
            if keys.count(key) > 1:
                raise yaml.constructor.ConstructorError(None, None, f"the key {key!r} stands twice", node.start_mark)
        return super().construct_mapping(node, deep)


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"^[-+]?(\d+(\.\d*)?|\.\d+)[eE][-+]?\d+$"), list("-+.0123456789")
)


def parse_yaml(text: str) -> Any:
    """YAMLError at what is no YAML: also dates and numbers that are none, endless nesting and endless aliases."""
    try:
        value = yaml.load(text, Loader=_Loader)  # noqa: S506 - a SafeLoader
    except (ValueError, RecursionError) as error:
        raise yaml.YAMLError(str(error)) from None
    _refuse_endless(value)
    return value


def _refuse_endless(value: Any) -> None:
    """YAMLError where aliases of aliases make a small file large, or one that holds itself."""
    waiting, values = [value], 0
    while waiting:
        each = waiting.pop()
        values += 1
        if values > MOST_VALUES:
            raise yaml.YAMLError(f"its aliases (*name) make it more than {MOST_VALUES} values")
        waiting += each.values() if isinstance(each, dict) else each if isinstance(each, list) else ()


def read_yaml(path: Path, what: str, keys: str) -> dict[str, Any]:
    """The mapping in a YAML file; InputError where it is none. `what` the file is, and the `keys` it should have."""
    try:
        raw = parse_yaml(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"cannot read the {what} {path}: {error.strerror}. Give the path of a YAML file.") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        reason = _yaml_reason(error)
        hint = " Indent with spaces: YAML allows no tabs." if "'\\t'" in reason else ""
        raise InputError(f"{path} is not valid YAML: {reason}. Mend the file.{hint}") from None
    if not isinstance(raw, dict):
        raise InputError(f"{path} holds {type(raw).__name__}, expected a mapping with the keys {keys}.")
    return raw


def _yaml_reason(error: yaml.YAMLError | UnicodeDecodeError) -> str:
    """Return what is wrong, and on which line if YAML knows it."""
    if not isinstance(error, yaml.MarkedYAMLError) or error.problem_mark is None:
        return str(error).partition('\n  in "<')[0]
    words = " ".join(part for part in (error.context, error.problem) if part)
    return f"line {error.problem_mark.line + 1}, column {error.problem_mark.column + 1}: {words}"


def explain(
    error: ValidationError,
    model: type[BaseModel],
    heading: str,
    is_inherited: Callable[[list[str]], bool] = lambda path: False,
) -> str:
    """All errors of a validation against `model`, below a heading, one line each.

    `is_inherited(path)` is true of those that were written elsewhere, where they are reported too.
    """
    lines = [heading]
    # Each error once, where it was written; all of them rather than none.
    errors = [item for item in error.errors() if not is_inherited(_path(item))] or error.errors()
    for item in errors:
        path = _path(item)
        if isinstance(item["input"], dict) and any(str(part).startswith("literal[") for part in item["loc"]):
            continue  # of a union of words and a block a block was meant, and its own errors follow
        line = _explain_one(item, path, model)
        if not any(known.startswith(f"  {'.'.join(path)}:") for known in lines):
            lines.append(line)
    return "\n".join(lines)


def _path(item: Any) -> list[str]:
    """Return the keys to an error, without the names that pydantic gives to the alternatives of a union."""
    return [str(part) for part in item["loc"] if not re.search(r"[\[\]]|^constrained-", str(part))]


def _explain_one(item: Any, path: list[str], model: type[BaseModel]) -> str:
    dotted = ".".join(path)
    if item["type"] == "extra_forbidden":
        return f"  {dotted}: unknown key{_did_you_mean(path, model)}"
    if item["type"] == "missing":
        return f"  {dotted}: missing, expected a value"
    message = item["msg"].removeprefix("Value error, ")
    keys = f"a block with the keys {', '.join(_keys_at(path, model))}" if _keys_at(path, model) else ""
    if item["type"] == "model_type" and keys:
        message = f"expected {keys}"
    elif item["type"] == "literal_error" and keys:
        message += f", or {keys}"
    elif item["type"] == "literal_error":
        message += _did_you_mean_word(item)
    elif item["type"] == "string_pattern_mismatch":
        message = PATTERN_WORDS.get(item["ctx"]["pattern"], message)
    given = item["input"]
    message += _example(item, path, model)
    shown = "" if isinstance(given, dict | BaseModel) else f"{shown_value(given)} given; "
    return f"  {dotted or 'the file'}: {shown}{message[0].lower()}{message[1:]}"


def shown_value(given: Any) -> str:
    """Return a value as a message shows it: not whole if it is long."""
    text = repr(given)
    return text if len(text) <= MOST_CHARACTERS else f"{text[: MOST_CHARACTERS - 3]}..."


def _did_you_mean_word(item: Any) -> str:
    words = re.findall(r"'([^']+)'", item["ctx"]["expected"])
    close = difflib.get_close_matches(str(item["input"]), words, n=1, cutoff=0.6)
    return f"; did you mean {close[0]!r}?" if close else ""


def _example(item: Any, path: list[str], model: type[BaseModel]) -> str:
    """Return a line that would be right in place of a value which is no list or no block; else nothing."""
    is_word = isinstance(item["input"], str | int | float) and 0 < len(str(item["input"])) <= MOST_CHARACTERS
    if item["type"] == "list_type" and is_word:
        example: Any = [item["input"]]
    elif item["type"] in ("model_type", "dict_type"):
        blocks = _blocks_at(path[:-1], model)
        fields = [block.model_fields[path[-1]] for block in blocks if path and path[-1] in block.model_fields]
        examples = [example for field in fields for example in field.examples or []]
        if not examples:
            return ""
        example = examples[0]
    else:
        return ""
    line = yaml.safe_dump({path[-1]: example}, default_flow_style=True, width=1000).strip()
    return f"; for example {line.removeprefix('{').removesuffix('}')}"


def _did_you_mean(path: list[str], model: type[BaseModel]) -> str:
    valid = _keys_at(path[:-1], model)
    close = difflib.get_close_matches(path[-1], valid, n=1, cutoff=0.6)
    if close:
        return f"; did you mean {close[0]!r}?"
    nested = [
        f"{block}.{path[-1]}" for block in ("train", "evaluate") if path[-1] in _keys_at([*path[:-1], block], model)
    ]
    if nested:
        return f"; did you mean {nested[0]!r}?"
    return f"; expected one of {', '.join(valid)}"


def _keys_at(path: list[str], model: type[BaseModel]) -> list[str]:
    """The valid keys of the block at `path`, found by walking the schema."""
    return [name for block in _blocks_at(path, model) for name in block.model_fields]


def _blocks_at(path: list[str], model: type[BaseModel]) -> list[Any]:
    """Return the blocks that may stand at `path`, found by walking the schema."""
    blocks: list[Any] = [model]
    for part in path:
        blocks = [child for block in blocks for child in _children(block, part)]
    return blocks


def _children(block: type[BaseModel], part: str) -> Iterator[Any]:
    """The blocks below key `part` of a block, or, for a table of named blocks, a stand-in that yields them."""
    if isinstance(block, _Table):
        yield from block.blocks
        return
    field = block.model_fields.get(part)
    if field is None:
        return
    annotation = field.annotation
    if typing.get_origin(annotation) is dict:
        yield _Table(_sections(typing.get_args(annotation)[1]))
    else:
        yield from _sections(annotation)


class _Table:
    """A mapping from free names to blocks (teachers, students)."""

    model_fields: ClassVar[dict[str, Any]] = {}

    def __init__(self, blocks: list[type[BaseModel]]) -> None:
        self.blocks = blocks


def _sections(annotation: Any) -> list[type[BaseModel]]:
    options = typing.get_args(annotation) if typing.get_origin(annotation) in (types.UnionType, typing.Union) else ()
    return [a for a in (annotation, *options) if isinstance(a, type) and issubclass(a, BaseModel)]
