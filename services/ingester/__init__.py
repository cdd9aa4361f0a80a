"""Reads sources entry by entry: archives, manifests, prefixes and URLs become recordings."""
