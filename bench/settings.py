"""What both sides of the benchmark train with."""

from farstep import AdamParams

RANK = 16
ADAM = AdamParams(learning_rate=1e-4, beta1=0.9, beta2=0.95, eps=1e-12, weight_decay=0.0)
