"""What `mrp shards` does: make, index, verify and look at shards."""
