"""How much counted repetitions stand for, written out: what an automaton has to hold.

Estimates, made without understanding what is repeated, before a library works on it for minutes: an automaton has
about a state for each character, and repetitions multiply where they nest, in grammars by way of their rules as well.
"""

from __future__ import annotations

import re

MAX_REPEATED = 20_000

_REPETITION = re.compile(r"\{(\d+)(?:,(\d*))?\}|~\s*(\d+)(?:\s*\.\.\s*(\d+))?")
_DEFINITION = re.compile(r"^[ \t]*[?!]?([A-Za-z_][\w-]*)[^:\n\"/]*:", re.MULTILINE)
_LARK_TOKEN = re.compile(
    # One that does not end goes to the end of its line, so that no character is looked at twice.
    rf'//[^\n]*|"(?P<string>(?:\\.|[^"\\\n])*+)"?|/(?P<regex>(?:\\.|[^/\\\n])++)/?|(?P<repetition>{_REPETITION.pattern})'
    r"|(?P<name>[A-Za-z_][\w-]*)|(?P<open>[(\[])|(?P<close>[)\]])"
)


def num_characters(expression: str) -> int:
    """About how many characters a regular expression stands for; a group counts the sum of what is in it."""
    sizes = [0]  # of the open groups
    last = place = 0  # the size of what a repetition would repeat
    while place < len(expression):
        character = expression[place]
        if character == "{" and (repetition := _REPETITION.match(expression, place)) is not None:
            times = _times(repetition)
            sizes[-1] += last * (times - 1)
            last *= times
            place = repetition.end()
            continue
        if character == "(":
            sizes.append(0)
        elif character == ")" and len(sizes) > 1:
            last = sizes.pop()
            sizes[-1] += last
        elif character not in "|*+?":
            place = _end_of_atom(expression, place) - 1
            last = 1
            sizes[-1] += 1
        place += 1
    return sum(sizes)


def _end_of_atom(expression: str, place: int) -> int:
    """Behind the character, escape or class that begins at `place`."""
    if expression[place] == "\\":
        return place + 2
    if expression[place] != "[":
        return place + 1
    place += 2 if expression[place + 1 : place + 2] == "^" else 1
    if expression[place : place + 1] == "]":  # it comes first and stands for itself
        place += 1
    while place < len(expression) and expression[place] != "]":
        place += 2 if expression[place] == "\\" else 1
    return place + 1


class LarkRepetitions:
    """The rules of a grammar in Lark's notation, and the most that one thing in each may be repeated."""

    def __init__(self, lark: str) -> None:
        starts = [(match.group(1), match.end()) for match in _DEFINITION.finditer(lark)]
        ends = [*(match.start() for match in _DEFINITION.finditer(lark)), len(lark)][1:]
        self._bodies = {name: lark[start:end] for (name, start), end in zip(starts, ends, strict=True)}
        self._known: dict[str, int] = {}

    def most(self) -> int:
        """Raises RecursionError where rules refer to each other too deep."""
        return max((self._of_rule(name) for name in self._bodies), default=1)

    def _of_rule(self, name: str) -> int:
        """A rule that comes back to itself counts once; so does a word that is no rule."""
        if name not in self._known:
            self._known[name] = 1
            self._known[name] = self._of_body(self._bodies.get(name, ""))
        return self._known[name]

    def _of_body(self, body: str) -> int:
        groups = [1]  # the most in each open group
        last = 1
        for token in _LARK_TOKEN.finditer(body):
            match token.lastgroup:
                case "open":
                    groups.append(1)
                    continue
                case "close":
                    last = groups.pop() if len(groups) > 1 else groups[0]
                case "string" | "regex":
                    last = max(1, num_characters(token[token.lastgroup]))
                case "name":
                    last = self._of_rule(token["name"])
                case "repetition":
                    last *= _times(token)
                case _:  # a comment
                    continue
            groups[-1] = max(groups[-1], last)
        return max(groups)


def _times(repetition: re.Match[str]) -> int:
    """The larger bound; at least 1, and at most a number that is too large in any case."""
    bounds = re.findall(r"\d+", repetition[0])
    return max(1, *(int("0" + bound.lstrip("0")[:9]) for bound in bounds))
