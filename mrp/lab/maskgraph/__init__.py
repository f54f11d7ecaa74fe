"""The graph that masking draws over images (Zhang, Wang and Wang, 2022), estimated from a sample of them."""
