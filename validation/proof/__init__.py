"""The artifact against the hook: reference, parity, report."""
