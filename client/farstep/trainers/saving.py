"""A checkpoint of a trainer: every engine that is due saves, and it is said where."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from farstep.trainers.checkpoints import CheckpointEngine, Moment
from farstep.trainers.completions import Completion, sampling_params

if TYPE_CHECKING:
    from farstep.trainers.loop import Loop


def save(trainer: Loop, engines: Sequence[CheckpointEngine]) -> None:
    """Saves with each, and emits `checkpoint` for each."""
    moment = Moment(
        step=trainer.global_step,
        state=trainer.trainer_state(),
        client=trainer.client,
        service=trainer.service,
        folder=trainer.folder.path,
        score=trainer.score,
        engines=trainer.engines.all,
    )
    for engine in engines:
        saved = engine.save(moment)
        trainer.folder.write(run_id=trainer.client.run_id, path=moment.path, state=_text(moment.state))
        trainer.emit(
            "checkpoint",
            infer=Infer(trainer),
            step=saved.step,
            kind=engine.name,
            path=saved.place,
            state_path=moment.path,
        )


def _text(state: Any) -> str:
    import json

    return json.dumps(state)


class Infer:
    """`infer("hello")` or `infer([{"role": "user", "content": "hello"}], max_tokens=20)`, from a checkpoint's weights.

    They are published when it is first called. It waits for the answer.
    """

    def __init__(self, trainer: Loop) -> None:
        self._trainer = trainer
        self._step = trainer.global_step

    def __call__(self, messages: str | Sequence[Any], **sampling: Any) -> Completion:
        """Raises RuntimeError once training has gone on."""
        trainer = self._trainer
        if trainer.global_step != self._step:
            raise RuntimeError(f"infer of step {self._step} is over: the weights have moved on")
        tokenizer = trainer.get_tokenizer()
        if isinstance(messages, str):
            messages = [{"role": "user", "content": messages}]
        text: Any = tokenizer.apply_chat_template(list(messages), add_generation_prompt=True, tokenize=False)
        prompt = tokenizer.encode(text, add_special_tokens=False)
        result = trainer.sampling_client().sample(prompt, 1, sampling_params(trainer, **sampling)).result()
        sequence = result.sequences[0]
        return Completion(
            prompt=text,
            completion=tokenizer.decode(sequence.tokens, skip_special_tokens=True),
            answer="",
            tokens=sequence.tokens,
            logprobs=sequence.logprobs,
            stop_reason=sequence.stop_reason,
            policy_version=result.policy_version,
        )
