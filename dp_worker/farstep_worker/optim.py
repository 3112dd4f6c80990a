"""Adam for one run: torch's AdamW with settings by the call, clipping by global norm, state to and from bytes.

A parameter that has no gradient in a step is left alone, as torch does it: its weight does not decay, its moments stay,
and its own count of steps, from which Adam corrects their bias, stands still.

Invariant: `state_bytes` and `load_state_bytes` carry the moments and their step bit for bit.
"""

from __future__ import annotations

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor, nn

from farstep_proto.errors import InvalidInput, ModelError
from farstep_worker.submission import AdamSettings

_STEP = "step"
_MOMENTS = ("exp_avg", "exp_avg_sq")


class Optimizer:
    """Moments of `parameters`, which are named for the file; updates them in place."""

    def __init__(self, names: list[str], parameters: list[nn.Parameter]) -> None:
        self._names = names
        self._parameters = parameters
        self._adam = torch.optim.AdamW(parameters, fused=True)

    def step(self, gradients: list[Tensor | None], settings: AdamSettings) -> float:
        """One step; returns the global norm of the gradients before clipping. None: not in this step.

        Raises:
            ModelError: the norm is not finite; nothing was changed.
        """
        norm = torch.nn.utils.get_total_norm([gradient for gradient in gradients if gradient is not None])
        grad_norm = norm.item()
        if not torch.isfinite(norm):
            raise ModelError(f"the gradient's norm is {grad_norm}", error_class="NonFiniteError")
        for parameter, gradient in zip(self._parameters, gradients, strict=True):
            parameter.grad = gradient
        try:
            if settings.grad_clip_norm > 0:
                torch.nn.utils.clip_grads_with_norm_(self._parameters, settings.grad_clip_norm, norm)
            self._apply(settings)
            self._adam.step()
        finally:
            self._adam.zero_grad(set_to_none=True)
        return grad_norm

    def moments(self) -> list[Tensor]:
        """The moments themselves, two a parameter; none before the first step."""
        states = [self._adam.state.get(parameter) for parameter in self._parameters]
        return [state[moment] for state in states if state for moment in _MOMENTS]

    def moment_steps(self) -> list[float | None]:
        """How often each parameter was updated, aligned with them; None: never."""
        states = [self._adam.state.get(parameter) for parameter in self._parameters]
        return [state[_STEP].item() if state else None for state in states]

    def begin_moments(self, steps: list[float | None]) -> None:
        """Makes room for moments that were taken so many times; they are zeros."""
        self._adam.state.clear()
        for parameter, step in zip(self._parameters, steps, strict=True):
            if step is not None:
                self._adam.state[parameter] = {
                    _STEP: torch.tensor(step, dtype=torch.float32, device=parameter.device),
                    **{moment: torch.zeros_like(parameter.detach()) for moment in _MOMENTS},
                }

    def state_bytes(self) -> bytes:
        """The state as a safetensors file: two moments a parameter that was ever updated, and the step they belong to.

        One step is for all; a parameter that has sat out some has its own beside its moments.
        """
        states = {
            name: state
            for name, parameter in zip(self._names, self._parameters, strict=True)
            if (state := self._adam.state.get(parameter))
        }
        tensors: dict[str, Tensor] = {}
        if states:
            tensors[_STEP] = torch.stack([state[_STEP].cpu() for state in states.values()]).max()
        for name, state in states.items():
            tensors |= {f"{name}.{moment}": state[moment].cpu().contiguous() for moment in _MOMENTS}
            if state[_STEP].cpu() != tensors[_STEP]:
                tensors[f"{name}.{_STEP}"] = state[_STEP].cpu()
        data: bytes = save(tensors, metadata={"format": "pt"})
        return data

    def load_state_bytes(self, data: bytes) -> None:
        """Takes over what `state_bytes` gave.

        Raises:
            InvalidInput: it is no such file, or of other parameters.
        """
        try:
            tensors = load(data)
        except SafetensorError as error:
            raise InvalidInput(f"not a safetensors file: {error}", field="path") from error
        updated = [name for name in self._names if any(f"{name}.{moment}" in tensors for moment in _MOMENTS)]
        needed = {f"{name}.{moment}" for name in updated for moment in _MOMENTS} | ({_STEP} if tensors else set())
        if not needed <= tensors.keys() <= needed | {f"{name}.{_STEP}" for name in updated}:
            raise InvalidInput("the optimizer state is of other parameters", field="path")
        self._adam.state.clear()
        for name, parameter in zip(self._names, self._parameters, strict=True):
            if name not in updated:  # no step had been taken
                continue
            moments = {moment: tensors[f"{name}.{moment}"] for moment in _MOMENTS}
            if any(moment.shape != parameter.shape for moment in moments.values()):
                raise InvalidInput(
                    f"the optimizer state is of other parameters: that of {name} has another shape", field="path"
                )
            self._adam.state[parameter] = {
                _STEP: tensors.get(f"{name}.{_STEP}", tensors[_STEP]).to(parameter.device, copy=True),
                **{key: moment.to(parameter.device) for key, moment in moments.items()},
            }

    def _apply(self, settings: AdamSettings) -> None:
        for group in self._adam.param_groups:
            group["lr"] = settings.learning_rate
            group["betas"] = (settings.beta1, settings.beta2)
            group["eps"] = settings.eps
            group["weight_decay"] = settings.weight_decay
