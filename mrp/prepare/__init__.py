"""What is done to images on the device before an objective receives them."""
