"""Many hosts: who they are, what each of them has, and whether they fit together. Uses utils alone."""
