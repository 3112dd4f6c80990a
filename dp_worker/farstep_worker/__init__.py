"""The trainer process: many runs' adapters, trained on one base model, one operation at a time.

It serves HTTP on an event loop and computes on one torch thread; `dispatch` is where the two meet. It
never talks to samplers: it offers each published policy on its feed.
"""
