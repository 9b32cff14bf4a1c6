"""Structured problems that break verdicts, and an oracle that owes nothing to the package's kernel."""
