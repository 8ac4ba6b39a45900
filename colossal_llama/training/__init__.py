"""The run: arguments, plugins, optimizer, step, loop, checkpoint, metrics."""
