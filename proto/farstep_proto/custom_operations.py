"""Which operations a custom loss may use, and how large what they make can be.

What is listed computes from its arguments alone: nothing random, nothing in place, nothing that has side effects or
leads from a tensor to Python. `farstep_model.custom_loss` has a function for each.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

# "same": no larger than its largest tensor. "broadcast": as all its tensors together. The others are looked at one by
# one before they are computed.
Size = Literal["same", "broadcast", "product", "index", "together", "stated"]


def _all(size: Size, names: str, *, prefix: str = "") -> dict[str, Size]:
    return {prefix + name: size for name in names.split()}


# By the name that a node has them under: of a tensor operation the last part, whether function or method.
OPERATIONS: Mapping[str, Size] = {
    **_all(
        "broadcast",
        """
        add sub subtract rsub mul multiply div divide true_divide floor_divide remainder fmod pow maximum minimum fmax
        fmin where clamp clip clamp_min clamp_max lerp atan2 hypot logaddexp logaddexp2 xlogy special_xlogy logical_and
        logical_or logical_xor bitwise_and bitwise_or bitwise_xor eq ne lt le gt ge masked_fill masked_select expand_as
        mse_loss l1_loss smooth_l1_loss huber_loss kl_div binary_cross_entropy_with_logits max min
        """,
    ),
    **_all(
        "same",
        """
        abs absolute exp exp2 expm1 log log2 log10 log1p sqrt rsqrt square reciprocal neg negative positive sign sgn
        sigmoid logsigmoid log_sigmoid logit softplus relu relu6 elu gelu silu leaky_relu tanh sin cos tan atan sinh
        cosh erf erfc floor ceil round trunc frac isnan isinf isfinite logical_not bitwise_not nan_to_num
        clone detach contiguous float double long int bool to type_as zeros_like ones_like full_like
        sum nansum mean nanmean prod std var median amax amin argmax argmin all any logsumexp norm linalg_norm
        count_nonzero cumsum cumprod logcumsumexp cummax cummin softmax log_softmax sort argsort topk flip roll
        tril triu view reshape flatten unsqueeze squeeze transpose swapaxes permute t select narrow
        numel size dim ndimension
        """,
    ),
    **_all("product", "dot inner mv mm matmul outer"),
    **_all("index", "gather index_select take"),
    **_all("together", "stack cat concat"),
    **_all("stated", "expand arange zeros ones full"),
    **_all(
        "broadcast",
        "add sub mul truediv floordiv mod pow eq ne lt le gt ge and_ or_ xor iadd isub imul itruediv",
        prefix="operator.",
    ),
    **_all("same", "neg pos abs invert inv not_", prefix="operator."),
    **_all("product", "matmul", prefix="operator."),
    **_all("index", "getitem", prefix="operator."),
    **_all("same", "sqrt exp log log2 log10 log1p expm1 pow fabs tanh sin cos isfinite isnan isinf", prefix="math."),
    "getattr": "same",
}

ATTRIBUTES = frozenset({"shape", "ndim", "dtype", "device", "T", "mT", "values", "indices"})
DTYPES = frozenset({"float32", "float64", "int64", "int32", "bool"})

# What arguments by name there may be; others would write somewhere, or leave the graph.
KEYWORDS = frozenset(
    _all(
        "same",
        """
        dim dims dim0 dim1 axis keepdim keepdims min max dtype reduction unbiased correction rounding_mode alpha beta
        other input exponent value index descending largest sorted stable k size sizes start end step nan posinf neginf
        p ord condition mask approximate threshold negative_slope delta n shifts diagonal length target log_target
        weight tensors fill_value split_size chunks decimals shape pos_weight min_val eps
        """,
    )
)
