"""What every Farstep server does the same way: bodies, errors, keys, operations, life and death.

Shared by dp_worker, sampler and control plane. It knows the contract (`farstep_proto`) and nothing of
training, sampling or provisioning.
"""
