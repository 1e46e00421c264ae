"""Runnable recipes: `python -m experiments.NAME [preset] [options]`. Numbers: README.md here."""
