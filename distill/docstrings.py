"""The built-in corpus: docstrings of the installed Python packages.

A docstring's first paragraph is a human-written summary of what follows; the document is the name of the thing
described and the paragraphs after the first ("maximum_flow: flowG is a NetworkX graph ..."). Files are read as text
and parsed with `ast`; nothing is imported, nothing is downloaded. Each module (file) belongs to one split, chosen by
a hash of its name; a summary or a pair that occurs again (inherited or generated documentation) is kept once, at its
first place in sorted order, so that nothing leaks over splits.
"""

import ast
import hashlib
import inspect
import multiprocessing
import re
import sysconfig
import warnings
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

MIN_DOCUMENT_WORDS, MAX_DOCUMENT_WORDS = 10, 400
MIN_SUMMARY_WORDS, MAX_SUMMARY_WORDS = 4, 40
# Larger ones are data in the form of Python, and would take minutes.
MAX_FILE_BYTES = 2**23
MAX_DOCSTRING_CHARACTERS = 2**16
# Tables, code, directives and parameter lists are no prose: a document is cut where they begin.
NOT_PROSE = re.compile(r"^\s*(>>>|\.\. |[-=~^*+#|]{3,}|@|:\w|\|)")
SECTION = re.compile(
    r"^\s*(args|arguments|parameters|params|returns?|raises?|yields?|examples?|notes?|see also|references|"
    r"attributes|usage|inputs?|outputs?|warnings?|keyword arguments|keyword args|shape)\b\s*(:\s*)?$",
    re.IGNORECASE,
)

BLOCKS = ("body", "orelse", "handlers", "finalbody")
DEFINITIONS = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)


def read_docstrings(roots: list[Path] | None = None) -> dict[str, list[dict[str, str]]]:
    """{"train": rows, "validation": rows, "test": rows}, each row {"id", "document", "summary"}.

    `roots` are the folders searched, the standard library and the installed packages by default. The result depends
    only on the files found there. Modules go 90 : 5 : 5. Files are parsed on all cores.

    Rows may hold what Python strings can hold and text files cannot, for example NUL characters or lone surrogates.
    `prepare` drops and counts these rows.
    """
    splits: dict[str, list[dict[str, str]]] = {"train": [], "validation": [], "test": []}
    seen: set[str] = set()
    modules = _modules(roots or _installed())
    with ProcessPoolExecutor(mp_context=multiprocessing.get_context("spawn")) as pool:
        found = pool.map(_pairs_of, [path for _, path in modules], chunksize=64)
        for (module, _), pairs in zip(modules, found, strict=True):
            for name, document, summary in pairs:
                keys = {summary.lower(), document.partition(": ")[2].lower()}
                if seen.isdisjoint(keys):
                    splits[split_of(module)].append(
                        {"id": f"{module}:{name}", "document": document, "summary": summary}
                    )
                seen |= keys
    return splits


def split_docstring(name: str, docstring: str) -> tuple[str, str] | None:
    """(document, summary) of what `name` is documented by, or None without a summary paragraph and prose after it."""
    paragraphs = re.split(r"\n\s*\n", inspect.cleandoc(docstring))
    summary = _one_line(paragraphs[0])
    if not MIN_SUMMARY_WORDS <= len(summary.split()) <= MAX_SUMMARY_WORDS or _is_markup(paragraphs[0]):
        return None
    document = _one_line("\n".join(_prose(paragraphs[1:])))
    words = document.split()
    if len(words) < MIN_DOCUMENT_WORDS or summary.lower() in document.lower():
        return None
    return " ".join([f"{name}:", *words[:MAX_DOCUMENT_WORDS]]), summary


def split_of(module: str) -> str:
    """Return the split of a module. It is the same in every environment."""
    name = module.encode("utf-8", "surrogatepass")  # a file's name need not be UTF-8
    bucket = int(hashlib.sha256(name).hexdigest()[:8], 16) % 100
    return "train" if bucket < 90 else "validation" if bucket < 95 else "test"


def _prose(paragraphs: list[str]) -> Iterator[str]:
    for paragraph in paragraphs:
        for line in paragraph.splitlines():
            if not (NOT_PROSE.match(line) or SECTION.match(line)):
                yield line


def _is_markup(paragraph: str) -> bool:
    return any(NOT_PROSE.match(line) or SECTION.match(line) for line in paragraph.splitlines())


def _one_line(text: str) -> str:
    return " ".join(text.replace("``", "`").split())


def _installed() -> list[Path]:
    paths = sysconfig.get_paths()
    return [Path(paths["stdlib"]), Path(paths["purelib"])]


def _modules(roots: list[Path]) -> list[tuple[str, Path]]:
    """(dotted name, file) of every module below the roots, sorted by name, each name once."""
    found: dict[str, Path] = {}
    for root in roots:
        for path in sorted(root.rglob("*.py")):
            parts = path.relative_to(root).with_suffix("").parts
            if "site-packages" not in parts:
                found.setdefault(".".join(parts), path)
    return sorted(found.items())


def _pairs_of(path: Path) -> list[tuple[str, str, str]]:
    """Return (name, document, summary) of every docstring in a file that has both."""
    tree = _parsed(path)
    if tree is None:
        return []
    pairs = []
    module = path.parent.name if path.stem == "__init__" else path.stem
    for name, docstring in _docstrings(tree, module):
        pair = split_docstring(name, docstring)
        if pair:
            pairs.append((name, *pair))
    return pairs


def _parsed(path: Path) -> ast.Module | None:
    """Return the syntax tree of a file, or None if Python cannot read it.

    Packages hold templates, test files that are broken on purpose, dangling links and files of other users.
    """
    try:
        # A pipe or a device named x.py would be read forever.
        if not path.is_file() or path.stat().st_size > MAX_FILE_BYTES:
            return None
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # invalid escapes in other people's code
            return ast.parse(path.read_bytes())
    except (SyntaxError, ValueError, OSError, RecursionError, MemoryError):
        return None


def _docstrings(tree: ast.Module, module: str) -> Iterator[tuple[str, str]]:
    """Yield (name, docstring) of the module and of all definitions in it, in their order in the file.

    Only statements are visited, which is fast. There is no recursion: a chain of a thousand `elif` is that deep.
    """
    waiting: list[tuple[ast.AST, str]] = [(tree, module)]
    while waiting:
        node, name = waiting.pop()
        if isinstance(node, DEFINITIONS):
            docstring = ast.get_docstring(node, clean=False)
            if docstring and len(docstring) <= MAX_DOCSTRING_CHARACTERS:
                yield name, docstring
        children = [child for field in BLOCKS for child in getattr(node, field, ())]
        for child in reversed(children):
            waiting.append((child, getattr(child, "name", None) or name))
