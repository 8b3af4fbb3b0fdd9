"""Attacks on an edit, and hardening against them."""
