"""The Tinker wire on the control plane's one URL, for the unmodified `tinker` SDK.

Everything is translated to the operations that Farstep has anyway: no second path for training or sampling.
"""
