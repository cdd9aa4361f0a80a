"""The six services. A service imports ``common``, never another service."""
