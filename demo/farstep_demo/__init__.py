"""`farstep demo`: the whole way once, on real processes, with nothing but the public SDK.

Supervised steps on real text, then reinforcement learning on arithmetic, each policy sampled through the
version gate. It is an application: nothing imports it, and it knows no more of Farstep than a user does.
"""
