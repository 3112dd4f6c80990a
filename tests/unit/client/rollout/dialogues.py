"""Turns as a policy would have given them, written by hand."""

import itertools
from typing import Any

from farstep.rollout.turns import Turn

_requests = itertools.count()


def turn(tokenizer: Any, messages: list[dict[str, Any]], said: str, **about: Any) -> Turn:
    """The turn in which `said` is the answer to messages, each of its tokens as likely as the one before was not."""
    text = tokenizer.apply_chat_template(messages, tools=about.get("tools"), tokenize=False, add_generation_prompt=True)
    tokens = tokenizer.encode(said + "<|im_end|>", add_special_tokens=False)
    given = {
        "prompt": tokenizer.encode(text, add_special_tokens=False),
        "tokens": tokens,
        "logprobs": [-0.5 - 0.25 * index for index in range(len(tokens))],
        "versions": [7] * len(tokens),
        "messages": messages,
        "reply": {"role": "assistant", "content": said},
        "request_id": f"r{next(_requests)}",
    }
    return Turn(**{**given, **about})


def user(text: str) -> dict[str, Any]:
    return {"role": "user", "content": text}


def assistant(text: str) -> dict[str, Any]:
    return {"role": "assistant", "content": text}
