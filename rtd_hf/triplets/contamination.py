"""Texts of benchmarks, found again in training data."""

import os
import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from ..parsing import PACKING_ERRORS, open_text, parse_json
from ..texts import text_id


_SUFFIXES = (".json", ".jsonl", ".txt", ".csv", ".tsv")
_GRAM = 8  # words in a row that no two people write by chance
_SHORTEST = 4  # words; "is red" stands in every data set


class BenchmarkTexts:
    """
    The texts of benchmarks, out of their annotation files.

    Args:
        paths (`Sequence[str | os.PathLike]`):
            Files (`.json`, `.jsonl`, `.txt`, `.csv`, `.tsv`, each also with `.gz`), or folders with such files. Every
            text of four words or more counts, whatever its key.

    Attributes:
        sources (`dict[str, int]`): For each file how many texts it holds.

    Raises:
        FileNotFoundError: a path does not exist, or a folder holds no such file.
        ValueError: a file is damaged, or holds no text of that length.
    """

    def __init__(self, paths: Sequence[str | os.PathLike]):
        self.sources: dict[str, int] = {}
        self._wholes: dict[int, int] = {}
        self._grams: dict[int, int] = {}
        for path in self._files(paths):
            number = len(self.sources)
            found = 0
            for text in _texts_in(path):
                words = _words(text)
                if len(words) < _SHORTEST:
                    continue
                found += 1
                self._wholes.setdefault(text_id(" ".join(words)), number)
                for gram in _grams(words):
                    self._grams.setdefault(gram, number)
            if found:
                self.sources[str(path)] = found
        if not self.sources:
            raise ValueError(
                f"`benchmark_texts` {', '.join(map(str, paths))} holds no text of {_SHORTEST} words or more. Give the "
                f"benchmarks' annotation files."
            )
        self._names = list(self.sources)

    def find(self, text: str) -> str | None:
        """
        The file that holds a text: the same words, or eight of them in a row.

        Args:
            text (`str`): A caption or a conditioning text.

        Returns:
            `str`, *optional*: the path of the first such file.
        """
        words = _words(text)
        number = self._wholes.get(text_id(" ".join(words))) if len(words) >= _SHORTEST else None
        if number is None:
            number = next((self._grams[gram] for gram in _grams(words) if gram in self._grams), None)
        return None if number is None else self._names[number]

    @staticmethod
    def _files(paths: Sequence[str | os.PathLike]) -> Iterator[Path]:
        for path in map(Path, paths):
            if not path.exists():
                raise FileNotFoundError(f"`benchmark_texts` {path} does not exist. Give an annotation file or folder.")
            inside = sorted(path.rglob("*")) if path.is_dir() else [path]
            files = [one for one in inside if one.name.removesuffix(".gz").endswith(_SUFFIXES)]
            if not files:
                raise FileNotFoundError(f"`benchmark_texts` {path} holds no {', '.join(_SUFFIXES)} file.")
            yield from files


def _words(text: str) -> list[str]:
    return re.findall(r"\w+", text.lower())


def _grams(words: list[str]) -> Iterable[int]:
    return (text_id(" ".join(words[start : start + _GRAM])) for start in range(len(words) - _GRAM + 1))


def _texts_in(path: Path) -> Iterator[str]:
    name = path.name.removesuffix(".gz")
    with open_text(path) as file:
        try:
            if name.endswith(".json"):
                yield from _strings(parse_json(file.read()))
            elif name.endswith(".jsonl"):
                for line in file:
                    if line.strip():
                        yield from _strings(parse_json(line))
            else:
                for line in file:
                    yield from re.split(r"[\t]|,(?=\S)" if not name.endswith(".txt") else r"\n", line)
        except (ValueError, OSError, *PACKING_ERRORS) as error:
            raise ValueError(f"`benchmark_texts` {path} is damaged ({error}).") from error


def _strings(content: Any) -> Iterator[str]:
    """Every text in nested lists and objects, but keys."""
    left = [content]
    while left:
        one = left.pop()
        if isinstance(one, str):
            yield one
        elif isinstance(one, dict):
            left.extend(one.values())
        elif isinstance(one, list):
            left.extend(one)
