"""What the embedded model was trained on: two-digit additions, skills on single words, prose from the standard library.

Everything is computed or read from the running interpreter's own source files; nothing is downloaded and nothing here
needs torch. Invariant: what `heldout_*` returns was never trained on, so it is there for fine-tuning and for tests.
"""

import ast
import functools
import inspect
import random
import re
import sys
import sysconfig
import warnings
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

__all__ = [
    "HELD_OUT_MODULES",
    "SKILLS",
    "WORDS",
    "Addition",
    "heldout_additions",
    "heldout_prose",
    "pretraining_additions",
    "pretraining_prose",
    "reward",
    "word_task",
]

Part = Literal["tune", "test"]

HELD_OUT_MODULES = ("_pydecimal", "fractions", "logging", "statistics", "turtle")
"""Top-level modules whose prose is kept from pretraining."""

SKILLS = ("reverse", "upper", "spell", "sort", "repeat")

_WORD_LIST = (
    "acorn almond anchor bamboo banjo barrel beacon bishop bottle breeze bronze button cactus camel canvas carbon cedar"
    " cherry cobalt comet coral cotton desert donkey eagle ember falcon feather ferry fiddle galaxy ginger glacier"
    " hazel helmet hollow indigo ivory jacket kettle lantern lizard magnet maple marble monkey nutmeg oyster parrot"
    " pebble pepper pigeon pillow quartz radish raven ribbon saffron salmon shadow spider sugar temple thunder tulip"
    " turtle velvet walrus willow yogurt zebra"
)
WORDS = tuple(_WORD_LIST.split())

_HELD_OUT_ONE_IN = 8
_TEST_ONE_IN = 4
_PARAGRAPH_CHARS = range(60, 601)
_MIN_LETTER_SHARE = 0.85
_SKIPPED_FOLDERS = {"ensurepip", "idlelib", "lib2to3", "site-packages", "test", "tests"}


def _one_in(text: str, n: int) -> bool:
    """Pick one text in `n`, always the same ones."""
    return zlib.crc32(text.encode()) % n == 0


@dataclass(frozen=True)
class Addition:
    """The sum of two numbers of two digits, with the ways of answering it that the model learns."""

    a: int
    b: int

    @property
    def question(self) -> str:
        return f"{self.a}+{self.b}?"

    @property
    def sum(self) -> int:
        return self.a + self.b

    @property
    def worked(self) -> str:
        """The right answer, digit by digit from the right: `7+8+0=15 4+3+1=8 so 85` (digit + digit + carry)."""
        units = self.a % 10 + self.b % 10
        carry = units // 10
        tens = self.a // 10 + self.b // 10 + carry
        return f"{self.a % 10}+{self.b % 10}+0={units} {self.a // 10}+{self.b // 10}+{carry}={tens} so {self.sum}"

    @property
    def hasty(self) -> str:
        """The usual mistake: forget the carry where there is one, invent one where there is none."""
        has_carry = self.a % 10 + self.b % 10 >= 10
        return str(self.sum - 10 if has_carry else self.sum + 10)

    def guess(self, rng: random.Random) -> str:
        """Answer without working it out: mostly the usual mistake, sometimes one more, seldom right."""
        chance = rng.random()
        if chance < 0.05:
            return str(self.sum)
        if chance < 0.80:
            return self.hasty
        return str(int(self.hasty) + rng.choice((-2, -1, 1, 2)))


def reward(question: str, answer: str) -> float:
    """Return 1.0 if the last number in `answer` is the sum that `question` (`"47+38?"`) asks for, else 0.0."""
    a, b = question.rstrip("?").split("+")
    numbers = re.findall(r"\d+", answer)
    return float(bool(numbers) and int(numbers[-1]) == int(a) + int(b))


def _additions(*, held_out: bool) -> list[Addition]:
    pairs = [Addition(a, b) for a in range(10, 100) for b in range(10, 100)]
    return [pair for pair in pairs if _one_in(pair.question, _HELD_OUT_ONE_IN) == held_out]


def pretraining_additions() -> list[Addition]:
    """Return the additions the model saw, seven in eight of all."""
    return _additions(held_out=False)


def heldout_additions() -> list[Addition]:
    """Return the additions the model did not see, one in eight of all."""
    return _additions(held_out=True)


def word_task(skill: str, word: str) -> tuple[str, str]:
    """Return the question and the answer of one of the `SKILLS` on `word`."""
    match skill:
        case "reverse":
            answer = word[::-1]
        case "upper":
            answer = word.upper()
        case "spell":
            answer = " ".join(word)
        case "sort":
            answer = "".join(sorted(word))
        case "repeat":
            answer = f"{word} {word}"
        case _:
            raise ValueError(f"unknown skill {skill!r}; known: {', '.join(SKILLS)}")
    return f"{skill} {word}", answer


def pretraining_prose() -> list[str]:
    """Return the paragraphs the model saw: those of every module but the `HELD_OUT_MODULES`."""
    unseen = {paragraph for name, paragraph in _stdlib_prose() if name in HELD_OUT_MODULES}
    return [
        paragraph for name, paragraph in _stdlib_prose() if name not in HELD_OUT_MODULES and paragraph not in unseen
    ]


def heldout_prose(part: Part) -> list[str]:
    """Return paragraphs of the `HELD_OUT_MODULES`: three in four to `"tune"` on, one in four to `"test"` with."""
    unseen = [paragraph for name, paragraph in _stdlib_prose() if name in HELD_OUT_MODULES]
    return [paragraph for paragraph in unseen if _one_in(paragraph, _TEST_ONE_IN) == (part == "test")]


@functools.cache
def _stdlib_prose() -> tuple[tuple[str, str], ...]:
    """Return (top-level module, paragraph) pairs, each paragraph once, in the order of the files' paths."""
    owners: dict[str, str] = {}
    root = Path(sysconfig.get_path("stdlib"))
    for path in sorted(root.rglob("*.py")):
        parts = path.relative_to(root).parts
        name = parts[0].removesuffix(".py")
        if name in sys.stdlib_module_names and not _SKIPPED_FOLDERS & set(parts):
            for paragraph in _paragraphs(path.read_text(encoding="utf-8", errors="replace")):
                owners.setdefault(paragraph, name)
    return tuple((name, paragraph) for paragraph, name in owners.items())


def _paragraphs(source: str) -> Iterator[str]:
    """Yield the paragraphs that read as prose in the string literals and the comments of a source file."""
    for text in (*_string_literals(source), _comments(source)):
        for block in re.split(r"\n\s*\n", inspect.cleandoc(text)):
            paragraph = " ".join(block.split())
            if len(paragraph) in _PARAGRAPH_CHARS and _is_prose(paragraph):
                yield paragraph


def _is_prose(paragraph: str) -> bool:
    num_letters = sum(char.isalpha() or char == " " for char in paragraph)
    return num_letters >= _MIN_LETTER_SHARE * len(paragraph) and ">>>" not in paragraph


def _string_literals(source: str) -> list[str]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # old escapes in other people's source are not our business
        nodes = ast.walk(ast.parse(source))
        return [node.value for node in nodes if isinstance(node, ast.Constant) and isinstance(node.value, str)]


def _comments(source: str) -> str:
    """Return the whole-line comments of `source`, with an empty line wherever code stands between two of them."""
    lines = (re.match(r"\s*#+ ?(.*)", line) for line in source.splitlines())
    return "\n".join(line.group(1) if line else "" for line in lines)
