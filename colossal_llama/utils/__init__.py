"""The ground: the engine on this host, atomic files, the console, errors. Imports nothing of the project."""
