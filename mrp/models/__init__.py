"""The shared backbone, the masks, and the decoders."""
