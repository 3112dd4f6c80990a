"""Stands in for the real package in the processes that these tests start."""
