"""Subcommands of ``hsae`` that have no package of their own."""
