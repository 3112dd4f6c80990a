"""The reward: a function of what its parameters are named after (prompt, completion, answer, messages, …)."""


def right(completion, answer):
    """1 where the answer ends in the right number."""
    return float(completion.strip().endswith(answer))
