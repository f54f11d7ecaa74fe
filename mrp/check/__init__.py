"""What a part must do, tried: the test suite tries every part of mrp, and `mrp check ./mine.py` a file of one's own."""
