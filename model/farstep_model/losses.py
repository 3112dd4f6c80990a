"""The named losses, in plain torch: what log-probabilities and values cost.

Each is a sum over tokens, or over pairs of sequences, so that accumulating over calls is exact. What inputs and
settings there are is said by `farstep_proto.loss_table`, the formulas are in `token_losses` and `pair_losses`; here
they get their weights and become one number with its metrics. No model, no optimizer.

Shapes: N tokens; K candidates a token (cross-entropy only); P pairs.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType

import torch
from torch import Tensor

from farstep_model import token_losses
from farstep_model.custom_loss import evaluate
from farstep_model.pair_losses import PAIR_LOSSES, PairFormula
from farstep_model.sequences import Sequences
from farstep_model.token_losses import PerToken, kl_to_reference
from farstep_proto.custom_loss import CustomLoss
from farstep_proto.errors import InvalidInput
from farstep_proto.loss_table import IGNORE_INDEX, LossSpec
from farstep_proto.validation import check_loss, check_num_data


@dataclass(frozen=True, slots=True, eq=False)
class LossResult:
    """What came of one loss.

    `loss_sum` is a scalar in fp32 with its graph. `metrics` are detached scalars named `what:reduction`, to be joined
    by `metrics.combine_metrics`. `num_active` counts tokens whose target is not ignored and whose weight is not 0.
    """

    loss_sum: Tensor
    metrics: dict[str, Tensor]
    num_active: int


TokenFormula = Callable[[Tensor, Mapping[str, Tensor], Mapping[str, float]], PerToken]

TOKEN_LOSSES: Mapping[str, TokenFormula] = MappingProxyType(
    {
        "cross_entropy": token_losses.cross_entropy,
        "importance_sampling": token_losses.importance_sampling,
        "ppo": token_losses.ppo,
        "cispo": token_losses.cispo,
        "dro": token_losses.dro,
        "dppo": token_losses.dppo,
        "gspo": token_losses.gspo,
        "stable_reinforce": token_losses.stable_reinforce,
        "value": token_losses.value,
    }
)

LOSSES: Mapping[str, TokenFormula | PairFormula] = MappingProxyType({**TOKEN_LOSSES, **PAIR_LOSSES})


def compute_loss(
    name: str,
    config: Mapping[str, float],
    *,
    logprobs: Tensor,
    inputs: Mapping[str, Tensor],
    sequences: Sequences | None = None,
    entropy_N: Tensor | None = None,
    num_active: int | None = None,
    custom: CustomLoss | None = None,
) -> LossResult:
    """The named loss of some tokens: of one datum, of a micro-batch, or of its active tokens alone.

    Args:
        config: settings; those left out have the defaults of the loss table.
        logprobs: [N] or [N, K] in fp32, of `target_tokens`; anything at all where the target is ignored. For a loss
            of values these stand here instead, [N] in fp32.
        inputs: the datum's loss inputs, each of the shape of `logprobs`.
        sequences: whose tokens they are, for a loss over sequences or pairs; None: all of one sequence. Sequences 0
            and 1 are the first pair, chosen and rejected, 2 and 3 the next.
        entropy_N: of the distributions [N]; becomes a metric.
        num_active: how many tokens count, where the caller knows: counting them makes the host wait for a GPU.
        custom: the loss itself, where it is "custom"; its inputs have its own names, and all tokens count.

    Raises:
        InvalidInput: an unknown loss or setting, a missing input, one of another shape, or half a pair.
    """
    if custom is not None:
        return _custom_loss(custom, logprobs, inputs, sequences)
    spec = check_loss(name, config)
    settings = {**spec.defaults, **config}
    sequences = sequences or Sequences.single(len(logprobs), device=logprobs.device)
    check_num_data(spec, sequences.count, field="data")
    given = _Given.of(spec, logprobs, inputs, sequences, num_active)
    if spec.grouping == "pair":
        total, metrics = _pair_loss(name, settings, given)
    else:
        total, metrics = _token_loss(name, settings, given)
    if entropy_N is not None and given.num_active:
        metrics["entropy:mean"] = entropy_N[given.counted].mean()
    loss_sum = total / settings["normalizer"]
    metrics = {"loss:sum": loss_sum.detach(), "tokens:sum": given.active.sum().to(loss_sum.dtype), **metrics}
    return LossResult(loss_sum, metrics, given.num_active)


@dataclass(frozen=True, slots=True, eq=False)
class _Given:
    """What a loss is computed from, with neutral values where nothing counts.

    What stands at an ignored place must not reach the sum, nor the gradient as 0 · inf.
    """

    p: Tensor
    weights: Tensor
    inputs: Mapping[str, Tensor]
    active: Tensor  # [N]
    num_active: int
    sequences: Sequences

    @classmethod
    def of(
        cls,
        spec: LossSpec,
        logprobs: Tensor,
        inputs: Mapping[str, Tensor],
        sequences: Sequences,
        num_active: int | None,
    ) -> _Given:
        taken = (*spec.required, *(key for key in spec.optional if key in inputs))
        for key in taken:
            if key not in inputs:
                raise InvalidInput(f"missing {key!r}", field=f"loss_fn_inputs.{key}")
            if inputs[key].shape != logprobs.shape:
                raise InvalidInput(
                    f"shape {list(inputs[key].shape)}, expected {list(logprobs.shape)}", field=f"loss_fn_inputs.{key}"
                )
        weights = inputs.get("weights", torch.ones_like(logprobs))
        active = weights != 0
        if "target_tokens" in inputs:
            active = active & (inputs["target_tokens"] != IGNORE_INDEX)
        neutral = {
            key: torch.where(active, inputs[key], 0.0) for key in taken if key not in ("target_tokens", "weights")
        }
        active_N = active if active.dim() == 1 else active.any(-1)
        p, weights = torch.where(active, logprobs, 0.0), torch.where(active, weights, 0.0)
        if num_active is None:
            num_active = int(active_N.sum())
        return cls(p, weights, neutral, active_N, num_active, sequences)

    @property
    def counted(self) -> Tensor | slice:
        """What picks out the tokens that count; all of them without asking the device."""
        return slice(None) if self.num_active == len(self.active) else self.active


def _token_loss(name: str, settings: Mapping[str, float], given: _Given) -> tuple[Tensor, dict[str, Tensor]]:
    p, inputs = given.p, dict(given.inputs)
    if name == "gspo":
        included_N = inputs.get("sequence_ratio_mask", torch.ones_like(p)) * given.active
        log_ratio_N = (p - inputs["logprobs"]).detach()
        inputs["sequence_log_ratio"] = given.sequences.means(log_ratio_N, included_N)
    per_token = TOKEN_LOSSES[name](p, inputs, settings)
    loss = per_token.loss
    if settings.get("kl_coef"):
        reference = inputs.get("ref_logprobs", inputs["logprobs"])
        loss = loss + settings["kl_coef"] * kl_to_reference(p, reference)
    metrics = _token_metrics(p, inputs, per_token.clipped, given.counted) if given.num_active else {}
    return (given.weights * loss).sum(), metrics


@torch.no_grad()
def _token_metrics(
    p: Tensor, inputs: Mapping[str, Tensor], clipped: Tensor | None, active_N: Tensor | slice
) -> dict[str, Tensor]:
    """Over active tokens. The estimates of KL(q ‖ p) are k1 and k3 of Schulman 2020, "Approximating KL divergence"."""
    metrics = {}
    if "logprobs" in inputs:
        log_ratio = (p - inputs["logprobs"])[active_N]
        ratio = log_ratio.exp()
        metrics = {
            "ratio:mean": ratio.mean(),
            "ratio:max": ratio.max(),
            "kl_k1:mean": -log_ratio.mean(),
            "kl_k3:mean": (log_ratio.expm1() - log_ratio).mean(),
        }
    if "sequence_log_ratio" in inputs:
        metrics["sequence_ratio:mean"] = inputs["sequence_log_ratio"][active_N].exp().mean()
    if "returns" in inputs:
        metrics |= _value_metrics(p[active_N], inputs["returns"][active_N])
    if "ref_logprobs" in inputs:
        metrics["kl_ref:mean"] = kl_to_reference(p, inputs["ref_logprobs"])[active_N].mean()
    if clipped is not None:
        metrics["clip_fraction:mean"] = clipped[active_N].to(p.dtype).mean()
    return metrics


def _value_metrics(v_N: Tensor, returns_N: Tensor) -> dict[str, Tensor]:
    """From the two variances comes `value:explained_variance`, when all parts are together."""
    error_N = returns_N - v_N
    return {
        "value:mean": v_N.mean(),
        "return:mean": returns_N.mean(),
        "return:var": returns_N.var(correction=0),
        "value_error:mean": error_N.mean(),
        "value_error:var": error_N.var(correction=0),
    }


def _custom_loss(
    custom: CustomLoss, logprobs: Tensor, inputs: Mapping[str, Tensor], sequences: Sequences | None
) -> LossResult:
    """The sum over data of what the graph comes to; its metrics are sums or means over data."""
    lengths = [len(logprobs)] if sequences is None else sequences.lengths()
    parts = {"logprobs": logprobs.split(lengths)} | {name: inputs[name].split(lengths) for name in custom.input_names}
    results = []
    for place in range(len(lengths)):
        own = {name: tensors[place] for name, tensors in parts.items()}
        own |= {name: own[name][0] for name, rank in custom.ranks.items() if rank == 0}
        results.append(evaluate(custom, own.pop("logprobs"), own))
    total = torch.stack([loss for loss, _ in results]).sum()
    metrics = {
        "loss:sum": total.detach(),
        "data:sum": total.new_full((), len(lengths)).detach(),
        "tokens:sum": total.new_full((), len(logprobs)).detach(),
    }
    for name in custom.metrics:
        values = torch.stack([metrics[name] for _, metrics in results])
        metrics[name] = values.mean() if name.endswith(":mean") else values.sum()
    return LossResult(total, metrics, len(logprobs))


def _pair_loss(name: str, settings: Mapping[str, float], given: _Given) -> tuple[Tensor, dict[str, Tensor]]:
    """Means are over pairs; a reward is beta·Σ w·(p − ref), as DPO defines it."""
    log_ratio_P2 = given.sequences.sums(given.weights * (given.p - given.inputs["ref_logprobs"])).reshape(-1, 2)
    delta_P = log_ratio_P2[:, 0] - log_ratio_P2[:, 1]
    loss_P = PAIR_LOSSES[name](delta_P, settings)
    reward_P2 = settings["beta"] * log_ratio_P2.detach()
    margin_P = reward_P2[:, 0] - reward_P2[:, 1]
    metrics = {
        "pairs:sum": loss_P.new_full((), len(loss_P)),
        "accuracy:mean": (margin_P > 0).to(margin_P.dtype).mean(),
        "margin:mean": margin_P.mean(),
        "chosen_reward:mean": reward_P2[:, 0].mean(),
        "rejected_reward:mean": reward_P2[:, 1].mean(),
    }
    return loss_P.sum(), metrics
