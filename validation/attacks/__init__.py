"""Attacks on an edited model: prompts with learned tokens, the loss they are learned by, and what runs the edit meanwhile."""
