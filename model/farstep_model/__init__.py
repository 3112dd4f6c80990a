"""What trainer and sampler must compute alike: loading, LoRA layers, log-probabilities, losses.

`load` gives a transformers model as it is, `lora` and `adapter` put adapters on it, `logprobs` and `losses` turn hidden
states into numbers to learn from, `batching` says what is computed together. There is no server, no optimizer and no
clock in here.
"""
