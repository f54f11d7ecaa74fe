"""What happens to images on the device before a method sees them."""
