"""`Chat`: whoever answers a conversation: a policy on a sampler, or a function of one's own.

    chat = SamplerChat(sampling_client, max_tokens=200)
    reply = await chat([{"role": "user", "content": "12+30?"}])

Invariant: it answers one conversation with one text, and remembers nothing. Equal seeds ask for equal answers.
"""

from __future__ import annotations

import asyncio
import contextvars
import functools
import inspect
from collections.abc import Awaitable, Callable, Coroutine, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ParamSpec, Protocol, TypeVar, runtime_checkable

from farstep.rollout.loop_thread import LoopThread
from farstep.trainers.errors import TrainerError
from farstep.types import SamplingParams

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from farstep.sampling import SamplingClient

P = ParamSpec("P")
T = TypeVar("T")
Message = Mapping[str, Any]
_MAX_THREADS = 64


@dataclass(frozen=True, slots=True)
class Reply:
    """`stop_reason`: "stop", or "length" where it was cut off."""

    text: str
    stop_reason: str = "stop"


@runtime_checkable
class Chat(Protocol):
    async def __call__(self, messages: Sequence[Message], *, seed: int | None = None) -> Reply: ...


class SamplerChat:
    """What a `SamplingClient` samples, by the model's own chat template.

    Args:
        tokenizer: None: the model's own, fetched at the first question.
        template_kwargs: what else the template takes (`enable_thinking`).
        sampling: of `SamplingParams`; a question's seed wins over that here.
    """

    def __init__(
        self,
        client: SamplingClient,
        *,
        tokenizer: PreTrainedTokenizerBase | None = None,
        template_kwargs: Mapping[str, Any] | None = None,
        **sampling: Any,
    ) -> None:
        self._client = client
        self._tokenizer = tokenizer
        self._template_kwargs = dict(template_kwargs or {})
        self._params = SamplingParams(**({"max_tokens": 512} | sampling))

    async def __call__(self, messages: Sequence[Message], *, seed: int | None = None) -> Reply:
        """
        Raises:
            TrainerError: the model has no chat template, or its template refuses these messages.
            FarstepError: whatever sampling raises.
        """
        if self._tokenizer is None:
            self._tokenizer = await asyncio.to_thread(self._client.get_tokenizer)
        tokenizer: Any = self._tokenizer
        prompt = _rendered(tokenizer, messages, self._template_kwargs)
        params = self._params if seed is None else replace(self._params, seed=seed)
        result = await (await self._client.sample_async(prompt, 1, params))
        sequence = result.sequences[0]
        text = tokenizer.decode(sequence.tokens, skip_special_tokens=True)
        return Reply(text, sequence.stop_reason)


class FunctionChat:
    """A function of messages that gives a text or a `Reply`; sync (called on a thread) or async, with or without
    a parameter `seed`."""

    def __init__(self, function: Callable[..., Any]) -> None:
        self._function = function
        try:
            self._takes_seed = "seed" in inspect.signature(function).parameters
        except (TypeError, ValueError):  # a builtin
            self._takes_seed = False

    async def __call__(self, messages: Sequence[Message], *, seed: int | None = None) -> Reply:
        options = {"seed": seed} if self._takes_seed else {}
        given = await called(self._function, messages, **options)
        if isinstance(given, Reply):
            return given
        if not isinstance(given, str):
            raise TrainerError(f"gave a {type(given).__name__}, not a text", field="chat", stage="chat")
        return Reply(given)


def as_chat(given: object, **sampling: Any) -> Chat:
    """A chat of a `SamplingClient`, a chat, or a function of messages.

    Args:
        sampling: of `SamplingParams`, where it is a client.

    Raises:
        TrainerError: it is none of them.
    """
    from farstep.sampling import SamplingClient

    match given:
        case SamplingClient():
            return SamplerChat(given, **sampling)
        case SamplerChat() | FunctionChat():
            return given
        case _ if callable(given):
            return FunctionChat(given)
    raise TrainerError(
        f"a {type(given).__name__} cannot be asked",
        field="chat",
        hint="a SamplingClient, or a function of messages that gives a text",
        stage="validate",
    )


async def called(function: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Any:
    """What a function gives, of whichever colour it is: a plain one waits on a thread and holds nobody up."""
    if inspect.iscoroutinefunction(function) or inspect.iscoroutinefunction(getattr(function, "__call__", None)):  # noqa: B004
        return await function(*args, **kwargs)
    in_context = functools.partial(contextvars.copy_context().run, function, *args, **kwargs)
    given = await asyncio.get_running_loop().run_in_executor(threads(), in_context)
    return await given if isinstance(given, Awaitable) else given


async def together(coroutines: Iterable[Coroutine[Any, Any, T]]) -> list[T]:
    """The results, in their order. Where one fails the others are cancelled, and have ended, before that is raised."""
    tasks = [asyncio.ensure_future(each) for each in coroutines]
    try:
        return await asyncio.gather(*tasks)
    except BaseException:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        raise


def waited_for(function: Callable[P, Coroutine[Any, Any, T]]) -> Callable[P, T]:
    """The front that waits: of a function `name_async` it makes `name`."""

    @functools.wraps(function)
    def call(*args: P.args, **kwargs: P.kwargs) -> T:
        thread = LoopThread()
        try:
            return thread.run(function(*args, **kwargs))
        finally:
            thread.stop()

    call.__name__ = call.__qualname__ = function.__name__.removesuffix("_async")
    return call


@functools.cache
def threads() -> ThreadPoolExecutor:
    """More than asyncio's own, whose number goes by the cores: these wait for others."""
    return ThreadPoolExecutor(_MAX_THREADS, thread_name_prefix="farstep-chat")


def _rendered(tokenizer: Any, messages: Sequence[Message], template_kwargs: Mapping[str, Any]) -> list[int]:
    if not getattr(tokenizer, "chat_template", None):
        raise TrainerError("the model has no chat template", field="chat", stage="chat",
                           hint="give a tokenizer that has one")  # fmt: skip
    conversation = [dict(message) for message in messages]
    try:
        text = tokenizer.apply_chat_template(
            conversation, add_generation_prompt=True, tokenize=False, **template_kwargs
        )
    except Exception as error:  # a template raises what it likes
        raise TrainerError(
            f"the chat template refuses the messages: {error}", field="messages", stage="chat"
        ) from error
    tokens: list[int] = tokenizer.encode(text, add_special_tokens=False)
    return tokens
