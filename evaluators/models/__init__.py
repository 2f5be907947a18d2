"""Models: load them by name, find where they can be cut, cut them, export them."""
