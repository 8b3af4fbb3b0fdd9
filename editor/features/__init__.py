"""Concepts and features: presets, prompts, activations, scores, rules, overlap, maps."""
