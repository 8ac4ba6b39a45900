"""Foundations that use no other package: files, locks, errors, console, arguments, host."""
