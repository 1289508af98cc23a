"""Evaluation protocols, and how their results are shown."""
