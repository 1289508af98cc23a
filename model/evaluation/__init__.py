"""Evaluation protocols, and plots and model cards of their results."""
