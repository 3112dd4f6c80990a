"""A model and an improver whose answers are known: what stands at the edge in place of a server."""

import re


def model(messages):
    """Does what its system prompt says and repeats the question: UPPER makes it upper case, STRIP takes dots away."""
    system = messages[0]["content"] if messages[0]["role"] == "system" else ""
    text = messages[-1]["content"]
    if "STRIP" in system:
        text = text.replace(".", "")
    return text.upper() if "UPPER" in system else text


class Improver:
    """Criticizes, and adds the first of its words that a prompt does not have yet; keeps what it was asked."""

    def __init__(self, *words, breaks_first=0):
        self.words = words
        self.breaks_first = breaks_first
        self.critic_asked = []
        self.writer_asked = []
        self.seeds = []

    def __call__(self, messages, seed=None):
        self.seeds.append(seed)
        if "<prompt>" not in messages[0]["content"]:
            self.critic_asked.append(messages[1]["content"])
            return "It should say how letters are to be written."
        self.writer_asked.append(messages)
        if len(self.writer_asked) <= self.breaks_first:
            return "<prompt>Shout.</prompt>"
        present = re.search(r"<prompt>\n(.*?)\n</prompt>", messages[1]["content"], re.DOTALL)[1]
        word = next((word for word in self.words if word not in present), "")
        return f"Here it is:\n<prompt>\n{present} {word}\n</prompt>"


ROWS = [{"input": f"{word}.", "style": "kind", "answer": word.upper()} for word in ("ab", "cd", "ef", "gh", "ij", "kl")]


def exact(completion, answer):
    """Full marks where all is right, a half for the letters."""
    return 1.0 if completion == answer else 0.5 if completion.strip(".") == answer else 0.0
