"""The engine: all that knows ColossalAI, behind a small interface."""
