"""Distributed runs: collective errors, heartbeats and the watchdog of hosts."""
