"""Evaluations, comparison, figures with intervals."""
