"""From images on a disk to batches: which sample comes when, how it is read, cropped and handed over."""
