"""Reinforcement learning: rollouts become advantages, advantages become steps. One file an algorithm."""
