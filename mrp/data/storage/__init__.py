"""Bytes from a disk, a server or an object store, and what a node keeps of them."""
