"""Judges, evaluations, comparison, tuning."""
