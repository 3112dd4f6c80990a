"""Who answers: what a sampler's chat makes of messages, and of models that cannot chat."""

import asyncio
from types import SimpleNamespace

import pytest

from farstep.trainers import TrainerError
from farstep.trainers.chat import Reply, SamplerChat, together
from farstep.types import SamplingParams


class Tokenizer:
    """Tokens are letters; `chat_template` may be missing, or refuse."""

    chat_template = "here"

    def apply_chat_template(self, messages, *, add_generation_prompt, tokenize, **more):
        assert add_generation_prompt
        assert not tokenize
        if any(message["role"] == "alien" for message in messages):
            raise ValueError("roles must alternate")
        return "".join(f"<{message['role']}>{message['content']}" for message in messages) + str(more or "")

    def encode(self, text, *, add_special_tokens):
        assert not add_special_tokens
        return [ord(letter) for letter in text]

    def decode(self, tokens, *, skip_special_tokens):
        return "".join(map(chr, tokens))


class Client:
    """Answers with its prompt backwards; keeps what it was asked."""

    def __init__(self):
        self.params = []

    def get_tokenizer(self):
        return Tokenizer()

    async def sample_async(self, prompt, num_samples, params):
        self.params.append(params)

        async def result():
            return SimpleNamespace(sequences=[SimpleNamespace(tokens=prompt[::-1], stop_reason="length")])

        return result()


def test_messages_go_through_the_template_and_a_questions_seed_wins():
    client = Client()
    chat = SamplerChat(client, temperature=0.5, seed=1, template_kwargs={"thinking": False})
    asked = [{"role": "user", "content": "ab"}]
    assert asyncio.run(chat(asked)) == Reply("}eslaF :'gnikniht'{ba>resu<", "length")
    asyncio.run(chat(asked, seed=9))
    assert client.params == [SamplingParams(max_tokens=512, temperature=0.5, seed=seed) for seed in (1, 9)]


def test_what_cannot_be_asked_says_why():
    chat = SamplerChat(Client(), tokenizer=Tokenizer())
    with pytest.raises(TrainerError, match="messages: the chat template refuses the messages: roles must alternate"):
        asyncio.run(chat([{"role": "alien", "content": "x"}]))
    bare = Tokenizer()
    bare.chat_template = None
    with pytest.raises(TrainerError, match="the model has no chat template"):
        asyncio.run(SamplerChat(Client(), tokenizer=bare)([{"role": "user", "content": "x"}]))


def test_where_one_fails_the_others_have_ended_before_it_is_said():
    ended = []

    async def waits():
        try:
            await asyncio.Event().wait()
        finally:
            ended.append("waits")

    async def fails():
        await asyncio.sleep(0)
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        asyncio.run(together([waits(), fails(), waits()]))
    assert ended == ["waits", "waits"]
